"""A plan says before a run what the run's ledger, clock and memory say afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from potluck.core.errors import ConfigError, TrainingError
from potluck.experiment import run, store
from potluck.experiment.compare import variants
from potluck.experiment.config import Experiment
from potluck.methods import METHODS
from potluck.planning import dry_round, fit
from potluck.planning.plan import MethodPlan, TierPlan, methods_of, plan, plan_one
from potluck.planning.tensor_bytes import TensorBytes

MakeExperiment = Callable[..., Experiment]
Potluck = Callable[..., tuple[int, str, str]]
ALL_THERE = (
    "fleet.participation=1.0",
    "fleet.tier=[{name='small',devices=2,gflops=1.0,uplink_mbps=1.0},{name='large',devices=2,gflops=10.0}]",
)
FEWER = "data.source=synthetic:160,1,8,8"
FIGURES_AS_TEXT = 64
"""A reply's header holds figures such as a loss, whose digits differ from round to round."""
WITHOUT_FIGURES = ("fedavg", "fedprox", "fedode", "fedh2l", "local")
ADAPTIVE = {"feddlr"}


def found_and_planned(small: MakeExperiment, tmp_path: Path, method: str, *sets: str) -> tuple[Any, MethodPlan]:
    experiment = small(method, *sets)
    return run.run(experiment, tmp_path / "run"), plan_one(experiment)


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ADAPTIVE])
def test_bytes_and_seconds_are_those_of_the_run(small: MakeExperiment, tmp_path: Path, method: str) -> None:
    found, planned = found_and_planned(small, tmp_path, method, *ALL_THERE, "rounds=3", "data.public=0.2", FEWER)
    rows = [row for row in found.ledger if row["verb"] != "evaluate"]
    for tier in planned.tiers:
        for number, down, up in (
            (1, tier.first_down_bytes, tier.first_up_bytes),
            (3, tier.down_bytes, tier.up_bytes),
        ):
            here = [row for row in rows if row["tier"] == tier.tier and row["round"] == number]
            assert {row["encoded_bytes"] for row in here if row["direction"] == "down"} == {down}
            ups = [row["encoded_bytes"] for row in here if row["direction"] == "up"]
            assert ups
            assert all(abs(made - up) <= FIGURES_AS_TEXT for made in ups), (ups, up)
        tensors = {row["tensor_bytes"] for row in rows if row["tier"] == tier.tier and row["direction"] == "up"}
        copies = 3 if METHODS[method].traits.peers else 1
        assert tensors == {copies * tier.least_up_bytes} == {copies * tier.most_up_bytes}
    assert planned.total is not None
    summary, replies = found.summary, sum(row["direction"] == "up" for row in rows)
    assert planned.total.down_bytes == summary["bytes"]["down"]
    slack = 0 if method in WITHOUT_FIGURES else FIGURES_AS_TEXT * replies
    assert abs(planned.total.up_bytes - summary["bytes"]["up"]) <= slack
    assert planned.total.simulated_seconds == pytest.approx(summary["simulated_seconds"], rel=0.01)
    assert {tier.tier: tier.parameters for tier in planned.tiers} == summary["parameters"]


@pytest.mark.parametrize("method", sorted(ADAPTIVE))
def test_ranks_that_follow_the_data_stay_within_bounds(small: MakeExperiment, tmp_path: Path, method: str) -> None:
    found, planned = found_and_planned(small, tmp_path, method, *ALL_THERE, "rounds=3")
    for tier in planned.tiers:
        ups = [row for row in found.ledger if row["tier"] == tier.tier and row["direction"] == "up"]
        sizes = [row["tensor_bytes"] for row in ups if row["verb"] != "evaluate"]
        assert sizes
        assert all(tier.least_up_bytes <= size <= tier.most_up_bytes for size in sizes)
        assert tier.least_up_bytes < tier.most_up_bytes


@pytest.mark.parametrize(
    "sets",
    [
        ("wire.up=['int8']", "wire.down=['float16']"),
        ("wire.up=[{topk=0.05}]", "method.send='update'"),
        ("fleet.participation=0.5",),
    ],
)
def test_codecs_cohorts_and_deadlines_are_planned(small: MakeExperiment, tmp_path: Path, sets: tuple[str, ...]) -> None:
    found, planned = found_and_planned(small, tmp_path, "fedavg", *ALL_THERE, "rounds=4", *sets)
    total, summary = planned.total, found.summary
    assert total is not None
    assert total.down_bytes == summary["bytes"]["down"]
    assert abs(total.up_bytes - summary["bytes"]["up"]) <= FIGURES_AS_TEXT * 16
    assert total.simulated_seconds == pytest.approx(summary["simulated_seconds"], rel=0.01)
    assert total.late == 0


