"""Rules that end a run early, the deadline that is refused, tracking, splitting, a warm start."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from potluck.core.errors import ConfigError, RunFolderError
from potluck.deploy.split import write_split
from potluck.experiment import build, run, store
from potluck.experiment.config import Experiment
from potluck.experiment.resolve import resolve

MakeExperiment = Callable[..., Experiment]


@pytest.mark.parametrize(
    ("rule", "told"),
    [("stop.accuracy=0.5", "mean reached 0."), ("stop.bytes=1000000", "were sent"), ("stop.seconds=3", "passed")],
)
def test_a_rule_ends_a_run_with_a_full_evaluation(small: MakeExperiment, tmp_path: Path, rule: str, told: str) -> None:
    found = run.run(small("fedavg", "rounds=30", "model.name=mlp", "evaluate.samples=20", rule), tmp_path / "run")
    assert 1 <= found.summary["rounds"] < 30
    assert told in found.summary["stopped"]
    last = run.prepare(found.experiment).federation.test_samples
    correct = found.summary["accuracy"]["mean"] * last
    assert abs(correct - round(correct)) < 1e-6, "the last round is evaluated on all test samples"
    first, before = found.summary, [line["round"] for line in found.rounds]
    again = run.resume(tmp_path / "run")
    assert [line["round"] for line in again.rounds] == before, "a stopped run is over"
    assert again.summary["state_sha256"] == first["state_sha256"]
    longer = run.resume(tmp_path / "run", more_rounds=2)
    assert longer.summary["rounds"] == first["rounds"] + 2


def test_a_rule_that_is_never_reached(small: MakeExperiment, tmp_path: Path) -> None:
    found = run.run(small("fedavg", "model.name=mlp", "stop.accuracy=2.0"), tmp_path / "run")
    assert (found.summary["rounds"], found.summary["stopped"]) == (2, "")


def test_a_deadline_that_cannot_be_met_is_refused(small: MakeExperiment, tmp_path: Path) -> None:
    slow = small("fedavg", "fleet.deadline_s=2", "fleet.tier=[{name='small',uplink_mbps=0.5},{name='large'}]")
    with pytest.raises(ConfigError, match=r"deadline_s = 2: tier small needs \d+ s .*[\d,]+ bytes up \d") as caught:
        run.run(slow, tmp_path / "run")
    assert "tier large" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_deadline_that_work_cannot_meet_is_refused(small: MakeExperiment, tmp_path: Path) -> None:
    weak = small("fedavg", "fleet.deadline_s=60", "fleet.tier=[{name='weak',gflops=0.01}]")
    with pytest.raises(ConfigError, match=r"tier weak needs \d+ s .*GFLOPs"):
        run.run(weak, tmp_path / "run")


def test_who_is_late_is_told_and_not_aggregated(small: MakeExperiment, tmp_path: Path) -> None:
    tier = "fleet.tier=[{name='weak',devices=4,gflops=0.1}]"
    plain = small("fedavg", tier, "fleet.participation=1.0", "rounds=1")
    seconds = sorted(row["seconds"] for row in run.run(plain, tmp_path / "all").ledger if row["direction"] == "up")
    limit = (seconds[1] + seconds[2]) / 2
    cut = small("fedavg", tier, "fleet.participation=1.0", f"fleet.deadline_s={limit}", "rounds=1")
    found = run.run(cut, tmp_path / "cut")
    late = {row["device"] for row in found.ledger if row["status"] == "late"}
    assert len(late) == 2
    assert found.rounds[0]["status"] == {"late": sorted(late)}
    assert found.rounds[0]["seconds"] == limit
    assert all("the deadline is" in row["reason"] for row in found.ledger if row["status"] == "late")


def test_tensorboard_stands_beside_a_whole_run_folder(small: MakeExperiment, tmp_path: Path) -> None:
    plain = run.run(small("fedavg", "model.name=mlp"), tmp_path / "plain")
    tracked = run.run(small("fedavg", "model.name=mlp", "track.kind=['tensorboard']"), tmp_path / "tracked")
    assert list((tmp_path / "tracked" / "tensorboard").glob("events.*"))
    assert tracked.summary["state_sha256"] == plain.summary["state_sha256"]
    assert {path.name for path in tracked.path.iterdir()} - {"tensorboard"} == {p.name for p in plain.path.iterdir()}


def test_a_warm_start_goes_on_from_another_runs_model(small: MakeExperiment, tmp_path: Path) -> None:
    first = run.run(small("fedavg", "model.name=mlp", "rounds=6"), tmp_path / "first")
    init = f"model.init='{first.path}/model/small.safetensors'"
    warm = run.run(small("fedavg", "model.name=mlp", "rounds=1", init), tmp_path / "warm")
    cold = run.run(small("fedavg", "model.name=mlp", "rounds=1"), tmp_path / "cold")
    assert warm.rounds[0]["accuracy"]["mean"] > cold.rounds[0]["accuracy"]["mean"]
    with pytest.raises(ConfigError, match=r"model\.init"):
        run.run(small("fedavg", "model.name=mlp", "model.init='nowhere.safetensors'"), tmp_path / "none")


def test_a_full_disk_leaves_the_last_checkpoint(
    small: MakeExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = small("fedavg", "model.name=mlp", "rounds=4")
    whole = run.run(experiment, tmp_path / "whole").summary
    write = store.write_whole

    def full(path: Path, data: bytes | bytearray) -> None:
        if path.name == "state-000003.safetensors":
            raise OSError(28, "No space left on device")
        write(path, data)

    with monkeypatch.context() as patched:
        patched.setattr(store, "write_whole", full)
        with pytest.raises(RunFolderError, match=r"the disk is full.*Free some space, then: potluck resume"):
            run.run(experiment, tmp_path / "cut")
    assert store.read_checkpoint(tmp_path / "cut").round == 2
    assert run.resume(tmp_path / "cut").summary["state_sha256"] == whole["state_sha256"]


def test_shares_of_devices_as_files(small: MakeExperiment, tmp_path: Path) -> None:
    shares = build.make_shares(resolve(small("fedavg")))
    manifest = write_split(shares, tmp_path / "shares")
    names = {path.name for path in (tmp_path / "shares").iterdir()}
    assert {"device-000.npz", "device-003.npz", "public.npz", "test.npz", "manifest.json"} <= names
    assert json.loads((tmp_path / "shares/manifest.json").read_text()) == manifest
