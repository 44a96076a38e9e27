"""The command line: what a person types, reads and gets as an exit code."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from potluck import __version__
from potluck.experiment import store
from potluck.experiment.config import Experiment
from potluck.experiment.manual import page
from potluck.experiment.options import options_model
from potluck.methods import METHODS

MakeExperiment = Callable[..., Experiment]
Potluck = Callable[..., tuple[int, str, str]]


@pytest.fixture
def file(small: MakeExperiment, tmp_path: Path) -> str:
    """An experiment file."""
    path = tmp_path / "first.toml"
    path.write_text(store.to_toml(small("fedavg", "model.name=mlp").model_copy(update={"name": "first"})))
    return str(path)


def test_run_prints_a_table_and_the_folder(potluck: Potluck, file: str, tmp_path: Path) -> None:
    code, out, _ = potluck("run", file)
    assert code == 0
    assert "round 2/2" in out
    assert re.search(r"fedavg +0 +2 +0\.\d{3}", out)
    assert "runs/first" in out
    kept = tmp_path / "runs" / "first"
    for name in (
        "experiment.toml",
        "rounds.jsonl",
        "ledger.jsonl",
        "summary.json",
        "state/manifest.json",
        "report.html",
    ):
        assert (kept / name).is_file(), name
    assert sorted(path.name for path in (kept / "model").iterdir()) == ["large.safetensors", "small.safetensors"]


def test_quiet_prints_the_folder_only(potluck: Potluck, file: str) -> None:
    assert potluck("run", file, "--quiet", "--out", "here") == (0, "here\n", "")


def test_resume_says_how_many_more(potluck: Potluck, file: str) -> None:
    potluck("run", file, "--quiet")
    code, out, _ = potluck("resume", "runs/first", "--rounds", "1")
    assert code == 0
    assert "2 rounds done, 1 more, 3 in all" in out


def test_every_default_stands_in_the_run_folder(potluck: Potluck, file: str, tmp_path: Path) -> None:
    potluck("run", file, "--quiet", "--set", "method.name=fedprox")
    kept = tomllib.loads((tmp_path / "runs/first/experiment.toml").read_text())
    assert kept["method"] == {
        "name": "fedprox",
        "mu": 0.01,
        "send": "weights",
        "server_lr": 1.0,
        "weighting": "samples",
    }
    assert kept["train"]["epochs"] == {"small": 1, "large": 1}
    assert kept["train"]["schedule_rounds"] == 2
    assert kept["fleet"]["tier"][0]["downlink_mbps"] == 50.0


WRONG = {
    "trian.lr=1": ["trian: unknown key", "did you mean train?"],
    "train.lrr=1": ["train.lrr: unknown key", "did you mean train.lr?"],
    "train.lr=-1": ["train.lr = -1", "greater than 0"],
    "train.lr='x'": ['train.lr = "x"', "number"],
    "train.batch_size=0": ["train.batch_size = 0", "greater than or equal to 1"],
    "train.epochs={small=1}": ['"large"', "train.epochs"],
    "train.epochs={small=1,large=1,huge=2}": ["train.epochs.huge", "unknown tier"],
    "train.loss='nothing:here'": ["train.loss", "nothing"],
    "rounds=0": ["rounds = 0"],
    "rounds=-3": ["rounds = -3"],
    "seed=-1": ["seed = -1"],
    "name='a/b'": ['name = "a/b"'],
    "method.name=fedagv": ['method.name = "fedagv"', 'did you mean "fedavg"?'],
    "method.mu=1": ["method.mu", "an option of fedprox, not of fedavg"],
    "method.server_lr=0": ["method.server_lr = 0", "never change"],
    "method.server_lr=11": ["method.server_lr = 11"],
    "method.wieghting='uniform'": ["method.wieghting: unknown key", "method.weighting"],
    "method.weighting='equal'": ['method.weighting = "equal"', "uniform"],
    "model.name=resnet9": ['model.name = "resnet9"', 'did you mean "resnet8"?'],
    "model.name='no.such:net'": ["no.such:net", "no module"],
    "model.norm=layer": ['model.norm = "layer"', "group"],
    "model.init='none.safetensors'": ["model.init", "none.safetensors"],
    "data.source=digitz": ["digitz", "digits"],
    "data.source='npz:missing.npz'": ["missing.npz"],
    "data.partition.kind=dirichlett": ["data.partition.kind", "did you mean dirichlet?"],
    "data.partition.alpha=0": ["data.partition.alpha = 0"],
    "data.public=1.5": ["data.public = 1.5"],
    "data.limit=-1": ["data.limit = -1"],
    "fleet.tier=[]": ["fleet.tier = []", "at least 1"],
    "fleet.tier=[{name='a'},{name='a'}]": ["'a'"],
    "fleet.tier=[{name='a',devices=0}]": ["fleet.tier[0].devices = 0"],
    "fleet.tier=[{name='a',uplink_mbps=0}]": ["fleet.tier[0].uplink_mbps = 0"],
    "fleet.participation=0": ["fleet.participation = 0"],
    "fleet.deadline_s=0": ["fleet.deadline_s = 0"],
    "wire.up=['int9']": ["wire.up", "int9", "int8"],
    "wire.up=['zstd','int8']": ["wire.up", "zstd comes last"],
    "engine.kind=ray": ['engine.kind = "ray"', "pool"],
    "engine.workers=0": ["engine.workers = 0"],
    "engine.threads=0": ["engine.threads = 0"],
}


@pytest.mark.parametrize("override", WRONG)
def test_wrong_settings_are_one_line_and_write_nothing(
    potluck: Potluck, file: str, tmp_path: Path, override: str
) -> None:
    before = sorted(tmp_path.rglob("*"))
    code, out, told = potluck("run", file, "--set", override)
    assert code == 2
    assert out == ""
    assert len(told.strip().splitlines()) == 1, told
    for words in WRONG[override]:
        assert words in told
    assert sorted(tmp_path.rglob("*")) == before


def test_a_missing_or_broken_file(potluck: Potluck, tmp_path: Path) -> None:
    code, _, told = potluck("run", "none.toml")
    assert (code, told) == (2, "potluck: none.toml: no such experiment file\n")
    (tmp_path / "broken.toml").write_text("rounds = = 3")
    code, _, told = potluck("run", "broken.toml")
    assert code == 2
    assert "not TOML" in told
    assert "line 1" in told


def test_a_run_folder_is_not_overwritten(potluck: Potluck, file: str, tmp_path: Path) -> None:
    potluck("run", file, "--quiet")
    kept = (tmp_path / "runs/first/summary.json").read_bytes()
    code, _, told = potluck("run", file)
    assert code == 2
    assert "exists already" in told
    assert "potluck resume runs/first" in told
    assert (tmp_path / "runs/first/summary.json").read_bytes() == kept


def test_resume_of_no_run(potluck: Potluck, tmp_path: Path) -> None:
    code, _, told = potluck("resume", "nowhere")
    assert code == 2
    assert "no such run folder" in told
    (tmp_path / "empty").mkdir()
    code, _, told = potluck("resume", "empty")
    assert code == 2
    assert "not a run folder" in told


def test_resume_refuses_another_experiment(potluck: Potluck, file: str, tmp_path: Path) -> None:
    potluck("run", file, "--quiet")
    settings = tmp_path / "runs/first/experiment.toml"
    settings.write_text(settings.read_text().replace("lr = 0.05", "lr = 0.06"))
    code, _, told = potluck("resume", "runs/first", "--rounds", "1")
    assert code == 2
    assert "was changed since the run began" in told
    manifest = tmp_path / "runs/first/state/manifest.json"
    manifest.write_text(manifest.read_text().replace(f'"version": "{__version__}"', '"version": "0.0.9"'))
    code, _, told = potluck("resume", "runs/first", "--rounds", "1")
    assert code == 2
    assert f"was written by potluck 0.0.9, this is {__version__}" in told
    settings.write_text(settings.read_text().replace("lr = 0.06", "lr = 0.05"))
    assert potluck("resume", "runs/first", "--rounds", "1")[0] == 0, "another version that reads it the same goes on"


@pytest.mark.parametrize("name", ["rounds.jsonl", "ledger.jsonl", "state/manifest.json", "experiment.toml", "state"])
def test_a_damaged_run_folder_is_told(potluck: Potluck, file: str, tmp_path: Path, name: str) -> None:
    potluck("run", file, "--quiet")
    folder = tmp_path / "runs/first"
    place = next((folder / "state").glob("state-*")) if name == "state" else folder / name
    place.write_bytes(place.read_bytes()[: place.stat().st_size // 2] + b"[")
    code, _, told = potluck("resume", "runs/first", "--rounds", "1")
    assert code == 2
    assert "Traceback" not in told
    assert str(place.relative_to(tmp_path)) in told


def test_a_report_of_one_and_of_several(potluck: Potluck, file: str, tmp_path: Path) -> None:
    potluck("run", file, "--quiet", "--out", "a")
    potluck("run", file, "--quiet", "--out", "b", "--set", "seed=1")
    assert potluck("report", "a") == (0, "a/report.html\n", "")
    assert potluck("report", "a", "b", "--out", "both.html") == (0, "both.html\n", "")
    assert "fedavg" in (tmp_path / "both.html").read_text()
    code, _, told = potluck("report", "nowhere")
    assert code == 2
    assert "nowhere" in told


def test_export_writes_what_a_tier_deploys(potluck: Potluck, file: str, tmp_path: Path) -> None:
    potluck("run", file, "--quiet", "--out", "a")
    code, out, _ = potluck("export", "a", "--tier", "small", "--to", "small.safetensors")
    assert code == 0
    assert re.match(r"small\.safetensors: [\d,]+ parameters, [\d,]+ bytes", out)
    assert (tmp_path / "small.safetensors").is_file()
    code, _, told = potluck("export", "a", "--tier", "tiny", "--to", "tiny.onnx")
    assert code == 2
    assert "small, large" in told
    code, _, told = potluck("export", "a", "--tier", "small", "--to", "small.pkl")
    assert code == 2
    assert ".safetensors" in told


def test_split_writes_the_shares(potluck: Potluck, file: str, tmp_path: Path) -> None:
    code, out, _ = potluck("split", file, "--out", "shares")
    assert code == 0
    assert "files in shares" in out
    assert (tmp_path / "shares/device-003.npz").is_file()
    code, _, told = potluck("split", file, "--out", "shares")
    assert code == 2
    assert "shares" in told


def test_lists(potluck: Potluck) -> None:
    for command, wanted in {"methods": list(METHODS), "sources": ["digits", "idx:DIR"], "models": ["resnet8"]}.items():
        code, out, _ = potluck(command)
        assert code == 0
        for word in wanted:
            assert word in out


def test_the_page_of_a_method(potluck: Potluck) -> None:
    code, out, _ = potluck("methods", "fedhm")
    assert code == 0
    for told in ("arXiv 2111.14655", "| `rank_factor` | by strength of the tier: `8`, `4`, `1` |", "`u`, `v`"):
        assert told in out
    code, _, told = potluck("methods", "fedhn")
    assert code == 2
    assert 'did you mean "fedhm"?' in told


@pytest.mark.parametrize("name", METHODS)
def test_a_page_names_every_option(name: str) -> None:
    told = page(name)
    for option in options_model(METHODS[name]).model_fields:
        assert f"| `{option}` | " in told


def test_version_and_help(potluck: Potluck) -> None:
    code, out, _ = potluck("--version")
    assert code == 0
    assert re.match(r"potluck \d+\.\d+\.\d+", out)
    for command in (
        "run",
        "resume",
        "compare",
        "plan",
        "probe",
        "report",
        "export",
        "split",
        "peer",
        "certificates",
        "methods",
        "sources",
        "models",
    ):
        code, out, _ = potluck(command, "--help")
        assert code == 0
        assert f"Example: potluck {command}" in out


def test_compare_runs_what_is_missing_and_names_what_fails(potluck: Potluck, file: str, tmp_path: Path) -> None:
    words = ("compare", file, "--methods", "local,fedavg", "--seeds", "0,1", "--out", "both")
    code, _, _ = potluck(*words)
    assert code == 0
    assert sorted(path.name for path in (tmp_path / "both").iterdir() if path.is_dir()) == [
        "fedavg-0",
        "fedavg-1",
        "local-0",
        "local-1",
    ]
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "both").rglob("summary.json")}
    code, _, _ = potluck(*words)
    assert code == 0
    assert {path: path.stat().st_mtime_ns for path in times} == times
    code, _, told = potluck(*words, "--set", "train.lr=0.1")
    assert code == 2
    assert "train differ" in told
    code, _, told = potluck("compare", file, "--methods", "fedavg,fedagv")
    assert code == 2
    assert 'did you mean "fedavg"?' in told


def test_own_net_and_loss_from_the_working_folder(potluck: Potluck, file: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "def net(shape, classes):\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(shape[0] * shape[1] * shape[2], classes))\n"
        "def loss(logits, labels):\n"
        "    return torch.nn.functional.multi_margin_loss(logits, labels)\n"
        "def broken(logits, labels):\n"
        "    return logits.sum() * float('nan')\n"
    )
    code, _, told = potluck("run", file, "--set", "model.name=mine:net", "--set", "train.loss=mine:loss")
    assert (code, told) == (0, "")
    code, _, told = potluck("run", file, "--set", "train.loss=mine:broken", "--out", "nan")
    assert code == 2
    assert re.search(r"round 1, tier '(small|large)', device \d: the loss became nan", told)
