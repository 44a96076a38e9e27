"""HeteroFL: its reduction, the mean by entry, labels, widths, the scaler, static BatchNorm, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from potluck.core import tree
from potluck.core.contexts import DeviceContext, Reply, ServerContext
from potluck.core.errors import ConfigError, ModelError
from potluck.core.mean import CoordinateMean, WeightedMean
from potluck.experiment import run
from potluck.experiment.config import Experiment
from potluck.experiment.prepare import Prepared, prepare
from potluck.nets.batch_statistics import from_moments, moments, statistics_of, without_running_statistics
from potluck.nets.zoo import count_parameters
from potluck.wire import frame

MakeExperiment = Callable[..., Experiment]
WIDTHS = "method.width={small=0.25,large=1.0}"


def desk_of(ready: Prepared, round: int = 1) -> ServerContext:
    federation = ready.federation
    return ServerContext(
        round=round,
        devices=federation.fleet.devices,
        held=federation.held,
        public=federation.public,
        seed=federation.seed,
    )


def exchanged(ready: Prepared, number: int) -> tuple[Any, Any, Reply[Any]]:
    """(state, down, reply) of a device in the first round."""
    method, one = ready.federation.method, ready.federation.fleet.devices[number]
    state = method.initial_state(desk_of(ready, 0))
    broadcast = method.broadcast(state, one, desk_of(ready))
    device_context = DeviceContext(round=1, device=one, data=ready.shares.train[number], public=None, seed=0)
    return state, broadcast, Reply(device=one, round=1, update=method.train(None, broadcast, device_context)[1])


def test_width_one_everywhere_is_fedavg(small: MakeExperiment, tmp_path: Path) -> None:
    plain = run.run(small("fedavg"), tmp_path / "fedavg")
    same = ("method.width={small=1,large=1}", "method.mask=false", "method.weighting=samples")
    found = run.run(small("heterofl", *same), tmp_path / "heterofl")
    assert found.summary["state_sha256"] == plain.summary["state_sha256"]
    assert found.summary["bytes"]["total"] == pytest.approx(plain.summary["bytes"]["total"], rel=1e-3)


def test_a_layer_by_hand_with_two_rates() -> None:
    former = {"w": torch.arange(16.0).reshape(4, 4), "n": torch.tensor(3)}
    mean = CoordinateMean(former)
    half, most = (slice(0, 2), slice(0, 2)), (slice(0, 3), slice(0, 3))
    mean.add({"w": torch.full((2, 2), 10.0), "n": torch.tensor(7)}, 1.0, {"w": half, "n": ()})
    mean.add({"w": torch.full((3, 3), 40.0), "n": torch.tensor(5)}, 3.0, {"w": most, "n": ()})
    found = mean.result()
    shared = (10.0 + 3 * 40.0) / 4
    wanted = [[shared, shared, 40, 3], [shared, shared, 40, 7], [40, 40, 40, 11], [12, 13, 14, 15]]
    assert found["w"].tolist() == wanted
    assert int(found["n"]) == 7


def test_rows_count_for_those_who_have_the_class() -> None:
    former = {"w": torch.zeros(3, 2)}
    everything = {"w": (slice(None), slice(0, 2))}
    for renormalise, first in ((True, 6.0), (False, 2.0)):
        mean = CoordinateMean(former)
        mean.add({"w": torch.full((3, 2), 6.0)}, 1.0, everything, {"w": torch.tensor([0, 1])})
        mean.add({"w": torch.full((3, 2), 3.0)}, 2.0, everything, {"w": torch.tensor([1])})
        assert mean.result(renormalise=renormalise)["w"][:, 0].tolist() == [first, 4.0, 0.0]


def test_a_mean_that_everybody_shares_is_the_plain_one_to_the_bit() -> None:
    rng = torch.Generator().manual_seed(0)
    replies = [{"w": torch.randn((7, 5, 3), generator=rng), "z": torch.tensor([-0.0])} for _ in range(5)]
    plain, mean = WeightedMean(), CoordinateMean(replies[0])
    for number, reply in enumerate(replies):
        plain.add(reply, number + 0.3)
        mean.add(reply, number + 0.3, {"w": (slice(None),) * 3, "z": (slice(None),)})
    assert tree.equal(mean.result(), plain.result())


def test_an_entry_that_one_device_held_is_its_value(small: MakeExperiment) -> None:
    ready = prepare(small("heterofl", WIDTHS, "method.mask=false"))
    method = ready.federation.method
    state, broadcast, weak = exchanged(ready, 0)
    _, _, strong = exchanged(ready, 2)
    name = "stages.stage3.0.conv2.weight"
    rows, columns = broadcast["weights"][name].shape[:2]
    merged = method.aggregate(state, [weak, strong], desk_of(ready))["weights"]
    assert torch.equal(merged[name][rows:], strong.update["weights"][name][rows:])
    both = (weak.update["weights"][name].double() + strong.update["weights"][name][:rows, :columns].double()) / 2
    assert torch.equal(merged[name][:rows, :columns], both.float())
    alone = method.aggregate(state, [weak], desk_of(ready))["weights"]
    assert torch.equal(alone[name][:rows, :columns], weak.update["weights"][name])
    assert torch.equal(alone[name][rows:], state["weights"][name][rows:])


def test_a_slice_is_sent_and_costs_what_it_holds(small: MakeExperiment) -> None:
    ready = prepare(small("heterofl", WIDTHS))
    _, broadcast, reply = exchanged(ready, 0)
    net = ready.federation.method._net("small")
    for message in (broadcast, reply.update):
        assert frame.read_header(frame.encode(message)).tensor_bytes == 4 * count_parameters(net)
    widths = {layer.num_channels for layer in net.modules() if isinstance(layer, nn.GroupNorm)}
    assert widths == {4, 8, 16}
    assert count_parameters(ready.federation.method._net("large")) == 75_002


def test_the_classifier_learns_from_those_who_have_the_class(small: MakeExperiment) -> None:
    ready = prepare(small("heterofl", WIDTHS))
    method = ready.federation.method
    state, _, weak = exchanged(ready, 0)
    _, _, strong = exchanged(ready, 2)
    weak.update["labels"][:] = [1]
    strong.update["labels"][:] = [1, 2]
    merged = method.aggregate(state, [weak, strong], desk_of(ready))["weights"]
    bias = {"weak": weak.update["weights"]["classifier.bias"], "strong": strong.update["weights"]["classifier.bias"]}
    assert torch.equal(merged["classifier.bias"][2], bias["strong"][2])
    assert torch.allclose(merged["classifier.bias"][1], (bias["weak"][1] + bias["strong"][1]) / 2)
    assert torch.equal(merged["classifier.bias"][3], state["weights"]["classifier.bias"][3])


def test_evaluation_does_not_depend_on_the_scaler(small: MakeExperiment) -> None:
    x_BCHW = torch.randn((3, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    found = []
    for scaler in ("true", "false"):
        ready = prepare(small("heterofl", WIDTHS, f"method.scaler={scaler}"))
        state = ready.federation.method.initial_state(desk_of(ready, 0))
        net = ready.federation.method.model(state, None, ready.federation.fleet.devices[0])
        found.append((net.eval()(x_BCHW), net.train()(x_BCHW)))
    assert torch.equal(found[0][0], found[1][0])
    assert not torch.allclose(found[0][1], found[1][1])


STATIC = ("method.width={small=0.3,large=1}", "model.norm=batch")


def test_static_batch_norm_takes_its_statistics_in_the_last_round(small: MakeExperiment, tmp_path: Path) -> None:
    ready = prepare(small("heterofl", *STATIC))
    assert "round 2 takes its statistics from the devices" in ready.warnings[0]
    state = ready.federation.method.initial_state(desk_of(ready, 0))
    assert not [name for name in state["weights"] if "running" in name or "batches" in name]
    net = ready.federation.method._net("small")
    assert {layer.num_features for layer in net.modules() if isinstance(layer, nn.BatchNorm2d)} == {5, 10, 20}
    trained = run.run(small("heterofl", *STATIC, "rounds=1", "train.schedule_rounds=2"), tmp_path / "run")
    before = {tier: trained.model(tier).state_dict() for tier in ("small", "large")}
    after = run.resume(tmp_path / "run", more_rounds=1)
    for tier, one in before.items():
        other = after.model(tier).state_dict()
        assert all(torch.equal(other[name], value) for name, value in one.items())  # the pass trains nothing
        held = {name for name in other if name not in one}
        assert held == {n for n in other if n.split(".")[-1] in ("running_mean", "running_var", "num_batches_tracked")}
        assert len(held) == 3 * 7
    update = [row["tensor_bytes"] for row in after.ledger if row["round"] == 2 and row["direction"] == "up"]
    assert max(update) == 4 * 2 * (16 + 2 * (16 + 32 + 64))
    single = after.model("small").eval()
    x_BCHW = torch.randn((4, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    assert torch.allclose(single(x_BCHW)[:1], single(x_BCHW[:1]), atol=1e-5)  # no longer a matter of the batch
    again = run.resume(tmp_path / "run", more_rounds=1)
    assert not [name for name in again.model("small").state_dict() if "running" in name]  # they were of other weights


def test_pooled_statistics_are_those_of_all_samples() -> None:
    torch.manual_seed(0)
    net = without_running_statistics(nn.Sequential(nn.BatchNorm2d(3)))
    x_BCHW = torch.randn(12, 3, 5, 5) * torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1) + 4
    mean = WeightedMean()
    for part in (x_BCHW[:2], x_BCHW[2:9], x_BCHW[9:]):
        mean.add(moments(statistics_of(net, part.split(4))), float(len(part)))
    found = from_moments(mean.result())
    assert torch.allclose(found["0.running_mean"], x_BCHW.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(found["0.running_var"], x_BCHW.var((0, 2, 3), correction=0), rtol=1e-4)


REFUSED = {
    ("method.width={small=0,large=1}",): "method.width.small = 0: expected a share of the channels, 0 < width <= 1.",
    ("method.width={small=1.5,large=1}",): "method.width.small = 1.5: expected a share of the channels",
    ("method.width={small=0.5}",): 'fleet has tier "large" but no entry',
    ("method.scaler=true", "method.width={small=1,large=1}"): "method.scaler has no effect with width 1 everywhere",
    ('wire.up=["topk"]',): "heterofl forbids it",
    ("method.weighting=size",): "method.weighting",
    ("method.rank_factor=2",): "method.rank_factor: an option of fedhm, not of heterofl",
}


@pytest.mark.parametrize("overrides", REFUSED, ids=" ".join)
def test_what_cannot_work_is_refused(small: MakeExperiment, overrides: tuple[str, ...]) -> None:
    with pytest.raises((ConfigError, ModelError), match=REFUSED[overrides]):
        prepare(small("heterofl", *overrides))


def test_the_ladder_over_the_tiers(small: MakeExperiment) -> None:
    assert prepare(small("heterofl")).experiment.method["width"] == {"small": 0.25, "large": 1.0}
