"""signmean: signs of the update, and one scale per tensor.

After signSGD (J. Bernstein, Y.-X. Wang, K. Azizzadenesheli, A. Anandkumar, 2018, arXiv 1802.04434); the aggregation is
a plain mean instead of the majority vote.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, TypedDict

import torch
from annotated_types import Ge, Le
from torch import Tensor, nn

from potluck.core import tree
from potluck.core.contexts import DeviceContext, Reply, ServerContext
from potluck.core.mean import WeightedMean
from potluck.core.options import Setup
from potluck.core.spec import SAMPLES, Array, Spec
from potluck.core.types import Device
from potluck.methods.protocol import Traits
from potluck.nets.tier_nets import TierNets
from potluck.nets.weights import load, weights_of
from potluck.training.fit import Fit


class State(TypedDict):
    """On the server, and on the way down."""

    weights: dict[str, Tensor]


class Update(TypedDict):
    """On the way up: a sign a value, int8, and a scale a tensor."""

    signs: dict[str, Tensor]
    scales: dict[str, Tensor]
    samples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SignMean:
    """signs of the update, one scale per tensor"""

    net: TierNets  # the net of a tier; filled when the run is built
    fit: Fit  # local training; likewise
    step: Annotated[float, Ge(0), Le(10)] = 1.0  # an option of [method], checked by its annotation

    traits: ClassVar[Traits] = Traits()

    def check(self, setup: Setup) -> Sequence[str]:
        return ()

    def initial_state(self, context: ServerContext) -> State:
        return {"weights": weights_of(self.net(context.devices[0].tier))}

    def broadcast(self, state: State, device: Device, context: ServerContext) -> State:
        return state

    def train(self, local_state: None, broadcast: State, context: DeviceContext) -> tuple[None, Update]:
        net = self.net.with_weights(context.device.tier, broadcast["weights"])
        trained = self.fit.train(net, context)
        change = tree.subtract(weights_of(net), broadcast["weights"])
        signs = {name: value.sign().to(torch.int8) for name, value in change.items()}
        scales = {name: value.abs().float().mean().reshape(1) for name, value in change.items()}
        return None, {"signs": signs, "scales": scales, "samples": trained.samples}

    def update_spec(self, state: State, device: Device, context: ServerContext) -> Spec:
        weights = state["weights"]
        signs = {name: Array(dtype=torch.int8, shape=tuple(w.shape), low=-1, high=1) for name, w in weights.items()}
        scales = {name: Array(dtype=torch.float32, shape=(1,)) for name in weights}
        return {"signs": signs, "scales": scales, "samples": SAMPLES}

    def aggregate(self, state: State, replies: Iterable[Reply[Update]], context: ServerContext) -> State:
        mean = WeightedMean()
        for reply in replies:  # one by one: memory stays that of one model
            signs, scales = reply.update["signs"], reply.update["scales"]
            mean.add({name: signs[name].float() * scales[name] for name in signs}, float(reply.update["samples"]))
        if not mean:
            return state
        return {"weights": tree.add(state["weights"], mean.result(), alpha=self.step)}

    def model(self, state: State, local_state: None, device: Device) -> nn.Module:
        net = self.net(device.tier)
        load(net, state["weights"])
        return net

    def variant(self, device: Device) -> Hashable:
        return "one model for all"
