"""Plug-ins without a fork: an installed package, and objects by ``package.module:object``."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from tests.engines.flower.grid import grid_of, serve
from tests.plugin_home import PLUGIN, fresh_environment, told

from potluck.core import plugins
from potluck.core.errors import ConfigError, ModelError
from potluck.core.plugins import Catalogue
from potluck.deploy.split import write_split
from potluck.experiment import build, run
from potluck.experiment.compare import compare, variants
from potluck.experiment.config import Experiment, Track
from potluck.experiment.listener import SILENCE
from potluck.experiment.resolve import resolve
from potluck.experiment.run_reader import Run
from potluck.methods import METHODS
from potluck.testing import small_experiment

OWN = (
    "method.name=potluck_signs.method:SignMean",
    "model.name=potluck_signs.net:make_two_conv",
    "data.source=potluck_signs.source:stripes:400",
    'wire.down=["potluck_signs.codec:make_int4"]',
    'track.kind=["potluck_signs.tracker:csv_file"]',
)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a fresh environment with the plug-in."""
    return fresh_environment(tmp_path_factory.mktemp("fresh"))


def test_what_is_installed_is_listed_with_where_it_comes_from(python: Path, tmp_path: Path) -> None:
    for command, name in (("methods", "signmean"), ("models", "twoconv"), ("sources", "stripes:N")):
        code, said = told(python, tmp_path, command)
        assert code == 0, said
        line = next(line for line in said.splitlines() if line.startswith(name))
        assert line.rstrip().endswith("potluck-signs 0.3.0"), line
        assert "built in" in said
    code, said = told(python, tmp_path, "methods", "signmean")
    assert code == 0, said
    assert "| `step` | `1` | number ≥ 0, ≤ 10 |" in said
    assert "**up**: on the way up: a sign a value" in said


@pytest.mark.parametrize("engine", ["inprocess", "pool"])
def test_everything_of_a_plugin_runs_in_one_experiment(python: Path, engine: str, tmp_path: Path) -> None:
    words = ("run", str(PLUGIN / "experiment.toml"), "--out", "run", "--set", f"engine.kind={engine}")
    code, said = told(python, tmp_path, *words, "--set", "engine.workers=2")
    assert code == 0, said
    found = json.loads((tmp_path / "run/summary.json").read_text())
    assert found["method"] == "signmean"
    assert found["accuracy"]["mean"] > 0.3
    assert (tmp_path / "run/figures.csv").read_text().startswith("round,accuracy,bytes")
    ledger = [json.loads(line) for line in (tmp_path / "run/ledger.jsonl").read_text().splitlines()]
    trained = [row for row in ledger if row["verb"] == "train"]
    sizes = {row["direction"]: row["tensor_bytes"] for row in trained}
    assert sizes["down"] < 0.6 * sizes["up"], "int4 has half a byte a value, a sign has one"
    code, said = told(python, tmp_path, "export", "run", "--tier", "small", "--to", "small.safetensors")
    assert code == 0, said


def test_an_installed_name_and_an_object_are_the_same(
    python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the folder that holds them, without any installation; the pool's workers find them too."""
    code, said = told(python, tmp_path, "run", str(PLUGIN / "experiment.toml"), "--out", "installed", "--quiet")
    assert code == 0, said
    monkeypatch.syspath_prepend(str(PLUGIN / "src"))
    own = [*OWN, "engine.workers=2"]
    here = run.run(Experiment.load(PLUGIN / "experiment.toml", own), tmp_path / "own")
    installed = json.loads((tmp_path / "installed/summary.json").read_text())
    assert here.summary["state_sha256"] == installed["state_sha256"]
    assert here.summary["method"] == "potluck_signs.method:SignMean"
    assert Run.load(tmp_path / "own").model("large").training is False
    again = run.resume(tmp_path / "own", more_rounds=1)
    assert again.summary["rounds"] == installed["rounds"] + 1


def test_over_flower_it_is_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(PLUGIN / "src"))
    asked = Experiment.load(PLUGIN / "experiment.toml", [*OWN, "rounds=2", "engine.kind=inprocess"])
    serve(grid_of(asked, tmp_path))
    here = run.run(asked, tmp_path / "here")
    there = Run.load(tmp_path / "run")
    assert there.summary["state_sha256"] == here.summary["state_sha256"]
    assert {row["status"] for row in there.ledger} == {"ok"}


HELLO = """
import json, sys
from potluck.deploy.client_app import _hello
print(json.dumps(_hello(*json.load(sys.stdin))))
"""


