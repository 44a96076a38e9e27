"""The server of federated averaging, which several methods share: they differ only in what a device does.

    w_{t+1} = w_t + s (Σ_{k∈Q} v_k θ_k / Σ_{k∈Q} v_k - w_t),       v_k = n_k ("samples") or 1 ("uniform")

Everything that defines the function is averaged: parameters and floating buffers. Integer buffers keep the largest.
Names and shapes must agree, replies are folded one by one in float64, and no replies leave the weights as they are.
With s = 1 the next weights are *bitwise* the plain mean.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NotRequired, TypedDict

from annotated_types import Ge, Le
from torch import Tensor, nn

from potluck.core import tree
from potluck.core.contexts import DeviceContext, Reply, ServerContext
from potluck.core.errors import ConfigError
from potluck.core.mean import WeightedMean
from potluck.core.options import Setup
from potluck.core.spec import SAMPLES, Spec, spec_of
from potluck.core.types import Device
from potluck.methods.protocol import Traits
from potluck.nets.tier_nets import TierNets
from potluck.nets.weights import load, weights_of
from potluck.training.fit import Fit, Trained

Weights = dict[str, Tensor]


class State(TypedDict):
    """On the server, and on the way down."""

    weights: Weights


class Update(TypedDict):
    """On the way up: the weights, or the update θ_k - w_t; and the samples n_k."""

    weights: NotRequired[Weights]
    update: NotRequired[Weights]
    samples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Averaging(ABC):
    """One net for all; a device trains it, the server takes the mean."""

    net: TierNets
    fit: Fit
    weighting: Literal["samples", "uniform"] = "samples"
    send: Literal["weights", "update"] = "weights"
    server_lr: Annotated[float, Ge(0), Le(10)] = 1.0

    traits: ClassVar[Traits] = Traits()

    @abstractmethod
    def train(self, local_state: None, broadcast: State, context: DeviceContext) -> tuple[None, Update]:
        """Local training: the one thing in which these methods differ."""

    def check(self, setup: Setup) -> Sequence[str]:
        if self.server_lr == 0:
            raise ConfigError("method.server_lr = 0: the global model would never change; expected 0 < server_lr <= 10")
        if setup.sparse_codecs and self.send == "weights":
            raise ConfigError(
                f"wire.up holds {setup.sparse_codecs[0]}, and most of the weights would be dropped: "
                'set method.send = "update"'
            )
        lossy = [name for name in setup.up_codecs if name != "zstd"]
        if lossy and self.send == "weights":
            return [f'wire.up = {lossy} loses a part of the weights themselves; method.send = "update" loses far less']
        return ()

    def initial_state(self, context: ServerContext) -> State:
        return {"weights": weights_of(self.net(context.devices[0].tier))}

    def broadcast(self, state: State, device: Device, context: ServerContext) -> State:
        return state

    def answer(self, net: nn.Module, received: Weights, trained: Trained) -> Update:
        """What a device sends after training ``net``."""
        weights = weights_of(net)
        if self.send == "weights":
            return {"weights": weights, "samples": trained.samples}
        return {"update": tree.subtract(weights, received), "samples": trained.samples}

    def update_spec(self, state: State, device: Device, context: ServerContext) -> Spec:
        found: Spec = context.once(
            f"spec of {self.send}", lambda: {self.send: spec_of(state["weights"]), "samples": SAMPLES}
        )
        return found

    def aggregate(self, state: State, replies: Iterable[Reply[Update]], context: ServerContext) -> State:
        w, mean = state["weights"], WeightedMean()
        for reply in replies:
            content = reply.update["weights"] if self.send == "weights" else reply.update["update"]
            mean.add(content, float(reply.update["samples"]) if self.weighting == "samples" else 1.0)
        if not mean:
            return state
        found = mean.result()
        if self.send == "weights" and self.server_lr == 1.0:
            return {"weights": found}
        step = found if self.send == "update" else tree.subtract(found, w)
        moved = tree.add(w, step, alpha=self.server_lr)
        return {"weights": {name: v if v.is_floating_point() else found[name] for name, v in moved.items()}}

    def model(self, state: State, local_state: None, device: Device) -> nn.Module:
        net = self.net(device.tier)
        load(net, state["weights"])
        return net

    def variant(self, device: Device) -> Hashable:
        return "one model for all"