def test_who_will_be_late_is_planned(small: MakeExperiment, tmp_path: Path) -> None:
    slow = (*ALL_THERE[:1], "fleet.tier=[{name='slow',devices=2,gflops=0.05},{name='large',devices=2,gflops=10.0}]")
    rows = run.run(small("fedavg", *slow, "rounds=1"), tmp_path / "free").ledger
    first, second = (next(row["seconds"] for row in rows if row["device"] == device) for device in (0, 1))
    deadline = f"fleet.deadline_s={(first + second) / 2}"
    found, planned = found_and_planned(small, tmp_path, "fedavg", *slow, deadline, "rounds=4")
    assert planned.total is not None
    assert planned.total.late == sum(row["status"] == "late" for row in found.ledger if row["direction"] == "up") == 4
    assert planned.total.simulated_seconds == pytest.approx(found.summary["simulated_seconds"], rel=1e-6)
    assert [tier.tier for tier in planned.tiers if not tier.fits_deadline] == ["slow"]


def test_zstd_and_adaptive_ranks_are_told(small: MakeExperiment) -> None:
    packed = plan_one(small("fedavg", "wire.up=['zstd']", *ALL_THERE))
    assert any("zstd up" in note for note in packed.notes)
    ranked = plan_one(small("feddlr", "rounds=9", "method.dense_rounds=4", *ALL_THERE))
    assert ranked.settled_round == 5
    for tier in ranked.tiers:
        assert tier.least_up_bytes < tier.most_up_bytes == 4 * tier.parameters or tier.parameters < 75_002
        assert tier.up_bytes < tier.first_up_bytes
    assert any("follow from the data" in note for note in ranked.notes)


def test_flops_are_those_that_torch_counts(small: MakeExperiment, tmp_path: Path) -> None:
    """Forward and backward of every step that one device makes, counted one by one."""
    for method in ("fedavg", "fedprox", "fedhm", "feddlr", "fedode", "feddeq", "heterofl"):
        experiment = small(method, *ALL_THERE, "rounds=1", "data.source=synthetic:140,3,16,16")
        tier = plan_one(experiment).tiers[1]
        ready = run.prepare(experiment)
        device = max(
            (one for one in ready.federation.fleet.devices if one.tier == tier.tier),
            key=lambda one: len(ready.shares.train[one.id]),
        )
        counted = real_flops(ready, device)
        assert tier.flops == pytest.approx(counted, rel=0.2), method


def real_flops(ready: Any, device: Any) -> float:
    from potluck.core.contexts import DeviceContext  # noqa: PLC0415  only this needs it
    from potluck.engines.round import initial_checkpoint  # noqa: PLC0415

    method = ready.federation.method
    down = method.broadcast(initial_checkpoint(ready.federation).state, device, ready.federation.server_context(1))
    task = DeviceContext(round=1, device=device, data=ready.shares.train[device.id], public=ready.shares.public, seed=0)
    method.train(None, down, task)  # measures its own costs, once
    with FlopCounterMode(display=False) as counter:
        method.train(None, down, task)
    return float(counter.get_total_flops())


