"""Every command for every kind of data and task: run, report, compare, plan, export, split; and init for each file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from potluck.deploy.export import export
from potluck.deploy.split import read_shard, write_split
from potluck.experiment import run
from potluck.experiment.compare import compare, variants
from potluck.experiment.config import Experiment
from potluck.experiment.listener import SILENCE
from potluck.experiment.prepare import prepare
from potluck.experiment.suggest import suggest
from potluck.planning.plan import plan
from potluck.report import page, runs, target
from potluck.testing import TASKS, small_experiment

METRICS = {
    "classification": ("accuracy", "Accuracy"),
    "regression": ("rmse", "RMSE"),
    "multilabel": ("average_precision", "Average precision"),
    "series": ("accuracy", "Accuracy"),
    "text": ("accuracy", "Accuracy"),
    "next_token": ("token_accuracy", "Token accuracy"),
}


@pytest.mark.parametrize("task", TASKS)
def test_a_run_of_every_kind_is_reported_planned_and_exported(task: str, tmp_path: Path) -> None:
    experiment = small_experiment("fedhm", task=task)
    found = run.run(experiment, tmp_path / "run")
    name, told = METRICS[task]
    assert found.summary["metric"]["name"] == name
    assert ("accuracy" in found.summary) == (found.problem.kind == "classification")
    assert name in found.summary["metrics"]
    html = page.write_report([tmp_path / "run"], tmp_path / "report.html").read_text(encoding="utf-8")
    assert told in html
    assert "mean over devices" in html
    (planned,) = plan([(experiment, "")])
    assert {row.tier for row in planned.tiers} == {"small", "large"}
    written = export(tmp_path / "run", "small", tmp_path / "small.pt2")
    assert written.bytes > 0
    card = json.loads((tmp_path / "small.pt2.json").read_text())
    assert card["inputs"]["kind"] == found.problem.inputs.kind
    assert card["outputs"]["task"] == found.problem.kind
    assert bool(card["outputs"]["mean"]) == (task == "regression")
    assert (
        card["inputs"]["vocabulary"]
        or len(card["inputs"]["deviation"]) == {3: 1, 2: 3, 1: 12}[len(card["inputs"]["shape"])]
    )
    net = found.model("large")
    with torch.no_grad():
        assert torch.isfinite(net(found.problem.inputs.example(3))).all()


@pytest.mark.parametrize("task", ["regression", "multilabel", "series", "text", "next_token"])
def test_the_files_of_a_split_are_the_shares_of_every_kind(task: str, tmp_path: Path) -> None:
    experiment = small_experiment("fedavg", task=task)
    shares = prepare(experiment).shares
    write_split(shares, tmp_path / "split")
    for device, shard in enumerate(shares.train):
        back = read_shard(tmp_path / f"split/device-{device:03d}.npz")
        assert (back.inputs, back.facts.outputs) == (shard.inputs, shard.facts.outputs)
        assert torch.equal(back.x, shard.x)
        assert torch.equal(back.y, shard.y)
        assert back.facts.mean == pytest.approx(shard.facts.mean)
    table = experiment.model_dump(mode="json", exclude_unset=True)
    table["data"] |= {"partition": {"kind": "files", "files": f"{tmp_path}/split/device-*.npz"}, "public": 0.0}
    table["data"] |= {"server_samples": 0}
    again = prepare(Experiment.of(table)).shares
    assert [len(shard) for shard in again.train] == [len(shard) for shard in shares.train]
    assert torch.equal(again.train[1].y, shares.train[1].y)


def test_a_comparison_by_rmse_has_a_target_from_above(tmp_path: Path) -> None:
    experiment = small_experiment("fedavg", "rounds=4", task="regression")
    chosen = variants(experiment, ["fedavg", "local"], [0])
    outcomes = list(compare(chosen, tmp_path, lambda number, variant: SILENCE))
    read = [runs.read(outcome.path) for outcome in outcomes]
    goal = target.target_of(read)
    assert goal is not None
    best = min(one.scores.mean for one in read if one.scores)
    assert goal == pytest.approx(best / 0.9, rel=1e-2)
    assert all(one.scores is not None and one.scores.worst >= one.scores.mean - 1e-9 for one in read)
    sides = target.sides(read, goal)
    assert any(side.reached for side in sides)
    html = page.write_report([outcome.path for outcome in outcomes], tmp_path / "both.html").read_text(encoding="utf-8")
    assert "Down and to the left is better" in html


def test_a_run_stops_when_the_metric_is_good_enough(tmp_path: Path) -> None:
    experiment = small_experiment("fedavg", "rounds=6", "stop.metric=1000.0", task="regression")
    found = run.run(experiment, tmp_path / "run")
    assert found.summary["rounds"] == 1
    assert "stop.metric = 1000: the mean rmse reached" in found.summary["stopped"]


@pytest.mark.parametrize("metric", ["mae", "r2"])
def test_another_metric_of_the_task_may_judge(metric: str, tmp_path: Path) -> None:
    found = run.run(small_experiment("fedavg", f"evaluate.metric={metric}", task="regression"), tmp_path / "run")
    assert found.summary["metric"]["name"] == metric
    assert found.summary["metric"]["better"] == ("lower" if metric == "mae" else "higher")


TEXT = "\n".join(f"ROLE {n % 6}:\nThis is said {n} times, and said again.\n" for n in range(200))
CSV = "\n".join(
    ["hour,town,rides", *(f"{n % 24},{('Rome', 'Oslo')[n % 2]},{n % 24 * 7 + n % 3 + 0.5}" for n in range(240))]
)


def arrays(path: Path) -> Path:
    rng = np.random.default_rng(0)
    np.savez(path, x=rng.normal(size=(60, 12, 3)).astype("float32"), y=np.arange(60) % 3)
    return path


NEWS = "\n".join(
    f'"The {("match", "market")[n % 2]} of day {n} went on for long, and nobody knew",{n % 2 + 1}' for n in range(100)
)
FILES: dict[str, tuple[Callable[[Path], object], dict[str, str], str]] = {
    "rides.csv": (lambda path: path.write_text(CSV), {"target": "rides"}, "regression"),
    "towns.csv": (lambda path: path.write_text(CSV), {"target": "town"}, "classification"),
    "news.csv": (lambda path: path.write_text(NEWS), {}, "classification"),
    "play.txt": (lambda path: path.write_text(TEXT), {}, "next_token"),
    "sensors.npz": (arrays, {"kind": "series"}, "classification"),
}


@pytest.mark.parametrize("name", FILES)
def test_init_writes_an_experiment_that_runs_as_it_is(name: str, tmp_path: Path) -> None:
    make, settings, task = FILES[name]
    make(tmp_path / name)
    found = suggest(str(tmp_path / name), **settings)  # type: ignore[arg-type]
    assert any(line.startswith("task") and task in line for line in found.understood)
    (tmp_path / "made.toml").write_text(found.text)
    assert sum(line.lstrip().startswith("#") or "  #" in line for line in found.text.splitlines()) >= 5
    quick = Experiment.load(tmp_path / "made.toml", ["rounds=1", "engine.kind=inprocess"])
    assert run.run(quick, tmp_path / "run").summary["metric"]["mean"] is not None
