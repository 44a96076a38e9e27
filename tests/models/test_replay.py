"""Recorded steps: the bits of the plain ones, for the nets that may have them and for no others."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Callable

import pytest
import torch
from potluck.models import replay
from potluck.models.replay import MOST_SHAPES, PLAIN_FIRST, Replays, replayable
from tests.models.test_fit import CLASSES, context, fit, shard
from torch import Tensor, nn

from potluck.nets.weights import weights_of

IMAGE = (2, 6, 6)


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(72, 7), nn.ReLU(), nn.Linear(7, CLASSES))


def dropping() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(72, 9), nn.Dropout(0.5), nn.Tanh(), nn.Linear(9, CLASSES))


def tied() -> nn.Module:
    """One layer at two places: its gradient is a sum."""
    layer = nn.Linear(8, 8)
    return nn.Sequential(nn.Flatten(), nn.Linear(72, 8), layer, nn.GELU(), layer, nn.Linear(8, CLASSES))


NETS = [perceptron, dropping, tied]


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The shapes of the batches that were recorded."""
    seen: list[torch.Size] = []
    plain = replay.record

    def noted(net: nn.Module, loss: replay.Loss, weights: list[nn.Parameter], x: Tensor, y: Tensor) -> object:
        seen.append(x.shape)
        return plain(net, loss, weights, x, y)

    monkeypatch.setattr(replay, "record", noted)
    return seen


def after(make: Callable[[], nn.Module], rounds: int = 3, **settings: object) -> dict[str, Tensor]:
    """The weights after three rounds of seven batches of two shapes each."""
    torch.manual_seed(0)
    net = make()
    trainer = fit(epochs={"phone": 3}, batch_size=5, **settings)
    for round in range(1, rounds + 1):
        trainer.train(net, context(shard(13, IMAGE), round=round))
    return weights_of(net)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"momentum": 0.0, "weight_decay": 0.1},
        {"clip_norm": 0.01},
        {"optimiser": "adam", "lr": 0.01},
    ],
    ids=str,
)
@pytest.mark.parametrize("make", NETS)
def test_the_bits_are_those_of_the_plain_steps(
    make: Callable[[], nn.Module],
    settings: dict[str, object],
    recorded: list[torch.Size],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = after(make, **settings)
    assert sorted(recorded) == [torch.Size([3, *IMAGE]), torch.Size([5, *IMAGE])]
    monkeypatch.setattr(replay, "MOST_WEIGHTS", 0)
    plain = after(make, **settings)
    assert len(recorded) == 2, "nothing is recorded of a large net"
    assert found.keys() == plain.keys()
    for name, value in found.items():
        assert torch.equal(value, plain[name]), name


def test_a_few_batches_are_not_worth_a_recording(recorded: list[torch.Size]) -> None:
    fit(epochs={"phone": PLAIN_FIRST}, batch_size=20).train(perceptron(), context(shard(13, IMAGE)))
    assert not recorded


def test_only_so_many_shapes_are_recorded(recorded: list[torch.Size]) -> None:
    net, trainer = perceptron(), fit(epochs={"phone": 3}, batch_size=50)
    for samples in range(1, MOST_SHAPES + 4):
        trainer.train(net, context(shard(samples, IMAGE)))
    assert len(recorded) == MOST_SHAPES


def test_other_modules_and_hooks_are_done_as_usual() -> None:
    class Own(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if float(x.sum()) > 0 else x

    hooked = perceptron()
    hooked[1].register_forward_hook(lambda module, inputs, output: output * 2)
    assert replayable(perceptron())
    assert not replayable(nn.Sequential(perceptron(), Own()))
    assert not replayable(nn.Sequential(nn.Conv2d(2, 2, 3), perceptron()))
    assert not replayable(hooked)


def test_weights_that_moved_or_froze_are_recorded_anew(recorded: list[torch.Size]) -> None:
    net, trainer = perceptron(), fit(epochs={"phone": 8}, batch_size=13)
    given = context(shard(13, IMAGE))
    trainer.train(net, given)
    trainer.train(net, given)
    assert len(recorded) == 1
    net[1].weight.data = net[1].weight.data.clone()
    trainer.train(net, given)
    assert len(recorded) == 2
    net[1].weight.requires_grad_(False)
    frozen = net[1].weight.clone()
    trainer.train(net, given)
    assert len(recorded) == 3
    assert torch.equal(net[1].weight, frozen)


def test_without_torchscript_nothing_is_recorded(recorded: list[torch.Size], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "SCRIPT", None)
    after(perceptron)
    assert not recorded


def test_recordings_do_not_keep_a_net_alive() -> None:
    net, trainer = perceptron(), fit(epochs={"phone": 8}, batch_size=13)
    trainer.train(net, context(shard(13, IMAGE)))
    assert isinstance(trainer.replays[net], Replays)
    there = weakref.ref(net)
    del net
    gc.collect()
    assert there() is None
    assert not len(trainer.replays)


def test_recording_imports_nothing() -> None:
    """A device's process may live for one message: torch's symbolic shapes would cost it more than its training."""
    code = (
        "import sys, torch, potluck.models.fit as fit, potluck.models.replay as replay\n"
        "net = torch.nn.Linear(3, 2); x, y = torch.randn(4, 3), torch.tensor([0, 1, 0, 1])\n"
        "fit.cross_entropy(net(x), y).backward(); before = set(sys.modules)\n"
        "replay.record(net, fit.cross_entropy, list(net.parameters()), x, y)[1](x, y)\n"
        "print(sorted(set(sys.modules) - before))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"
