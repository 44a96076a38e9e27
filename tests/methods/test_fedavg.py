"""FedAvg against plain SGD written out, one gradient step, and two quadratics in closed form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potluck.core import seeds, tree
from potluck.core.contexts import DeviceContext, Reply, ServerContext
from potluck.core.types import Device, Shard, TargetFacts
from potluck.methods.averaging import State
from potluck.methods.fedavg import FedAvg
from potluck.nets.tier_nets import TierNets
from potluck.nets.weights import weights_of
from potluck.tasks.classification import Classification
from potluck.training.fit import Fit, Loss


def device(number: int, tier: str = "phone") -> Device:
    rates = {"flops_per_s": 1.0, "uplink_bytes_per_s": 1.0, "downlink_bytes_per_s": 1.0, "latency_s": 0.0}
    return Device(id=number, tier=tier, memory_bytes=1, **rates)


def fit(own_loss: Loss | None = None, **changed: Any) -> Fit:
    plain: dict[str, Any] = {
        "optimiser": "sgd",
        "lr": 0.1,
        "momentum": 0.9,
        "weight_decay": 0.0,
        "epochs": {"phone": 2},
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


def shares(count: int, each: int, features: int = 5, classes: int = 3) -> list[Shard]:
    """Disjoint shares of one data set."""
    rng = torch.Generator().manual_seed(1)
    whole = Shard(
        samples=torch.randn(count * each, features, generator=rng),
        targets=torch.randint(0, classes, (count * each,), generator=rng),
        index=torch.arange(count * each),
        mean=torch.zeros(1),
        deviation=torch.ones(1),
        facts=TargetFacts(outputs=classes),
    )
    return [whole.take(torch.arange(k * each, (k + 1) * each)) for k in range(count)]


def make() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))


def method(settings: Fit, net: Any = make, **options: Any) -> FedAvg:
    return FedAvg(net=TierNets({"phone": net}, seed=0), fit=settings, **options)


def play(found: FedAvg, data: list[Shard], rounds: int, seed: int = 0) -> list[State]:
    """The states of a run in which everybody takes part and nothing is lost."""
    devices = [device(k) for k in range(len(data))]
    desks = [ServerContext(round=r, devices=devices, held=None, public=None, seed=seed) for r in range(rounds + 1)]
    states = [found.initial_state(desks[0])]
    for r in range(1, rounds + 1):
        ups = []
        for who in devices:
            device_context = DeviceContext(round=r, device=who, data=data[who.id], public=None, seed=seed)
            _, update = found.train(None, found.broadcast(states[-1], who, desks[r]), device_context)
            ups.append(Reply(device=who, round=r, update=update))
        states.append(found.aggregate(states[-1], ups, desks[r]))
    return states


def plain_sgd(data: Shard, rounds: int) -> dict[str, Tensor]:
    """SGD with momentum over all the data, two epochs a round, momentum anew each round: torch's optimiser alone."""
    torch.manual_seed(seeds.derived(0, 0, seeds.SERVER, "initial weights"))
    net = make()
    x, y = data.x, data.y
    for r in range(1, rounds + 1):
        optimiser = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, fused=True)
        rng = seeds.generator(0, r, 0, "train")
        for _ in range(2):
            order = torch.randperm(len(y), generator=rng)
            for start in range(0, len(y), 8):
                rows = order[start : start + 8]
                optimiser.zero_grad()
                F.cross_entropy(net(x[rows]), y[rows]).backward()  # type: ignore[no-untyped-call]
                optimiser.step()
    return weights_of(net)


def test_one_device_is_plain_sgd_bitwise() -> None:
    (data,) = shares(1, 21)
    for options in ({}, {"weighting": "uniform"}):
        states = play(method(fit(), **options), [data], 3)
        assert tree.equal(states[3]["weights"], plain_sgd(data, 3))
        assert not tree.equal(states[2]["weights"], plain_sgd(data, 3))


def test_one_epoch_of_full_batches_is_one_gradient_step_on_the_mean_loss() -> None:
    data = shares(4, 8)
    settings = fit(epochs={"phone": 1}, batch_size=8, momentum=0.0)
    for options in ({}, {"send": "update"}):
        before, after = play(method(settings, **options), data, 1)
        net = make()
        net.load_state_dict(before["weights"])
        loss = torch.stack([F.cross_entropy(net(share.x), share.y) for share in data]).mean()
        gradients = torch.autograd.grad(loss, list(net.parameters()))
        for (name, w), g in zip(net.named_parameters(), gradients, strict=True):
            assert torch.allclose(after["weights"][name], w - 0.1 * g, rtol=0, atol=1e-6)