def test_a_small_part_of_the_work_says_the_same(small: MakeExperiment, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = small(
        "fedavg", *ALL_THERE, "data.source=synthetic:800,1,12,12", "train.batch_size=32", "train.epochs=2"
    )
    whole = plan_one(experiment)
    monkeypatch.setattr(dry_round, "AFFORDABLE_FLOPS", 1e7)
    part = plan_one(experiment)
    for one, other in zip(whole.tiers, part.tiers, strict=True):
        assert other.flops == pytest.approx(one.flops, rel=1e-6)
        assert other.memory_bytes == pytest.approx(one.memory_bytes, rel=0.2)
        assert (other.down_bytes, abs(other.up_bytes - one.up_bytes) <= FIGURES_AS_TEXT) == (one.down_bytes, True)


MEASURE = Path(__file__).parents[2] / "benchmarks" / "speed" / "training_memory.py"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_is_the_peak_of_a_training_process(small: MakeExperiment, tmp_path: Path) -> None:
    experiment = small(
        "fedavg",
        "data.source=synthetic:130,3,32,32",
        "data.public=0",
        "data.server_samples=0",
        "train.batch_size=64",
        "model.name=resnet20",
        "fleet.tier=[{name='one'}]",
        "fleet.participation=1.0",
        "rounds=1",
    )
    (tmp_path / "one.toml").write_text(store.to_toml(experiment))
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # what is free is given back at once
    done = subprocess.run(
        [sys.executable, str(MEASURE), str(tmp_path / "one.toml")],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    (tier,) = plan_one(experiment).tiers
    assert tier.memory_bytes == pytest.approx(int(done.stdout), rel=0.2)


def test_live_bytes_are_counted_and_forgotten() -> None:
    with TensorBytes() as live:
        for _ in range(3):
            a = torch.zeros(1000)
            b = a + 1
            _ = b.view(10, 100).t()
            del a, b, _
    assert live.peak == 8000


def test_a_net_of_ones_own_and_a_method_that_cannot_run(
    small: MakeExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_plan_net.py").write_text(
        "import torch\n"
        "def net(shape, classes):\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(shape[0] * shape[1] * shape[2], classes))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    experiment = small("fedavg", "model.name='own_plan_net:net'", "data.public=0.0")
    assert methods_of(experiment, "all") == list(METHODS)
    assert methods_of(experiment, "") == ["fedavg"]
    plans = {one.method: one for one in plan(variants(experiment, ["fedavg", "fedh2l"], [0]))}
    assert {tier.parameters for tier in plans["fedavg"].tiers} == {650}
    assert "public" in plans["fedh2l"].reason
    assert not plans["fedh2l"].fits


def test_a_device_that_gives_up_is_the_reason(small: MakeExperiment) -> None:
    (found,) = plan([(small("fedavg", "train.lr=1e30", "rounds=2"), "")])
    assert "the loss became" in found.reason
    with pytest.raises(TrainingError):
        plan_one(small("fedavg", "train.lr=1e30", "rounds=2"))


TIGHT = (
    "fleet.participation=1.0",
    "fleet.tier=[{name='small',devices=2,gflops=0.05,uplink_mbps=10.0},{name='large',devices=2,gflops=10.0}]",
)


def test_fit_gives_a_tier_what_it_affords(small: MakeExperiment) -> None:
    experiment = small("heterofl", *TIGHT, "method.width={small=1.0,large=1.0}", "fleet.deadline_s=4.0")
    assert [tier.tier for tier in plan_one(experiment).tiers if not tier.fits] == ["small"]
    fitted, found = fit.fit_all(experiment, ["heterofl"])
    (change,) = found[0].changes
    assert change.startswith("heterofl, small: width 1 ->")
    assert fitted.method["width"]["large"] == 1.0
    planned = plan_one(fitted)
    assert planned.fits
    wider = fitted.model_copy(update={"method": {**fitted.method, "width": {"small": 1.0, "large": 1.0}}})
    assert not plan_one(wider).fits


def test_fit_lowers_epochs_where_there_is_no_ladder_and_says_what_is_left(small: MakeExperiment) -> None:
    experiment = small("fedavg", *TIGHT, "train.epochs=8", "fleet.deadline_s=12.0")
    fitted, (found,) = fit.fit_all(experiment, ["fedavg"])
    (change,) = found.changes
    assert change.startswith("fedavg, small: epochs 8 -> ")
    assert isinstance(fitted.train.epochs, dict)
    assert fitted.train.epochs["large"] == 8
    assert plan_one(fitted).fits
    _, (found,) = fit.fit_all(small("fedavg", *TIGHT, "fleet.deadline_s=0.7"), ["fedavg"])
    assert found.misfits
    assert "raise fleet.deadline_s" in found.misfits[0]
    lean = "fleet.tier=[{name='one',memory_mb=0.001}]"
    _, (found,) = fit.fit_all(small("fedhm", "fleet.participation=1.0", "model.name=mlp", lean), ["fedhm"])
    assert "lower train.batch_size" in found.misfits[0]
    assert not found.options, "what does not fit keeps its settings"


def test_the_new_file_overwrites_nothing(small: MakeExperiment, tmp_path: Path) -> None:
    experiment, place = small("fedavg"), tmp_path / "new.toml"
    fit.write_fitted(experiment, Path("old.toml"), place, overwrite=False)
    assert Experiment.load(place) == experiment
    with pytest.raises(ConfigError, match="exists already"):
        fit.write_fitted(experiment, Path("old.toml"), place, overwrite=False)
    fit.write_fitted(experiment, Path("old.toml"), place, overwrite=True)


def test_a_relay_is_planned(small: MakeExperiment, tmp_path: Path) -> None:
    found, planned = found_and_planned(small, tmp_path, "fedh2l", *ALL_THERE, "engine.relay=true", "data.public=0.2")
    rows = [row for row in found.ledger if row["verb"] == "train"]
    assert planned.total is not None
    for direction, told in (("up", planned.total.up_bytes), ("down", planned.total.down_bytes)):
        sent = [row["encoded_bytes"] for row in rows if row["direction"] == direction]
        assert abs(told - sum(sent)) <= FIGURES_AS_TEXT * len(sent)


def test_plans_are_json(small: MakeExperiment, tmp_path: Path, potluck: Potluck) -> None:
    (tmp_path / "one.toml").write_text(store.to_toml(small("fedavg", "model.name=mlp")))
    code, told, _ = potluck("plan", "one.toml", "--json")
    (found,) = json.loads(told)
    assert code == 0
    assert set(found["tiers"][0]) == set(TierPlan.__dataclass_fields__)
    assert found["total"]["rounds"] == 2
