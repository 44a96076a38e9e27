"""The shape of the code: who imports whom, what an import loads, and how much a newcomer reads."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

import potluck
from potluck.methods import METHODS

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "potluck"


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stdout


def test_imports_point_downwards() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout


def test_importing_potluck_loads_no_heavy_library() -> None:
    heavy = ("flwr", "zenoh", "plotly", "datasets", "flwr_datasets", "sklearn", "typer", "rich", "pydantic", "torch")
    loaded = json.loads(python("import potluck, sys, json; print(json.dumps(sorted(sys.modules)))"))
    assert not set(heavy) & set(loaded)


def test_running_needs_no_laboratory_until_data_are_loaded() -> None:
    code = "from potluck.experiment import run; import sys, json; print(json.dumps(sorted(sys.modules)))"
    assert not {"flwr", "zenoh", "plotly", "datasets", "flwr_datasets", "sklearn"} & set(json.loads(python(code)))


def test_help_and_a_wrong_file_are_told_before_torch_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "wrong.toml").write_text("[train]\nlearning_rate = 0.1\n")
    for command in (["--help"], *([word, str(tmp_path / "wrong.toml")] for word in ("run", "plan"))):
        code = f"""
import sys
sys.argv = {["potluck", *command]}
from potluck import cli
try:
    cli.main()
except SystemExit as stop:
    print("code", stop.code, "torch" in sys.modules)
"""
        assert python(code).splitlines()[-1] == f"code {0 if command == ['--help'] else 2} False"


def test_public_names() -> None:
    assert potluck.__all__ == [
        "METHODS",
        "Device",
        "Experiment",
        "PotluckError",
        "Run",
        "Shard",
        "load",
        "resume",
        "run",
    ]
    for name in potluck.__all__:
        assert getattr(potluck, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing_of_ours"):
        potluck.nothing_of_ours  # noqa: B018


def test_a_newcomer_reads_under_500_lines() -> None:
    files = [
        *("methods/fedavg.py", "methods/averaging.py", "methods/protocol.py"),
        *("engines/round.py", "engines/local/inprocess.py"),
    ]
    assert sum(len((SOURCE / name).read_text().splitlines()) for name in files) < 500


def test_fedprox_is_not_a_copy_of_fedavg() -> None:
    fedavg, fedprox = ((SOURCE / "methods" / f"{name}.py").read_text() for name in ("fedavg", "fedprox"))
    lines = [line.strip() for line in fedprox.splitlines() if line.strip()]
    theirs = {line.strip() for line in fedavg.splitlines()}
    assert sum(line in theirs for line in lines) / len(lines) < 0.30


def test_no_file_imports_itself_in_a_circle() -> None:
    graph = grimp.build_graph("potluck", exclude_type_checking_imports=True)
    above: list[str] = []
    done: set[str] = set()

    def visit(module: str) -> None:
        assert module not in above, " -> ".join([*above[above.index(module) :], module])
        if module not in done:
            above.append(module)
            for imported in graph.find_modules_directly_imported_by(module):
                visit(imported)
            done.add(above.pop())

    for module in graph.modules:
        visit(module)


SHARED = {"protocol", "averaging", "checks"}
"""What methods share lies beside them."""


def test_methods_do_not_know_one_another() -> None:
    graph = grimp.build_graph("potluck", exclude_type_checking_imports=True)
    papers = {path.stem for path in (SOURCE / "methods").iterdir() if path.stem not in SHARED and path.stem[0] != "_"}
    assert papers == set(METHODS)
    for module in graph.modules:
        mine = module.removeprefix("potluck.methods.").partition(".")[0]
        if module.startswith("potluck.methods.") and mine in papers:
            for imported in graph.find_modules_directly_imported_by(module):
                theirs = imported.removeprefix("potluck.methods.").partition(".")[0]
                assert theirs not in papers - {mine}, f"{module} imports {imported}"


def test_every_room_says_what_it_is_for() -> None:
    for room in (path.parent for path in SOURCE.rglob("__init__.py")):
        said = ast.get_docstring(ast.parse((room / "__init__.py").read_text(encoding="utf-8")))
        assert said, room


def test_every_file_says_what_it_is_for() -> None:
    for path in SOURCE.rglob("*.py"):
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path


def test_nothing_is_pickled() -> None:
    words = ("import pickle", "torch.save(", "torch.load(", "allow_pickle=True")
    found = [path.name for path in SOURCE.rglob("*.py") if any(word in path.read_text() for word in words)]
    assert not found
