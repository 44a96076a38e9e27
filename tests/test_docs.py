"""The docs do what they say: every command and snippet runs."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import torch
from tests.plugin_home import PLUGIN

from potluck import cli, methods
from potluck.experiment import run
from potluck.experiment.config import Experiment
from potluck.testing import small_experiment

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(name: str) -> list[tuple[str, str]]:
    """(language, text) of each code block of a page."""
    return BLOCK.findall((ROOT / name).read_text(encoding="utf-8"))


def call(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(command.replace("--rounds 5", "--rounds 1"))
    quick = ["--set", "engine.kind=inprocess", "--set", "data.limit=500"]
    quick = [*quick, "--set", "rounds=1"] if words[1] in ("run", "compare") else quick if words[1] == "plan" else []
    monkeypatch.setattr(sys, "argv", [*words, *quick])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code, command


PAGES = [
    "README.md",
    "docs/getting-started.md",
    "docs/choosing.md",
    "docs/extending.md",
    "docs/tasks.md",
    *(f"docs/methods/{name}.md" for name in methods.METHODS),
]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("page", PAGES)
def test_every_command_and_snippet_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr("signal.signal", lambda *_: None)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    for language, text in blocks(page):
        named = re.match(r"# (\S+\.(?:toml|py))\n", text)
        if named:
            (tmp_path / named[1]).write_text(text)
        elif language == "python":
            quick = text.replace('["rounds=2"]', '["rounds=2", "engine.kind=inprocess"]')
            exec(compile(quick, page, "exec", dont_inherit=True), {})
        elif language == "console":
            for line in text.splitlines():
                command = line.removeprefix("$ ").partition("  #")[0].strip()
                if command.startswith("potluck "):
                    call(command, monkeypatch)
    assert list(tmp_path.glob("runs/**/summary.json"))


@pytest.mark.parametrize("name", methods.METHODS)
def test_the_pages_of_the_methods_are_due(name: str) -> None:
    space = runpy.run_path(str(ROOT / "docs/method_pages.py"))
    held = (ROOT / f"docs/methods/{name}.md").read_text(encoding="utf-8")
    assert held == space["due"](name), "run: python docs/method_pages.py"
    for heading in ("## Who sees what", "## Results", "## Try it"):
        assert heading in held


def test_every_make_target_of_the_readme_exists() -> None:
    told = set(re.findall(r"^\$ make (\w+)", (ROOT / "README.md").read_text(), re.MULTILINE))
    there = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert told
    assert told <= there


def test_every_link_leads_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_setting_stands_in_the_docs() -> None:
    page = (ROOT / "docs/experiment-file.md").read_text()
    for section, field in Experiment.model_fields.items():
        assert f"`{section}`" in page or f"[{section}" in page, section
        inner = getattr(field.annotation, "model_fields", {})
        for key in inner:
            assert f"`{key}`" in page or f"[{section}.{key}" in page, f"{section}.{key}"


def test_the_method_of_the_page_is_the_plugins_own() -> None:
    shown = {text.split()[1]: text.partition("\n")[2] for _, text in blocks("docs/extending.md") if text[0] == "#"}
    assert shown["signmean.py"] == (PLUGIN / "src/potluck_signs/method.py").read_text(encoding="utf-8")
    assert shown["test_signmean.py"].count("check_method(") == 1
    (points,) = [text for language, text in blocks("docs/extending.md") if language == "toml"]
    assert points in (PLUGIN / "pyproject.toml").read_text(encoding="utf-8")


def test_the_method_of_the_page_does_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(PLUGIN / "src")
    settings = ("rounds=6", "method.step=0.5", "fleet.participation=1.0")
    found = run.run(small_experiment("potluck_signs.method:SignMean", *settings), tmp_path / "run")
    accuracy = [line["accuracy"]["mean"] for line in found.rounds]
    assert accuracy[-1] > accuracy[0]
    ups = [row["tensor_bytes"] for row in found.ledger if row["direction"] == "up"]
    downs = [row["tensor_bytes"] for row in found.ledger if row["direction"] == "down"]
    assert max(ups) < 0.26 * max(downs), "one byte a value, and a scale per tensor"
    assert isinstance(found.model("small"), torch.nn.Module)


def test_the_docs_speak_of_the_project_alone() -> None:
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"/work/|/tmp/|issue \d|session", text), page.name
