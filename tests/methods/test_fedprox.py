"""FedProx: without its term it is FedAvg, with it a quadratic has a closed form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potluck.core import seeds, tree
from potluck.core.contexts import DeviceContext
from potluck.core.types import Device, Shard, TargetFacts
from potluck.methods.averaging import State
from potluck.methods.fedavg import FedAvg
from potluck.methods.fedprox import FedProx
from potluck.nets.tier_nets import TierNets
from potluck.nets.weights import weights_of
from potluck.tasks.classification import Classification
from potluck.training.fit import Fit, Loss


def device(tier: str = "phone") -> Device:
    rates = {"flops_per_s": 1.0, "uplink_bytes_per_s": 1.0, "downlink_bytes_per_s": 1.0, "latency_s": 0.0}
    return Device(id=2, tier=tier, memory_bytes=1, **rates)


def fit(own_loss: Loss | None = None, **changed: Any) -> Fit:
    plain: dict[str, Any] = {
        "optimiser": "sgd",
        "lr": 0.1,
        "momentum": 0.9,
        "weight_decay": 0.0,
        "epochs": {"phone": 2, "laptop": 5},
        "batch_size": 8,
        "schedule": "none",
        "milestones": (),
        "gamma": 0.1,
        "schedule_rounds": 1,
        "clip_norm": 0.0,
        "channels_last": False,
        "bf16": False,
        "augment": "none",
    }
    return Fit(task=Classification(facts=TargetFacts(outputs=3)), own_loss=own_loss, **{**plain, **changed})


def share(count: int) -> Shard:
    rng = torch.Generator().manual_seed(1)
    return Shard(
        samples=torch.randn(count, 5, generator=rng),
        targets=torch.randint(0, 3, (count,), generator=rng),
        index=torch.arange(count),
        mean=torch.zeros(1),
        deviation=torch.ones(1),
        facts=TargetFacts(outputs=3),
    )


def make() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), nn.Dropout(0.2), nn.BatchNorm1d(6), nn.Linear(6, 3))


def nets(net: Any = make) -> TierNets:
    return TierNets({"phone": net, "laptop": net}, seed=0)


def device_context(count: int = 21, tier: str = "phone") -> DeviceContext:
    return DeviceContext(round=1, device=device(tier), data=share(count), public=None, seed=0)


def start(net: Any = make) -> State:
    return {"weights": weights_of(nets(net)("phone"))}


def test_without_its_term_it_is_fedavg_bitwise() -> None:
    for options in ({}, {"send": "update"}):
        _, plain = FedAvg(net=nets(), fit=fit(), **options).train(None, start(), device_context())  # type: ignore[arg-type]
        _, prox = FedProx(net=nets(), fit=fit(), mu=0.0, **options).train(None, start(), device_context())  # type: ignore[arg-type]
        assert tree.equal(plain, prox)
        _, pulled = FedProx(net=nets(), fit=fit(), mu=0.1, **options).train(None, start(), device_context())  # type: ignore[arg-type]
        assert not tree.equal(plain, pulled)


class Point(nn.Module):
    """One number w; its output is w for every sample."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([3.0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.w * x.new_ones(len(x))


A, C, ETA = 2.0, -1.0, 0.05


def quadratic(out: Tensor, y: Tensor) -> Tensor:
    return (0.5 * A * (out - C).square()).mean()


def steps(mu: float, count: int, lr: float = ETA, **changed: Any) -> float:
    """w after so many full-batch steps of FedProx from w_t = 3."""
    settings = fit(quadratic, **{"epochs": {"phone": count}, "batch_size": 100, "momentum": 0.0, "lr": lr, **changed})
    _, update = FedProx(net=nets(Point), fit=settings, mu=mu).train(None, start(Point), device_context())
    return float(update["weights"]["w"])


@pytest.mark.parametrize("mu", [0.01, 0.5, 1.0, 10.0])
@pytest.mark.parametrize("count", [1, 2, 3, 10])
def test_a_quadratic_in_closed_form(mu: float, count: int) -> None:
    """w_K = w* + (1 - η(a + μ))^K (w_t - w*), w* = (a c + μ w_t)/(a + μ)."""
    rest = (A * C + mu * 3.0) / (A + mu)
    assert steps(mu, count) == pytest.approx(rest + (1 - ETA * (A + mu)) ** count * (3.0 - rest), abs=1e-5)


def test_a_strong_pull_keeps_the_weights() -> None:
    moved = [abs(steps(mu, 50, lr=0.5 / (A + mu)) - 3.0) for mu in (0.1, 1.0, 10.0, 1e3, 1e5)]
    assert moved == sorted(moved, reverse=True)
    assert moved[0] > 3.5
    assert moved[-1] < 1e-3


def test_the_first_step_is_fedavgs_and_the_second_is_not() -> None:
    """At w_t the term has no gradient; a term whose copy of w_t is used up after one batch would stay without."""
    first = 3.0 - ETA * A * (3.0 - C)
    assert steps(1.0, 1) == pytest.approx(first, abs=1e-6)
    second = first - ETA * (A * (first - C) + 1.0 * (first - 3.0))
    assert steps(1.0, 2) == pytest.approx(second, abs=1e-6)
    assert abs(steps(0.0, 2) - second) > 0.01


def test_the_term_stands_in_the_loss_where_momentum_and_decay_see_it() -> None:
    mu, momentum, decay = 0.5, 0.9, 0.1
    w, v = 3.0, 0.0
    for _ in range(6):
        v = momentum * v + A * (w - C) + mu * (w - 3.0) + decay * w
        w -= ETA * v
    assert steps(mu, 6, momentum=momentum, weight_decay=decay) == pytest.approx(w, abs=1e-5)


def test_the_norm_is_squared_and_one_sum_over_all_parameters_and_no_buffer() -> None:
    """Against the loop written out, with batches, batch norm and dropout."""
    mu, given = 0.7, device_context()
    net = nets()("phone")
    anchor = [w.detach().clone() for w in net.parameters()]
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    rng, x, y = given.rng("train"), given.data.x, given.data.y
    with torch.random.fork_rng():
        torch.manual_seed(seeds.derived(0, 1, 2, "train/global"))
        for _ in range(2):
            for rows in torch.split(torch.randperm(21, generator=rng), 8):
                optimiser.zero_grad()
                F.cross_entropy(net(x[rows]), y[rows]).backward()  # type: ignore[no-untyped-call]
                for w, a in zip(net.parameters(), anchor, strict=True):
                    assert w.grad is not None
                    w.grad += mu * (w.detach() - a)
                optimiser.step()
    _, update = FedProx(net=nets(), fit=fit(), mu=mu).train(None, start(), given)
    for name, value in weights_of(net).items():
        assert torch.allclose(update["weights"][name].double(), value.double(), rtol=0, atol=1e-5), name


def test_a_tier_may_do_less_work_and_counts_in_full() -> None:
    found = FedProx(net=nets(Point), fit=fit(quadratic, batch_size=100, momentum=0.0, lr=ETA), mu=1.0)
    _, few = found.train(None, start(Point), device_context(21, "phone"))
    _, many = found.train(None, start(Point), device_context(21, "laptop"))
    assert float(few["weights"]["w"]) == pytest.approx(steps(1.0, 2))
    assert float(many["weights"]["w"]) == pytest.approx(steps(1.0, 5))
    assert few["samples"] == many["samples"] == 21


def test_what_was_received_is_not_written_to() -> None:
    given = start()
    before = tree.map(given, torch.clone)
    FedProx(net=nets(), fit=fit(), mu=1.0).train(None, given, device_context())
    assert tree.equal(given, before)
