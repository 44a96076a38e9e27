"""FedDEQ: fusion rules, reductions, health of replies, bytes, and what a user sees."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from potluck.core import meter, tree
from potluck.core.contexts import DeviceContext, Reply, ServerContext
from potluck.core.errors import ConfigError, ModelError, WireError
from potluck.core.types import Device, Shard
from potluck.engines.local.inprocess import InProcess
from potluck.engines.round import initial_checkpoint, run_rounds
from potluck.experiment import build
from potluck.experiment.config import Experiment
from potluck.experiment.prepare import Prepared, prepare
from potluck.methods.fedavg import FedAvg
from potluck.methods.feddeq import fusion
from potluck.nets import deqnet
from potluck.nets.tier_nets import TierNets
from potluck.solvers import IFT, Anderson, FixedPoint, Phantom
from potluck.wire import frame

MakeExperiment = Callable[..., Experiment]


def ready(small: MakeExperiment, *overrides: str) -> Prepared:
    return prepare(small("feddeq", "model.name=deq-xs-like", *overrides))


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


def device_context(found: Prepared, device: Device, round: int = 1) -> DeviceContext:
    return DeviceContext(
        round=round, device=device, data=found.shares.train[device.id], public=None, seed=found.federation.seed
    )


def answers(found: Prepared, method: Any, state: Any, round: int = 1) -> list[Reply[Any]]:
    return [
        Reply(
            device=device,
            round=round,
            update=method.train(
                None,
                method.broadcast(state, device, server_context(found, round)),
                device_context(found, device, round),
            )[1],
        )
        for device in found.federation.fleet.devices
    ]


# 2, 6, 13: fusion


@pytest.mark.parametrize(
    ("rule", "expected"),
    [("samples", (1 / 4, 3 / 4)), ("iterations", (2 / 14, 12 / 14)), ("residual", (1 / 2.5, 1.5 / 2.5))],
)
def test_fusion_in_closed_form(rule: str, expected: tuple[float, float]) -> None:
    replies = [(1, 2, 0.0), (3, 4, torch.tensor(2.0).double().log().item())]
    w = [fusion.share(rule, *reply, power=1.0, beta=1.0) for reply in replies]
    assert [weight / sum(w) for weight in w] == pytest.approx(expected, rel=1e-12)
    plain = [fusion.share(rule, *reply, power=0.0, beta=0.0) for reply in replies]
    assert plain == [1.0, 3.0]


@pytest.mark.parametrize("option", ["fusion=iterations,fusion_power=0.0", "fusion=residual,fusion_beta=0.0"])
def test_rules_without_effect_are_the_mean_of_samples_bitwise(small: MakeExperiment, option: str) -> None:
    found = ready(small)
    method, state = found.federation.method, found.federation.method.initial_state(server_context(found))
    replies = answers(found, method, state)
    other = ready(small, *(f"method.{part}" for part in option.split(","))).federation.method
    assert tree.equal(
        other.aggregate(state, replies, server_context(found)), method.aggregate(state, replies, server_context(found))
    )


def line_search(A: torch.Tensor, b: torch.Tensor, theta_RP: torch.Tensor) -> float:
    """The w_1 in [0, 1] for which ‖A (w_1 θ_1 + (1 - w_1) θ_2) - b‖² is least."""
    d, r = A @ (theta_RP[0] - theta_RP[1]), b - A @ theta_RP[1]
    return float((d @ r / (d @ d)).clamp(0, 1))


@pytest.mark.parametrize(("shares", "count"), [((1.0, 1.0), 25), ((3.0, 1.0), 25), ((1.0, 4.0), 50)])
def test_calibration_finds_the_minimiser_of_a_convex_toy(shares: tuple[float, float], count: int) -> None:
    rng = torch.Generator().manual_seed(0)
    best = torch.tensor([1.0, -2.0, 0.5])
    A = torch.randn(60, 3, generator=rng)
    b = A @ best
    away = torch.tensor([1.0, 1.0, -1.0])
    theta_RP = torch.stack([best + 0.4 * away, best - 0.6 * away])

    def loss(theta_P: torch.Tensor) -> torch.Tensor:
        return (A @ theta_P - b).square().mean()

    w = fusion.calibrated(theta_RP, shares, loss, loss, steps=count)
    assert float(w[0]) == pytest.approx(line_search(A, b, theta_RP), abs=1e-2)
    assert float(w.sum()) == pytest.approx(1, abs=1e-6)
    turned = fusion.calibrated(theta_RP.flip(0), shares[::-1], loss, loss, steps=count)
    torch.testing.assert_close(turned.flip(0), w, rtol=0, atol=1e-5)


def test_a_calibration_that_does_not_help_elsewhere_is_not_taken() -> None:
    theta_RP = torch.tensor([[0.0], [1.0]])
    w = fusion.calibrated(theta_RP, (1.0, 3.0), lambda t: (t - 0.0).square().sum(), lambda t: -t.sum(), steps=10)
    assert w.tolist() == pytest.approx([0.25, 0.75])
    broken = fusion.calibrated(theta_RP, (1.0, 3.0), lambda t: t.sum(), lambda t: t.sum() * torch.nan, steps=10)
    assert broken.tolist() == pytest.approx([0.25, 0.75])


def test_calibration_is_no_worse_than_samples_where_it_is_judged(small: MakeExperiment) -> None:
    found = ready(small, "method.fusion=calibrated", "data.server_samples=40", *steps(1, 6))
    method, state = found.federation.method, found.federation.method.initial_state(server_context(found))
    plain = dataclasses.replace(method, fusion="samples")
    assert found.federation.held is not None
    x, y = found.federation.held.x[1::2], found.federation.held.y[1::2]
    helped = 0
    for round in (1, 2, 3):
        replies = answers(found, method, state, round)
        states = [other.aggregate(state, replies, server_context(found, round)) for other in (method, plain)]
        with torch.no_grad():
            losses = [
                float(method.fit.loss(method.model(s, None, found.federation.fleet.devices[-1]).eval()(x), y))
                for s in states
            ]
        assert losses[0] <= losses[1] + 1e-6
        helped += losses[0] < losses[1]
        state = states[0]
    assert helped, "calibration never moved the weights: the comparison says nothing"


# 4: reduction


@pytest.mark.parametrize("kind", ["phantom", "ift"])
def test_equal_steps_are_federated_averaging_bitwise(small: MakeExperiment, kind: str) -> None:
    found = ready(small, *steps(5, 5), "method.fixed_point_loss=0.0", f"method.gradient.kind={kind}")
    shape, classes, seed = found.shares.inputs.shape, found.shares.facts.outputs, found.federation.seed

    def make() -> nn.Module:
        net = deqnet.make_deq("deq-xs-like", shape, classes)
        deqnet.set_depth(net, 5, solver=FixedPoint(), gradient=Phantom() if kind == "phantom" else IFT())
        return net

    method = found.federation.method
    plain = FedAvg(net=TierNets({"small": make, "large": make}, seed=seed, channels_last=True), fit=method.fit)
    ours, theirs = method.initial_state(server_context(found)), plain.initial_state(server_context(found))
    for round in (1, 2):
        ours = method.aggregate(ours, answers(found, method, ours, round), server_context(found, round))
        theirs = plain.aggregate(theirs, answers(found, plain, theirs, round), server_context(found, round))
    assert tree.equal(ours, theirs)


# 8, 9, 10: evaluations, bytes, depth


@pytest.mark.parametrize(("little", "large"), [(1, 3), (8, 20)])
def test_evaluations_are_exact_and_bytes_do_not_depend_on_them(small: MakeExperiment, little: int, large: int) -> None:
    found = ready(small, *steps(little, large), "data.source=synthetic:90,3,32,32", "train.batch_size=64")
    method, state = found.federation.method, found.federation.method.initial_state(server_context(found))
    for device, count in ((found.federation.fleet.devices[0], little), (found.federation.fleet.devices[-1], large)):
        broadcast = method.broadcast(state, device, server_context(found))
        update = method.train(None, broadcast, device_context(found, device))[1]
        assert frame.read_header(frame.encode(broadcast)).tensor_bytes == 49_704
        assert frame.read_header(frame.encode(update)).tensor_bytes == 49_704
        batches = -(-len(found.shares.train[device.id]) // 64)
        assert (update["steps"], update["evaluations"]) == (count, count * batches)
        net = method.model(state, None, device)
        calls: list[int] = []
        net.cell.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        net.eval()(torch.zeros(1, 3, 32, 32))
        assert len(calls) == count
    assert all("depth" not in name and "solver" not in name for name in state["weights"])


def test_a_tolerance_makes_it_at_most_as_many(small: MakeExperiment) -> None:
    def evaluations(*options: str) -> list[int]:
        found = ready(small, *steps(2, 30), "method.gradient.kind=jfb", "method.fixed_point_loss=0.0", *options)
        return [
            reply.update["evaluations"]
            for reply in answers(
                found, found.federation.method, found.federation.method.initial_state(server_context(found))
            )
        ]

    exact = evaluations()
    soon = evaluations("method.solver.kind=fixed_point", "method.solver.tol=0.01")
    assert soon[0] == exact[0]
    assert soon[-1] < exact[-1]


def test_a_clipped_phantom_is_recorded(small: MakeExperiment) -> None:
    found = ready(small, *steps(2, 8))
    method = found.federation.method
    broadcast = method.broadcast(
        method.initial_state(server_context(found)), found.federation.fleet.devices[0], server_context(found)
    )
    with meter.metering() as costs:
        method.train(None, broadcast, device_context(found, found.federation.fleet.devices[0]))
    assert costs.notes["grad_steps"] == 2


# 14: health


def broken_share(share: Shard) -> Shard:
    """The share with a first image that is not finite."""
    images = share.samples.to(torch.float32) / 255
    images[share.index[0]] = torch.inf
    return dataclasses.replace(share, samples=images)


def diverging(state: Any) -> dict[str, Any]:
    """The weights with their cell a hundred times as large."""
    return {
        "weights": {name: 100 * value if "kernel" in name else value for name, value in state["weights"].items()},
    }


def test_a_diverging_client_is_dropped_as_if_it_had_been_absent(small: MakeExperiment) -> None:
    found = ready(small, *steps(8, 8), "model.norm=none")
    method, state = found.federation.method, found.federation.method.initial_state(server_context(found))
    device = found.federation.fleet.devices[0]
    broadcast = method.broadcast(diverging(state), device, server_context(found))
    _, update = method.train(None, broadcast, device_context(found, device))
    assert update["healthy"] is False
    assert "weights" not in update
    assert 1 < update["residual"] <= update["residual_p95"] <= 10 or update["residual"] == 10
    replies = [Reply(device=device, round=1, update=update), *answers(found, method, state)[1:]]
    with meter.metering() as costs:
        merged = method.aggregate(state, replies, server_context(found))
    assert tree.equal(merged, method.aggregate(state, replies[1:], server_context(found)))
    assert [name for name in costs.notes if name.startswith("device 0 dropped: ")]
    assert method.aggregate(state, replies[:1], server_context(found)) is state


def test_a_net_that_recovers_is_not_lost(small: MakeExperiment) -> None:
    """The resident net of a depth has been driven to NaN: the next device of that depth is not harmed."""
    found = ready(small, *steps(4, 4), "model.norm=none")
    method, state = found.federation.method, found.federation.method.initial_state(server_context(found))
    device = found.federation.fleet.devices[0]
    before = method.train(None, method.broadcast(state, device, server_context(found)), device_context(found, device))[
        1
    ]
    method.train(None, method.broadcast(diverging(state), device, server_context(found)), device_context(found, device))
    assert tree.equal(
        method.train(None, method.broadcast(state, device, server_context(found)), device_context(found, device))[1],
        before,
    )


def test_a_state_that_is_not_finite_drops_one_reply_and_the_round_goes_on(
    small: MakeExperiment, tmp_path: Path
) -> None:
    found = ready(small, "fleet.participation=1.0")
    runtime = build.make_runtime(found.resolved, found.shares, tmp_path)
    sick = dataclasses.replace(
        runtime, shard=lambda d: broken_share(runtime.shard(d)) if d.id == 0 else found.shares.train[d.id]
    )
    (result,) = run_rounds(found.federation, InProcess(runtime=sick), initial_checkpoint(found.federation), 1)
    assert {row.status for row in result.rows} == {"ok"}
    assert result.server_notes == {"device 0 dropped: something is not finite": 10.0}
    assert result.notes[0]["healthy"] == 0
    update = {row.device: row.tensor_bytes for row in result.rows if row.direction == "up"}
    assert update[0] == 0 < update[1]
    absent = dataclasses.replace(found, warnings=())
    state = found.federation.method.initial_state(server_context(absent))
    replies = answers(absent, found.federation.method, state)[1:]
    assert tree.equal(
        result.checkpoint.state, found.federation.method.aggregate(state, replies, server_context(absent))
    )


def test_a_reply_that_calls_itself_healthy_is_judged_by_its_residual(small: MakeExperiment) -> None:
    found = ready(small)
    method, state = found.federation.method, found.federation.method.initial_state(server_context(found))
    first, *rest = answers(found, method, state)
    lying = dataclasses.replace(first, update={**first.update, "residual": 1.5})
    assert tree.equal(
        method.aggregate(state, [lying, *rest], server_context(found)),
        method.aggregate(state, rest, server_context(found)),
    )
    empty = dataclasses.replace(first, update={**first.update, "samples": 0})
    assert tree.equal(
        method.aggregate(state, [empty, *rest], server_context(found)),
        method.aggregate(state, rest, server_context(found)),
    )
    assert method.aggregate(state, [empty], server_context(found)) is state


@pytest.mark.parametrize("codecs", ["[]", '["int8"]', '["float16","zstd"]'])
@pytest.mark.parametrize("healthy", [True, False])
def test_weights_come_whole_or_not_at_all(small: MakeExperiment, codecs: str, healthy: bool) -> None:
    found = ready(small, f"wire.up={codecs}")
    method, state, messages = (
        found.federation.method,
        found.federation.method.initial_state(server_context(found)),
        found.federation.messages,
    )
    device = found.federation.fleet.devices[0]
    update = answers(found, method, state)[0].update
    update = (
        update if healthy else {name: value for name, value in update.items() if name != "weights"} | {"healthy": False}
    )
    spec = method.update_spec(state, device, server_context(found))
    sent = messages.write_up(update, 1, 0, None, {})[0]
    assert messages.read_up(sent, 1, 0, spec)[0].keys() == update.keys()
    part = {**answers(found, method, state)[0].update}
    part["weights"] = dict(list(part["weights"].items())[1:])
    with pytest.raises(WireError):
        messages.read_up(messages.write_up(part, 1, 0, None, {})[0], 1, 0, spec)


def test_a_doubtful_residual_is_noted(small: MakeExperiment) -> None:
    found = ready(small, *steps(1, 8))
    method, device = found.federation.method, found.federation.fleet.devices[0]
    with meter.metering() as costs:
        _, update = method.train(
            None,
            method.broadcast(method.initial_state(server_context(found)), device, server_context(found)),
            device_context(found, device),
        )
    assert update["residual"] == pytest.approx(1.0), "one evaluation from zero: the residual is that of z0 = 0"
    assert update["healthy"] == ("residual above 0.3" in costs.notes)


# 16 and the other options


def test_terms_of_weight_zero_add_exactly_nothing(small: MakeExperiment) -> None:
    found = ready(small, "method.fixed_point_loss=0.0")
    method, state = found.federation.method, found.federation.method.initial_state(server_context(found))
    plain = answers(found, method, state)
    again = answers(found, dataclasses.replace(method, jacobian_weight=0.0), state)
    assert all(tree.equal(a.update, b.update) for a, b in zip(plain, again, strict=True))
    for changed in ({"jacobian_weight": 1.0}, {"fixed_point_loss": 0.8}, {"random_steps": True}):
        other = [answers(found, dataclasses.replace(method, **changed), state) for _ in range(2)]
        assert not tree.equal(other[0][-1].update, plain[-1].update), changed
        assert all(tree.equal(a.update, b.update) for a, b in zip(*other, strict=True))


def test_a_device_of_one_batch_is_healthy_with_random_steps(small: MakeExperiment) -> None:
    found = ready(small, "method.random_steps=true", "train.batch_size=500")
    method = found.federation.method
    for round in range(1, 6):
        replies = answers(found, method, method.initial_state(server_context(found)), round)
        assert all(reply.update["healthy"] for reply in replies)
        assert all(reply.update["evaluations"] == reply.update["steps"] for reply in replies)


def test_the_iteration_may_start_from_the_input(small: MakeExperiment) -> None:
    found, other = ready(small), ready(small, "method.z0=input")
    state = found.federation.method.initial_state(server_context(found))
    zero, image = (answers(one, one.federation.method, state)[0].update for one in (found, other))
    assert not tree.equal(zero["weights"], image["weights"])


def test_the_faithful_profile_calibrates_where_the_server_holds_samples(small: MakeExperiment) -> None:
    found = ready(small, "method.profile=faithful")
    method = found.federation.method
    assert method.fusion == found.experiment.method["fusion"] == "calibrated"
    assert (method._equation().solver, method._equation().gradient) == (Anderson(), IFT(steps=8))
    assert (method.fixed_point_loss, found.experiment.train.lr) == (0.0, 0.01)
    said = " ".join(found.warnings)
    assert 'gradient.kind = "ift" with at most 4 steps (tiers small)' in said
    assert "gains nothing for tiers small" in said
    bare = ready(small, "method.profile=faithful", "data.server_samples=0")
    assert bare.experiment.method["fusion"] == "iterations"


def warnings(small: MakeExperiment, *options: str) -> Sequence[str]:
    return ready(small, *options).warnings


def test_anderson_within_the_tail_is_plain_iteration_and_says_so(small: MakeExperiment) -> None:
    anderson = "method.solver.kind=anderson"
    said = " ".join(warnings(small, anderson, *steps(7, 8)))
    assert "gains nothing for tiers small" in said
    assert "first differs from fixed_point at 8 steps" in said
    assert not warnings(small, anderson, *steps(8, 9))
    state = None
    for count, same in ((7, True), (8, False)):
        plain, other = (ready(small, *steps(count, count), *options) for options in ((), (anderson,)))
        state = plain.federation.method.initial_state(server_context(plain)) if state is None else state
        update = [answers(found, found.federation.method, state)[0].update for found in (plain, other)]
        assert tree.equal(update[0], update[1]) == same


def test_the_recommended_profile_has_nothing_to_say(small: MakeExperiment) -> None:
    assert not warnings(small)
    assert "adds nothing" in " ".join(warnings(small, "method.gradient.kind=jfb"))
    assert ready(small).experiment.method["gradient"] == {"kind": "phantom", "steps": 5, "damping": 1.0}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (steps(0, 2), r"method\.steps\.small = 0: expected an integer from 1 to 1000"),
        (steps(1001, 2), r"method\.steps\.small = 1001"),
        (steps("[2,2]", 2), r"method\.steps\.small"),
        (("method.steps={small=2}",), 'the fleet has tier "large" but no entry for it'),
        (("method.fusion=calibrated", "data.server_samples=1"), r"needs server data: set data\.server_samples >= 2"),
        (("method.fusion_beta=2.0",), r'method\.fusion_beta = 2.0 has no effect with fusion = "samples"; .*"residual"'),
        (("method.fusion_steps=30", "method.fusion=iterations"), '"calibrated"'),
        (("method.fusion=quality",), r"method\.fusion"),
        (("method.fixed_point_loss=1.0",), r"method\.fixed_point_loss = 1.0"),
        (("method.jacobian_weight=-1.0",), r"method\.jacobian_weight = -1.0"),
        (("method.fusion_power=5.0", "method.fusion=iterations"), r"method\.fusion_power = 5.0"),
        (("method.gradient.kind=phanton",), r'method\.gradient\.kind = "phanton": expected one of .* mean "phantom"'),
        (("method.gradient.steps=3",), r"method\.gradient\.kind: missing; |method\.gradient\.kind: missing: expected"),
        (
            ("method.gradient.kind=jfb", "method.gradient.steps=3"),
            r"method\.gradient\.steps: an option of phantom, ift",
        ),
        (("method.gradient.kind=phantom", "method.gradient.steps=0"), r"method\.gradient\.steps = 0"),
        (("method.gradient.kind=phantom", "method.gradient.damping=1.5"), r"damping = 1.5: expected 0 < damping <= 1"),
        (("method.solver.kind=broyden",), r"expected one of fixed_point, anderson"),
        (
            ("method.solver.kind=fixed_point", "method.solver.ridge=1e-6"),
            r"method\.solver\.ridge: an option of anderson",
        ),
        (("method.solver.kind=fixed_point", "method.solver.dampng=1.0"), 'unknown; .*Did you mean "damping"'),
        (("method.solver.kind=fixed_point", "method.solver.damping=0.0"), r"method\.solver\.damping = 0.0: expected"),
        (("method.solver.kind=fixed_point", "method.solver.damping=much"), "'much': expected a number"),
        (("method.solver.kind=fixed_point", "method.solver.tol=1.0"), r"method\.solver\.tol = 1.0: expected 0"),
        (("method.solver.kind=fixed_point", "method.solver.tol=0.01", *steps(3, 5)), r"tol = 0.01 has no effect"),
        (("method.solver.kind=anderson", "method.gradient.kind=unroll"), "differentiating an accelerated solver"),
        (("method.server_lr=1.0",), "not of feddeq"),
        (("model.norm=batch",), r'model\.norm = "batch"'),
        (("wire.up=[{topk=0.1}]",), "topk"),
    ],
)
def test_bad_settings_stop_before_a_run(small: MakeExperiment, options: tuple[str, ...], said: str) -> None:
    with pytest.raises((ConfigError, ModelError), match=said):
        ready(small, *options)


def test_a_net_of_another_kind_is_refused_by_naming_the_presets(small: MakeExperiment) -> None:
    experiment = small("feddeq")
    other = experiment.model_copy(update={"model": experiment.model.model_copy(update={"name": "resnet8"})})
    with pytest.raises(ModelError, match="no cell: expected one of deq-xs-like, deq-s-like"):
        prepare(other)
