"""Local training, alone: the lower bound for every method that shares anything.

    θ_k ← SGD(θ_k; D_k),  round after round, for ever alone

Messages are empty trees; the ledger shows the bytes of their headers. A device that was never drawn keeps its initial
net. *Source*: none is needed. *Defaults*: ``models``, the net of each tier, is that of ``[model]`` for all.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, TypedDict

from torch import Tensor, nn

from potluck.core.spec import Spec
from potluck.core.types import Desk, Device, NetChoice, Reply, Setup, Task
from potluck.methods.protocol import Traits
from potluck.models.fit import Fit
from potluck.models.nets import Nets, load, weights_of


class Own(TypedDict):
    """What stays on the device."""

    weights: dict[str, Tensor]


class Nothing(TypedDict):
    """What crosses the link."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Local:
    """every device alone, nothing is shared"""

    net: Nets
    fit: Fit
    models: Annotated[Mapping[str, str] | None, NetChoice()] = None

    traits: ClassVar[Traits] = Traits(personal=True)

    def check(self, setup: Setup) -> Sequence[str]:
        return ()

    def start(self, desk: Desk) -> Nothing:
        return {}

    def cast(self, state: Nothing, device: Device, desk: Desk) -> Nothing:
        return {}

    def train(self, own: Own | None, down: Nothing, task: Task) -> tuple[Own, Nothing]:
        tier = task.device.tier
        net = self.net(tier) if own is None else self.net.loaded(tier, own["weights"])
        self.fit.train(net, task)
        return {"weights": weights_of(net)}, {}

    def expect(self, state: Nothing, device: Device, desk: Desk) -> Spec:
        return {}

    def merge(self, state: Nothing, replies: Iterable[Reply[Nothing]], desk: Desk) -> Nothing:
        return state

    def model(self, state: Nothing | None, own: Own | None, device: Device) -> nn.Module:
        net = self.net(device.tier)
        if own is not None:
            load(net, own["weights"])
        return net

    def variant(self, device: Device) -> Hashable:
        return device.id