def test_unequal_shares_step_on_the_loss_of_all_samples() -> None:
    data = shares(4, 8)
    data[0] = data[0].take(torch.arange(2))
    settings = fit(epochs={"phone": 1}, batch_size=8, momentum=0.0)
    before, after = play(method(settings), data, 1)
    net = make()
    net.load_state_dict(before["weights"])
    x, y = torch.cat([share.x for share in data]), torch.cat([share.y for share in data])
    gradients = torch.autograd.grad(F.cross_entropy(net(x), y), list(net.parameters()))
    for (name, w), g in zip(net.named_parameters(), gradients, strict=True):
        assert torch.allclose(after["weights"][name], w - 0.1 * g, rtol=0, atol=1e-6)


class Point(nn.Module):
    """One number w; its output is w for every sample."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([3.0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.w * x.new_ones(len(x))


A, C, ETA = (1.0, 3.0), (2.0, -1.0), 0.1


def quadratic(out: Tensor, y: Tensor) -> Tensor:
    """½ a (w - c)², where the label says which a and c."""
    a, c = torch.tensor(A)[y], torch.tensor(C)[y]
    return (0.5 * a * (out - c).square()).mean()


def numbered(counts: tuple[int, int]) -> list[Shard]:
    """Two shares whose labels are the number of the device."""
    labels = torch.tensor([0] * counts[0] + [1] * counts[1])
    whole = Shard(
        samples=torch.zeros(len(labels), 1),
        targets=labels,
        index=torch.arange(len(labels)),
        mean=torch.zeros(1),
        deviation=torch.ones(1),
        facts=TargetFacts(outputs=2),
    )
    return [whole.take(torch.nonzero(labels == k).flatten()) for k in (0, 1)]


@pytest.mark.parametrize(("weighting", "counts"), [("samples", (6, 2)), ("uniform", (6, 2)), ("samples", (4, 4))])
@pytest.mark.parametrize("server_lr", [1.0, 0.5])
@pytest.mark.parametrize("send", ["weights", "update"])
def test_two_quadratics_in_closed_form(weighting: str, counts: tuple[int, int], server_lr: float, send: str) -> None:
    """w_k = c_k + (1 - η a_k)^E (w - c_k), and the mean of both, for five rounds."""
    epochs = 4
    settings = fit(quadratic, epochs={"phone": epochs}, batch_size=100, momentum=0.0, lr=ETA)
    found = method(settings, Point, weighting=weighting, server_lr=server_lr, send=send)
    w, v = 3.0, counts if weighting == "samples" else (1, 1)
    for state in play(found, numbered(counts), 5)[1:]:
        local = [c + (1 - ETA * a) ** epochs * (w - c) for a, c in zip(A, C, strict=True)]
        w += server_lr * ((v[0] * local[0] + v[1] * local[1]) / sum(v) - w)
        assert float(state["weights"]["w"]) == pytest.approx(w, abs=1e-6)


def test_updates_and_weights_give_the_same_run() -> None:
    data = shares(3, 11)
    by_weights, by_update = (play(method(fit(), send=send), data, 3)[-1]["weights"] for send in ("weights", "update"))
    for name, value in by_weights.items():
        assert torch.allclose(by_update[name], value, rtol=0, atol=1e-6)


def test_the_order_of_devices_is_irrelevant() -> None:
    """A device's reply does not depend on which device the resident net trained before."""
    data, found = shares(3, 11), method(fit())
    state = play(found, data, 1)[-1]

    def ups(order: list[int]) -> dict[int, Any]:
        tasks = {k: DeviceContext(round=2, device=device(k), data=data[k], public=None, seed=0) for k in order}
        return {k: found.train(None, state, device_context)[1] for k, device_context in tasks.items()}

    forwards, backwards = ups([0, 1, 2]), ups([2, 1, 0])
    assert all(tree.equal(forwards[k], backwards[k]) for k in range(3))
    assert not tree.equal(forwards[0], forwards[1])


def normed() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))


def test_statistics_of_batch_norm_travel_and_are_averaged() -> None:
    data = shares(2, 16)
    found = method(fit(epochs={"phone": 1}), normed)
    (before, after), tasks = play(found, data, 1), range(2)
    ups = [
        found.train(None, before, DeviceContext(round=1, device=device(k), data=data[k], public=None, seed=0))[1][
            "weights"
        ]
        for k in tasks
    ]
    for name in ("1.running_mean", "1.running_var"):
        wanted = (ups[0][name].double() + ups[1][name].double()) / 2
        assert torch.allclose(after["weights"][name].double(), wanted, rtol=1e-7, atol=1e-8)
        assert not torch.equal(after["weights"][name], before["weights"][name])
    counter = after["weights"]["1.num_batches_tracked"]
    assert counter.dtype == torch.int64
    assert int(counter) == 2
    data[0] = data[0].take(torch.arange(8))
    assert int(play(found, data, 3)[-1]["weights"]["1.num_batches_tracked"]) == 6, "the largest of 1 and 2, three times"
