"""The server of federated averaging: closed forms, and what does not change the mean."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from potluck.core import tree
from potluck.core.contexts import DeviceContext, Reply, ServerContext
from potluck.core.errors import ConfigError, WireError
from potluck.core.mean import WeightedMean
from potluck.core.options import Setup
from potluck.core.spec import Spec
from potluck.core.types import Device, Inputs, Shard, TargetFacts
from potluck.methods.averaging import Averaging, State, Update
from potluck.methods.fedavg import FedAvg
from potluck.nets.tier_nets import TierNets
from potluck.tasks.classification import Classification
from potluck.training.fit import Fit, Trained
from potluck.wire import check, frame

DEVICES = [
    Device(
        id=k,
        tier="phone",
        memory_bytes=1,
        flops_per_s=1.0,
        uplink_bytes_per_s=1.0,
        downlink_bytes_per_s=1.0,
        latency_s=0.0,
    )
    for k in range(4)
]
DESK = ServerContext(round=1, devices=DEVICES, held=None, public=None, seed=0)
FIT = Fit(
    optimiser="sgd",
    lr=0.1,
    momentum=0.0,
    weight_decay=0.0,
    epochs={"phone": 1},
    batch_size=8,
    schedule="none",
    milestones=(),
    gamma=0.1,
    schedule_rounds=1,
    clip_norm=0.0,
    channels_last=False,
    bf16=False,
    augment="none",
    task=Classification(facts=TargetFacts(outputs=4)),
)


def make() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def method(**options: Any) -> FedAvg:
    return FedAvg(net=TierNets({"phone": make}, seed=0), fit=FIT, **options)


def normal(seed: int) -> dict[str, Tensor]:
    """Weights of the net of any value, its counter at ``seed``."""
    rng = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(value.shape, generator=rng) if value.is_floating_point() else torch.tensor(seed)
        for name, value in make().state_dict().items()
    }


def replies(weights: list[dict[str, Tensor]], samples: list[int], key: str = "weights") -> list[Reply[Any]]:
    return [
        Reply(device=device, round=1, update={key: w, "samples": n})
        for device, w, n in zip(DEVICES, weights, samples, strict=False)
    ]


STATE: State = {"weights": normal(9)}
THETAS, SAMPLES = [normal(k) for k in (1, 2, 3)], [5, 1, 14]


def mean(name: str, v: list[float]) -> Tensor:
    """Σ v_k θ_k / Σ v_k in float64."""
    total = sum(vk * theta[name].double() for vk, theta in zip(v, THETAS, strict=True))
    return total / sum(v)  # type: ignore[return-value, no-any-return]


FLOATING = [name for name, value in THETAS[0].items() if value.is_floating_point()]


@pytest.mark.parametrize(("weighting", "v"), [("samples", [5.0, 1.0, 14.0]), ("uniform", [1.0, 1.0, 1.0])])
def test_the_next_weights_are_the_weighted_mean(weighting: str, v: list[float]) -> None:
    got = method(weighting=weighting).aggregate(STATE, replies(THETAS, SAMPLES), DESK)["weights"]
    assert got.keys() == THETAS[0].keys()
    for name in FLOATING:
        assert got[name].dtype == torch.float32
        assert torch.allclose(got[name].double(), mean(name, v), rtol=1e-7, atol=1e-8)
    assert {"1.running_mean", "1.running_var"} <= set(FLOATING), "buffers are averaged like parameters"


def test_counters_keep_the_largest_and_their_dtype() -> None:
    for options in ({}, {"server_lr": 0.5}, {"server_lr": 2.0, "weighting": "uniform"}):
        got = method(**options).aggregate(STATE, replies(THETAS, SAMPLES), DESK)["weights"]["1.num_batches_tracked"]
        assert got.dtype == torch.int64
        assert int(got) == 3
    got = method(send="update").aggregate(STATE, replies(THETAS, SAMPLES, "update"), DESK)["weights"]
    assert int(got["1.num_batches_tracked"]) == 3


@pytest.mark.parametrize("server_lr", [0.25, 1.0, 1.5])
def test_the_server_steps_towards_the_mean(server_lr: float) -> None:
    got = method(server_lr=server_lr).aggregate(STATE, replies(THETAS, SAMPLES), DESK)["weights"]
    for name in FLOATING:
        w = STATE["weights"][name].double()
        wanted = w + server_lr * (mean(name, [5.0, 1.0, 14.0]) - w)
        assert torch.allclose(got[name].double(), wanted, rtol=0, atol=1e-6)


def test_a_server_step_of_one_is_bitwise_the_mean() -> None:
    folded = WeightedMean()
    for theta, n in zip(THETAS, SAMPLES, strict=True):
        folded.add(theta, float(n))
    got = method(server_lr=1.0).aggregate(STATE, replies(THETAS, SAMPLES), DESK)["weights"]
    assert tree.equal(got, folded.result())
    one = method().aggregate(STATE, replies(THETAS[:1], [17]), DESK)["weights"]
    assert tree.equal(one, THETAS[0])


@pytest.mark.parametrize("server_lr", [0.5, 1.0])
def test_updates_give_what_weights_give(server_lr: float) -> None:
    sent = [tree.subtract(theta, STATE["weights"]) for theta in THETAS]
    by_update = method(send="update", server_lr=server_lr).aggregate(STATE, replies(sent, SAMPLES, "update"), DESK)
    by_weights = method(server_lr=server_lr).aggregate(STATE, replies(THETAS, SAMPLES), DESK)
    for name, value in by_weights["weights"].items():
        assert by_update["weights"][name].dtype == value.dtype
        assert torch.allclose(by_update["weights"][name].double(), value.double(), rtol=0, atol=1e-6)


def test_the_order_of_replies_hardly_matters_and_not_at_all_for_whole_numbers() -> None:
    given = replies(THETAS, SAMPLES)
    first = method().aggregate(STATE, given, DESK)
    for order in itertools.permutations(given):
        other = method().aggregate(STATE, order, DESK)
        for name in FLOATING:
            assert torch.allclose(other["weights"][name], first["weights"][name], rtol=2e-7, atol=0)
    whole = [tree.map(theta, lambda w: torch.round(w * 8)) for theta in THETAS]
    digests = {
        tree.digest(dict(method().aggregate(STATE, order, DESK)))
        for order in itertools.permutations(replies(whole, [2, 2, 4]))
    }
    assert len(digests) == 1


def test_nothing_is_mutated_and_no_replies_give_the_same_state() -> None:
    before = tree.map({"s": STATE, "t": {str(k): theta for k, theta in enumerate(THETAS)}}, torch.clone)
    for options in ({}, {"server_lr": 0.5}, {"weighting": "uniform"}):
        method(**options).aggregate(STATE, replies(THETAS, SAMPLES), DESK)
        assert method(**options).aggregate(STATE, [], DESK) is STATE
    assert tree.equal({"s": STATE, "t": {str(k): theta for k, theta in enumerate(THETAS)}}, before)


@pytest.mark.parametrize(
    "odd",
    [
        {**THETAS[1], "0.bias": torch.zeros(1)},
        {**THETAS[1], "0.bias": torch.zeros(4, 1)},
        {name: value for name, value in THETAS[1].items() if name != "0.bias"},
        {**THETAS[1], "more": torch.zeros(1)},
    ],
    ids=["a shape that broadcasts", "a column", "a name less", "a name more"],
)
def test_replies_of_another_form_are_refused(odd: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match="differ"):
        method().aggregate(STATE, replies([THETAS[0], odd], SAMPLES), DESK)


@pytest.mark.parametrize("send", ["weights", "update"])
def test_what_is_expected_is_what_is_sent(send: str) -> None:
    found = method(send=send)
    spec: Spec = found.update_spec(STATE, DEVICES[0], DESK)

    def demand(update: Any) -> None:
        header = frame.read_header(frame.encode(update))
        check.require_spec({**header.scalars, **header.entries}, dict(tree.leaves(spec)))

    net = make()
    sent: Update = found.answer(net, STATE["weights"], Trained(samples=3, steps=1, loss=0.0))
    assert sent.keys() == {send, "samples"}
    demand(sent)
    for wrong in ({**sent, "samples": 0}, {**sent, "samples": 2**41}, {"samples": 3}, {**sent, "more": 1}):
        with pytest.raises(WireError):
            demand(wrong)


def test_the_model_is_the_state_and_one_for_all() -> None:
    found = method()
    start = found.initial_state(DESK)
    net = found.model(STATE, None, DEVICES[1])
    assert tree.equal(dict(net.state_dict()), STATE["weights"])
    assert tree.equal(start["weights"], dict(found.net("phone").state_dict()))
    assert found.broadcast(STATE, DEVICES[0], DESK) is STATE
    assert len({found.variant(device) for device in DEVICES}) == 1


def setup(*update: str) -> Setup:
    return Setup(
        devices=DEVICES,
        tiers=["phone"],
        inputs=Inputs((3,)),
        outputs=4,
        public_samples=0,
        server_samples=0,
        up_codecs=update,
        down_codecs=(),
        rounds=1,
        given={},
    )


def test_doubtful_settings_are_told() -> None:
    with pytest.raises(ConfigError, match=r"method\.server_lr = 0: the global model would never change"):
        method(server_lr=0.0).check(setup())
    assert not method().check(setup())
    assert not method().check(setup("zstd"))
    assert not method(send="update").check(setup("int8", "zstd"))
    (warning,) = method().check(setup("int8", "zstd"))
    assert 'method.send = "update" loses far less' in warning


def test_the_server_alone_is_no_method() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Averaging(net=TierNets({}, seed=0), fit=FIT)  # type: ignore[abstract]


def test_a_device_that_trains_is_given_its_own_copy() -> None:
    data = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
    share = Shard(
        samples=data,
        targets=torch.arange(16) % 4,
        index=torch.arange(16),
        mean=torch.zeros(1),
        deviation=torch.ones(1),
        facts=TargetFacts(outputs=4),
    )
    found, before = method(), tree.map(STATE, torch.clone)
    local_state, update = found.train(
        None, STATE, DeviceContext(round=1, device=DEVICES[0], data=share, public=None, seed=0)
    )
    assert local_state is None
    assert tree.equal(STATE, before)
    assert update["samples"] == 16
    kept = tree.map(update, torch.clone)
    found.train(
        None, {"weights": normal(5)}, DeviceContext(round=1, device=DEVICES[1], data=share, public=None, seed=0)
    )
    assert tree.equal(update, kept), "a later training must not reach into an earlier reply"
