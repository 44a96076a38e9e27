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

from potluck.core.contexts import DeviceContext, Reply, ServerContext
from potluck.core.options import NetChoice, Setup
from potluck.core.spec import Spec
from potluck.core.types import Device
from potluck.methods.protocol import Traits
from potluck.nets.tier_nets import TierNets
from potluck.nets.weights import load, weights_of
from potluck.training.fit import Fit


class LocalState(TypedDict):
    """What stays on the device."""

    weights: dict[str, Tensor]


class Nothing(TypedDict):
    """What crosses the link."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Local:
    """every device alone, nothing is shared"""

    net: TierNets
    fit: Fit
    models: Annotated[Mapping[str, str] | None, NetChoice()] = None

    traits: ClassVar[Traits] = Traits(personal=True)

    def check(self, setup: Setup) -> Sequence[str]:
        return ()

    def initial_state(self, context: ServerContext) -> Nothing:
        return {}

    def broadcast(self, state: Nothing, device: Device, context: ServerContext) -> Nothing:
        return {}

    def train(
        self, local_state: LocalState | None, broadcast: Nothing, context: DeviceContext
    ) -> tuple[LocalState, Nothing]:
        tier = context.device.tier
        net = self.net(tier) if local_state is None else self.net.with_weights(tier, local_state["weights"])
        self.fit.train(net, context)
        return {"weights": weights_of(net)}, {}

    def update_spec(self, state: Nothing, device: Device, context: ServerContext) -> Spec:
        return {}

    def aggregate(self, state: Nothing, replies: Iterable[Reply[Nothing]], context: ServerContext) -> Nothing:
        return state

    def model(self, state: Nothing | None, local_state: LocalState | None, device: Device) -> nn.Module:
        net = self.net(device.tier)
        if local_state is not None:
            load(net, local_state["weights"])
        return net

    def variant(self, device: Device) -> Hashable:
        return device.id


METHODS = {"local": Local}