def hello(config: dict[str, Any], **node: str) -> dict[str, Any]:
    """What a device says before any training, in a process that knows nothing of the plug-in."""
    done = subprocess.run(
        [sys.executable, "-c", HELLO],
        input=json.dumps([config, {"partition-id": 1, "tier": "small", **node}]),
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize(
    ("own", "says"),
    [
        (OWN[0], "method.name = \"potluck_signs.method:SignMean\": no module 'potluck_signs'"),
        (OWN[1], "model.name = \"potluck_signs.net:make_two_conv\": no module 'potluck_signs'"),
        (OWN[3], "wire = \"potluck_signs.codec:make_int4\": no module 'potluck_signs'"),
    ],
)
def test_a_device_that_lacks_one_says_so_before_any_training(
    own: str, says: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as here:
        here.syspath_prepend(str(PLUGIN / "src"))
        config = grid_of(_set(own), tmp_path).config
    assert hello(config, store=str(tmp_path / "store"))["fault"].startswith(says)


def test_a_device_needs_neither_the_servers_source_nor_its_tracker(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as here:
        here.syspath_prepend(str(PLUGIN / "src"))
        asked = _set(OWN[2]).model_copy(update={"track": Track(kind=["potluck_signs.tracker:csv_file"])})
        config = grid_of(asked, tmp_path).config
        write_split(build.make_shares(resolve(asked)), tmp_path / "shares")
    node = {"data": "device-001", "public": "public"}
    node = {key: f"npz:{tmp_path}/shares/{name}.npz" for key, name in node.items()} | {"store": str(tmp_path / "store")}
    assert not hello(config, **node)["fault"]


def test_a_comparison_names_an_object_in_its_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(PLUGIN / "src"))
    plain = Experiment.load(PLUGIN / "experiment.toml", [*OWN[1:], "rounds=1", "engine.kind=inprocess"])
    found = list(
        compare(variants(plain, ["potluck_signs.method:SignMean", "fedavg"], [0]), tmp_path, lambda *_: SILENCE)
    )
    assert [one.path.name for one in found] == ["potluck_signs.method.SignMean-0", "fedavg-0"]
    assert not any(one.reason for one in found)


def test_the_laws_are_run_by_the_plugins_own_tests(python: Path, tmp_path: Path) -> None:
    words = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", str(PLUGIN / "tests")]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "10 passed" in done.stdout


def test_without_the_plugin_its_names_are_unknown_and_nothing_is_written(tmp_path: Path) -> None:
    words = ("run", str(PLUGIN / "experiment.toml"), "--out", "run")
    code, said = told(Path(sys.executable), tmp_path, *words)
    assert code == 2
    assert 'method.name = "signmean": expected one of fedavg' in said
    assert not (tmp_path / "run").exists()


class Point(EntryPoint):
    """An entry point of no distribution."""

    dist = None


def catalogue(monkeypatch: pytest.MonkeyPatch, **points: str) -> Catalogue[int]:
    """A catalogue of numbers, with entry points."""
    monkeypatch.setattr(plugins, "installed", lambda group: {n: Point(n, v, group) for n, v in points.items()})

    def number(name: str, found: object) -> int:
        if not isinstance(found, int):
            raise ValueError(f"got {found!r}, expected a number")
        return found

    return Catalogue(
        kind="number",
        key="a.number",
        package="potluck.core",
        table="MOST_SAMPLES_OF_THE_TEST",
        group="potluck.numbers",
        made=number,
        error=ModelError,
    )


def test_a_plugin_that_does_not_load_is_told_with_its_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "broken_plugin.py").write_text("one = 1\n\nraise RuntimeError('half built')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = catalogue(monkeypatch, three="broken_plugin:one", four="math:pi", five="json:nothing")
    with pytest.raises(ModelError, match=r'"three": plug-in broken_plugin:one failed: .*half built .*line 3'):
        found["three"]
    with pytest.raises(ModelError, match=r'a.number = "four": got 3.14.*, expected a number'):
        found["four"]
    with pytest.raises(ModelError, match=r'a.number = "five": plug-in json:nothing failed: AttributeError'):
        found["five"]
    with pytest.raises(ModelError, match=r'a.number = "fine": expected one of three, four, five; did you mean "five"'):
        found["fine"]
    assert list(found) == ["three", "four", "five"]


def test_objects_of_ones_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "my_numbers.py").write_text("one = 1\ntext = 'a'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = catalogue(monkeypatch)
    assert found["my_numbers:one"] == 1
    assert found.origin("my_numbers:one") == "my_numbers"
    for name, says in {
        "my_numbers:two": "my_numbers has no 'two'",
        "my_numbers:text": "got 'a', expected a number",
        "no_such_module:one": "no module 'no_such_module'; run from the folder that holds it, or install it",
        "my_numbers.": "expected one of",
        ":one": "expected one of",
        "my numbers:one": "expected one of",
        "../my_numbers:one": "expected one of",
    }.items():
        with pytest.raises(ModelError, match=says):
            found[name]


def test_a_plugin_cannot_take_the_name_of_what_is_built_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "installed", lambda group: {"fedavg": Point("fedavg", "math:pi", group)})
    assert METHODS["fedavg"].__name__ == "FedAvg"
    assert METHODS.origin("fedavg") == "built in"
    assert len(METHODS) == 10


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("wire.up=['json:loads']", "wire.up holds 'json:loads'"),
        ("track.kind=['nothing']", 'track.kind = "nothing": expected one of tensorboard'),
        ("track.kind=['math:pi']", "expected a function"),
        ("data.source=json:loads", "says not where: write json:loads:WHERE"),
        ("data.source=json:loads:3", "returned int: expected a potluck.data.dataset.Dataset"),
        ("data.source=json:loads:nothing", "reading it failed: JSONDecodeError"),
        ("data.source=math:pi", "expected a function that returns a Dataset"),
        ("model.name=math:pi", "expected a function"),
        ("method.name=math:pi", "expected a frozen dataclass with traits"),
    ],
)
def test_what_is_no_member_is_refused_before_anything_is_written(setting: str, says: str, tmp_path: Path) -> None:
    with pytest.raises((ConfigError, ValueError), match=says):
        run.run(_set(setting), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def _set(setting: str) -> Experiment:
    key, _, name = setting.partition("=")
    if key == "method.name":
        return small_experiment("fedavg").model_copy(update={"method": {"name": name}})
    return small_experiment("fedavg", setting)
