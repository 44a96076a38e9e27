"""FedODE: reductions, groups of step counts, bytes, depth, and what a user sees."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from potluck.core import tree
from potluck.core.contexts import DeviceContext, Reply, ServerContext
from potluck.core.errors import ConfigError, ModelError
from potluck.core.seeds import generator
from potluck.experiment import run
from potluck.experiment.config import Experiment
from potluck.experiment.prepare import Prepared, prepare
from potluck.methods.fedavg import FedAvg
from potluck.methods.fedode import FedODE, key_of, nearest
from potluck.nets import odenet
from potluck.nets.tier_nets import TierNets
from potluck.nets.weights import weights_of
from potluck.training.random_depth import at_depths
from potluck.wire import frame

MakeExperiment = Callable[..., Experiment]


def ready(small: MakeExperiment, *overrides: str) -> Prepared:
    return prepare(small("fedode", *overrides))


def steps(little: int | str, large: int | str) -> tuple[str, str]:
    return f"method.steps.small={little}", f"method.steps.large={large}"


def server_context(found: Prepared, round: int = 1) -> ServerContext:
    federation = found.federation
    return ServerContext(
        round=round,
        devices=federation.fleet.devices,
        held=federation.held,
        public=federation.public,
        seed=federation.seed,
    )


def one_round(found: Prepared, method: Any, state: Any, round: int = 1) -> tuple[Any, list[Reply[Any]]]:
    replies = []
    for device in found.federation.fleet.devices:
        device_context = DeviceContext(
            round=round, device=device, data=found.shares.train[device.id], public=None, seed=found.federation.seed
        )
        update = method.train(None, method.broadcast(state, device, server_context(found, round)), device_context)[1]
        replies.append(Reply(device=device, round=round, update=update))
    return method.aggregate(state, replies, server_context(found, round)), replies


def whole(state: Any, key: str) -> dict[str, torch.Tensor]:
    return {**state["weights"], **state["groups"].get(key, {})}


# 4, 5: reductions


@pytest.mark.parametrize("groups", ["global", "per_steps"])
def test_equal_steps_are_federated_averaging_bitwise(small: MakeExperiment, groups: str) -> None:
    found = ready(small, *steps(3, 3), f"method.norm_groups={groups}")
    shape, classes, seed = found.shares.inputs.shape, found.shares.facts.outputs, found.federation.seed

    def make() -> nn.Module:
        net = odenet.make_odenet("odenet-cifar-like", shape, classes)
        odenet.set_depth(net, 3)
        return net

    method = found.federation.method
    plain = FedAvg(net=TierNets({"small": make, "large": make}, seed=seed, channels_last=True), fit=method.fit)
    ours, theirs = method.initial_state(server_context(found)), plain.initial_state(server_context(found))
    for round in (1, 2):
        ours, _ = one_round(found, method, ours, round)
        theirs, _ = one_round(found, plain, theirs, round)
    assert tree.equal({"weights": whole(ours, "3")}, theirs)
    assert bool(ours["groups"]) == (groups == "per_steps")


def test_one_reply_is_the_new_state(small: MakeExperiment) -> None:
    found = ready(small, *steps(2, 8))
    method, state = found.federation.method, found.federation.method.initial_state(server_context(found))
    _, replies = one_round(found, method, state)
    after = method.aggregate(state, replies[:1], server_context(found))
    assert tree.equal(after["weights"], replies[0].update["weights"])
    assert tree.equal(after["groups"]["2"], replies[0].update["group"])
    assert tree.equal(after["groups"]["8"], state["groups"]["8"])


@pytest.mark.parametrize("solver", ["euler", "rk4"])
def test_checkpoints_change_nothing(small: MakeExperiment, solver: str) -> None:
    ends = []
    for checkpoint in ("false", "true"):
        found = ready(small, f"method.checkpoint={checkpoint}", f"method.solver={solver}", *steps(1, 2))
        ends.append(
            one_round(found, found.federation.method, found.federation.method.initial_state(server_context(found)))[0]
        )
    assert tree.equal(ends[0], ends[1])


# 7: bytes


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ((), 671_336),
        (("method.norm_groups=global",), 671_336),
        (("method.step=learned",), 671_336 + 4 * 3 * 2),
        (("method.time_channel=true",), 671_336 + 4 * 2_016),
        (("method.profile=faithful",), 674_880),
        (("model.name=odenet-34-lite-like",), 6_384_936),
    ],
)
def test_bytes_of_both_directions(small: MakeExperiment, options: tuple[str, ...], size: int) -> None:
    found = ready(small, "data.source=synthetic:60,3,32,32", *steps(2, 2), *options)
    method, device = found.federation.method, found.federation.fleet.devices[0]
    broadcast = method.broadcast(method.initial_state(server_context(found)), device, server_context(found))
    assert frame.read_header(frame.encode(broadcast)).tensor_bytes == size
    assert not broadcast["weights"].keys() & broadcast.get("group", {}).keys()
    net = method.net.borrow("2", {**broadcast["weights"], **broadcast.get("group", {})}, lambda: method._net("small"))
    update = {"weights": method._split(net)[0], "group": method._split(net)[1]}
    assert tree.nbytes(update) == size


# 8: depth is no part of the weights


def test_weights_of_one_step_count_serve_any_other(small: MakeExperiment) -> None:
    found = ready(small, *steps(2, 20))
    method, state = found.federation.method, found.federation.method.initial_state(server_context(found))
    state, _ = one_round(found, method, state)
    few, many = (method.model(state, None, found.federation.fleet.devices[i]) for i in (0, -1))
    assert {k: v.shape for k, v in few.state_dict().items()} == {k: v.shape for k, v in many.state_dict().items()}
    assert [odenet.evaluations(net) for net in (few, many)] == [6, 60]
    far = dataclasses.replace(method, steps={"small": 500, "large": 2}).model(
        state, None, found.federation.fleet.devices[0]
    )
    assert odenet.evaluations(far) == 1500
    assert tree.equal(weights_of(far), weights_of(many)), "the nearest group is that of 20"


def test_a_step_count_that_is_new_starts_from_the_nearest(small: MakeExperiment) -> None:
    found = ready(small, *steps(2, 8), "method.step=learned")
    method, state = found.federation.method, found.federation.method.initial_state(server_context(found))
    state, _ = one_round(found, method, state)
    device = found.federation.fleet.devices[0]
    other = dataclasses.replace(method, steps={"small": 6, "large": [2, 4, 8]})
    broadcast = other.broadcast(state, device, server_context(found))
    lengths = {name: value for name, value in broadcast["group"].items() if name.endswith(".h")}
    assert all(value.tolist() == pytest.approx([1 / 6] * 6) for value in lengths.values())
    norms = {name: value for name, value in broadcast["group"].items() if name not in lengths}
    assert tree.equal(norms, {name: state["groups"]["8"][name] for name in norms})
    after, _ = one_round(found, other, state)
    assert sorted(after["groups"]) == ["2", "2-4-8", "6", "8"]
    assert tree.equal(after["groups"]["8"], state["groups"]["8"])


def test_the_nearest_key() -> None:
    assert nearest("3", ["2", "4", "8"]) == "4"
    assert nearest("4", ["2", "8"]) == "2"
    assert nearest("2-4-8", ["1", "4", "16"]) == "4"
    assert nearest("5", ["1-1-1", "5-5-6"]) == "5-5-6"
    assert [key_of(4), key_of([4, 4, 4]), key_of([2, 4, 8])] == ["4", "4", "2-4-8"]


# 10: groups


def test_a_group_is_the_mean_of_its_own_replies(small: MakeExperiment) -> None:
    found = ready(small, *steps(2, 8))
    method, state = found.federation.method, found.federation.method.initial_state(server_context(found))
    before, replies = one_round(found, method, state)
    changed = []
    for reply in replies:
        group = (
            tree.add(reply.update["group"], reply.update["group"])
            if reply.update["steps"] == 8
            else reply.update["group"]
        )
        changed.append(dataclasses.replace(reply, update={**reply.update, "group": group}))
    after = method.aggregate(state, changed, server_context(found))
    assert tree.equal(after["groups"]["2"], before["groups"]["2"])
    assert tree.equal(after["weights"], before["weights"])
    n = [reply.update["samples"] for reply in replies[2:]]
    for name, value in after["groups"]["8"].items():
        mean = sum(k * r.update["group"][name].double() for k, r in zip(n, changed[2:], strict=True)) / sum(n)
        torch.testing.assert_close(value, mean.float())
    only = method.aggregate(state, changed[:2], server_context(found))
    assert tree.equal(only["groups"]["8"], state["groups"]["8"])
    assert method.aggregate(state, [], server_context(found)) is state


# 13: evaluation at each depth


def test_a_run_shows_accuracy_and_steps_of_each_tier(small: MakeExperiment, tmp_path: Path) -> None:
    ladder = "method={name='fedode'}"  # of the method's own default
    found = run.run(small("fedode", ladder, "rounds=1", "fleet.participation=1.0"), tmp_path / "run")
    (line,) = found.rounds
    assert {tier: (notes["steps"], notes["evaluations"]) for tier, notes in line["notes"].items()} == {
        "small": (2, 6),
        "large": (8, 24),
    }
    assert set(line["accuracy"]["tiers"]) == {"small", "large"}
    assert [odenet.evaluations(found.model(tier)) for tier in ("small", "large")] == [6, 24]


# 14: the trap of BatchNorm


@pytest.mark.parametrize(("groups", "moves"), [("global", True), ("per_steps", False)])
def test_averaged_statistics_move_a_net_whose_weights_stay(small: MakeExperiment, groups: str, moves: bool) -> None:
    found = ready(small, *steps(2, 8), "model.norm=batch", f"method.norm_groups={groups}")
    method = found.federation.method
    state, replies = one_round(found, method, method.initial_state(server_context(found)))
    device, x = found.federation.fleet.devices[0], found.shares.test.x[:20]
    same = []
    for reply in replies:  # all θ are those of the state, only the statistics are the devices' own
        update = {**reply.update}
        for node in ("weights", "group"):
            held = state["weights"] if node == "weights" else state["groups"].get(str(update["steps"]), {})
            if node in update:
                update[node] = {name: v if "running" in name else held[name] for name, v in update[node].items()}
        same.append(dataclasses.replace(reply, update=update))
    with torch.no_grad():
        alone = method.model(method.aggregate(state, same[:2], server_context(found)), None, device).eval()(x)
        together = method.model(method.aggregate(state, same, server_context(found)), None, device).eval()(x)
    assert torch.equal(alone, together) != moves


# options


def test_random_steps_stay_within_the_budget_and_leave_the_net_as_it_was(small: MakeExperiment) -> None:
    found = ready(small, *steps(3, "[1,2,4]"), "method.random_steps=true")
    method, state = found.federation.method, found.federation.method.initial_state(server_context(found))
    net = method._net("large")
    seen = []

    def spy(net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(stage.depth.steps for stage in net.modules() if isinstance(stage, odenet.OdeStage)))
        return method.fit.base(net, x, y)

    varied = at_depths(spy, method._set, [1, 2, 4], generator(0, 1, 2, "test"))
    x, y = found.shares.test.x[:2], found.shares.test.y[:2]
    for _ in range(40):
        varied(net, x, y)
        assert odenet.evaluations(net) == 7
    assert seen[0] == (1, 2, 4)
    assert seen.count((1, 2, 4)) > 15
    assert len(set(seen)) > 4
    assert all(a == 1 and 1 <= b <= 2 and 1 <= c <= 4 for a, b, c in seen)
    again, _ = one_round(found, method, state)
    fixed = one_round(found, dataclasses.replace(method, random_steps=False), state)[0]
    assert not tree.equal(again, fixed)
    assert tree.equal(again, one_round(found, method, state)[0])


def test_a_time_channel_is_drawn_from_the_seed_and_trained(small: MakeExperiment) -> None:
    found = ready(small, "method.time_channel=true", "data.source=synthetic:60,3,32,32")
    method = found.federation.method
    first, second = (method.initial_state(server_context(found))["weights"] for _ in range(2))
    assert tree.equal(first, second)
    net = method.model(method.initial_state(server_context(found)), None, found.federation.fleet.devices[0])
    assert sum(p.numel() for p in net.parameters()) == 169_850
    state, _ = one_round(found, method, method.initial_state(server_context(found)))
    name = "trunk.ode1.block.conv1.weight"
    assert not torch.equal(state["weights"][name][:, -1], first[name][:, -1])


def test_the_faithful_profile(small: MakeExperiment) -> None:
    found = ready(small, "method.profile=faithful", "method.solver=rk4")
    experiment, method = found.experiment, found.federation.method
    assert (experiment.model.norm, method.step, method.norm_groups) == ("batch", "unit_step", "global")
    assert (experiment.train.lr, experiment.train.batch_size) == (0.05, 16), "the file says 16"
    assert method.initial_state(server_context(found))["groups"] == {}
    said = " ".join(found.warnings)
    assert 'profile = "faithful" is overridden: method.solver = rk4.' in said
    assert "the devices integrate different equations" in said
    assert "statistics are those of no device" in said


def test_the_recommended_profile_has_nothing_to_say(small: MakeExperiment) -> None:
    assert list(ready(small).warnings) == []
    assert list(ready(small, "method.profile=faithful", *steps(2, 2)).warnings) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ("method.steps.small=0", "method.steps.large=2"),
            r"method\.steps\.small = 0: expected an integer from 1 to 1000",
        ),
        (("method.steps.small=1001", "method.steps.large=2"), r"method\.steps\.small = 1001: expected an integer"),
        (("method.steps.small=true", "method.steps.large=2"), r"method\.steps\.small"),
        (("method.steps.small=2.5", "method.steps.large=2"), r"method\.steps\.small"),
        (("method.steps={small=2}",), 'method.steps: the fleet has tier "large" but no entry for it; add large = '),
        (steps("[2,2,2,2]", 2), 'method.steps.small has 4 entries, model "odenet-cifar-like" has 3 ODE stages'),
        (steps("[2,0,2]", 2), r"method\.steps\.small = 0: expected"),
        ((*steps(2, 2), "method.steps.tiny=2"), r"method\.steps\.tiny"),
        (("method.step=learned", "method.norm_groups=global"), 'step = "learned" needs norm_groups = "per_steps"'),
        (("method.step=learned", "method.random_steps=true"), "does not go with random_steps"),
        (("method.solver=dopri5",), r"method\.solver = \"dopri5\""),
        (("method.checkpoint=true", "model.norm=batch"), 'checkpoint = true with model.norm = "batch"'),
        (("method.mu=1.0",), "an option of fedprox, not of fedode"),
        (("method.profile=true_to_the_paper",), r"method\.profile"),
        (("wire.up=[{topk=0.1}]",), "topk"),
    ],
)
def test_bad_settings_stop_before_a_run(small: MakeExperiment, options: tuple[str, ...], said: str) -> None:
    with pytest.raises((ConfigError, ModelError), match=said):
        ready(small, *options)


def test_a_net_of_another_kind_is_refused_by_naming_the_presets(small: MakeExperiment) -> None:
    experiment = small("fedode")
    other = experiment.model_copy(update={"model": experiment.model.model_copy(update={"name": "resnet8"})})
    with pytest.raises(ModelError, match=r"no ODE stage: expected one of odenet-cifar-like, odenet-34-lite-like"):
        prepare(other)


def test_it_is_a_value() -> None:
    assert {field.name for field in dataclasses.fields(FedODE)} >= {"net", "fit", "steps", "profile"}
