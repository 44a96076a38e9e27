"""HeteroFL: devices of unequal width train slices of one net.

E. Diao, J. Ding, V. Tarokh, *HeteroFL: Computation and Communication Efficient Federated Learning for Heterogeneous
Clients*, 2020, arXiv 2010.01264.

    broadcast   the first ⌈p·O⌉ output and ⌈p·I⌉ input channels of every hidden layer       (nets/width.py)
    train       activations / p after each layer, in training only;  logits of absent classes set to 0
    aggregate   W[i,j] ← Σ_{k: (i,j) held} v_k W_k[i,j] / Σ_{k: (i,j) held} v_k;   what nobody held stays

| symbol | name | meaning |
|---|---|---|
| W | ``state["weights"]`` | full weights |
| p | ``width`` | the share of channels of a tier; the paper's levels a to e are 1, 1/2, 1/4, 1/8, 1/16 |
| v_k | ``weighting`` | 1 ("uniform", the authors' code in our reading) or the samples n_k (ours) |

With ``mask``, rows of the classifier are averaged over those devices that have the class.

Static BatchNorm (``[model] norm = "batch"``) keeps no running statistics while it trains. Round ``[train]
schedule_rounds``, the last one, is a pass over the devices' data instead of training: each sends mean and variance of
what reaches its norms, and those of a width are pooled. It costs a round, and statistics leave the devices. Before it,
and after further rounds, such nets are evaluated with the statistics of each test batch.

*Departures*: in a net with GroupNorm, the default, widths are rounded up to whole groups of 4 channels. The paper's
pass makes one set of statistics, ours one for each width, as activations differ between widths.
*Defaults*: ``width`` is ours (0.25, 0.5, 1 from the weakest tier on); scaler, mask and v_k = 1 are the paper's.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NotRequired, TypedDict

import torch
from annotated_types import Predicate
from torch import Tensor, nn

from potluck.core import meter
from potluck.core.contexts import DeviceContext, Reply, ServerContext
from potluck.core.mean import CoordinateMean, IndexMap, WeightedMean
from potluck.core.options import Ladder, Setup
from potluck.core.spec import SAMPLES, Array, Integers, Spec, spec_of
from potluck.core.types import Device
from potluck.methods.checks import require_effect, require_no_sparse
from potluck.methods.protocol import Traits
from potluck.nets.batch_statistics import from_moments, moments, statistics_of, without_running_statistics
from potluck.nets.tier_nets import TierNets
from potluck.nets.weights import load, weights_of
from potluck.nets.width import narrow, slice_weights
from potluck.training.fit import Fit
from potluck.training.flops import forward_flops
from potluck.training.labels import classifier_tensors, masked, present

Weights = dict[str, Tensor]


def _is_width(value: float) -> bool:
    if not 0 < value <= 1:
        raise ValueError("expected a share of the channels, 0 < width <= 1.")
    return True


class State(TypedDict):
    """On the server; on the way down the weights, sliced. After a pass also its statistics, by width."""

    weights: Weights
    statistics: NotRequired[dict[str, Weights]]


class Update(TypedDict):
    """On the way up: the slice after training, the samples, and with ``mask`` the classes at hand; or statistics."""

    weights: NotRequired[Weights]
    statistics: NotRequired[Weights]
    samples: int
    labels: NotRequired[list[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeteroFL:
    """width slices of one net, averaged entry by entry"""

    net: TierNets
    fit: Fit
    width: Annotated[Mapping[str, Annotated[float, Predicate(_is_width)]] | None, Ladder((0.25, 0.5, 1.0))] = None
    scaler: bool = True
    mask: bool = True
    weighting: Literal["uniform", "samples"] = "uniform"

    traits: ClassVar[Traits] = Traits()

    def check(self, setup: Setup) -> Sequence[str]:
        require_no_sparse(setup, "heterofl", "it sends weights, and slices of unequal shape")
        if all(self._rate(tier) == 1 for tier in setup.tiers):
            require_effect(setup.given, {"scaler": "width 1 everywhere"})
        for tier in setup.tiers:
            self._net(tier)  # raises ModelError where a slice would cut a group or join channels
        if self._statistics(setup.tiers[0]):
            return [
                f"BatchNorm: round {self.fit.schedule_rounds} takes its statistics from the devices, and trains not"
            ]
        return ()

    def _rate(self, tier: str) -> float:
        return (self.width or {}).get(tier, 1.0)

    def _full(self, tier: str) -> nn.Module:
        return without_running_statistics(self.net(tier))

    def _net(self, tier: str) -> nn.Module:
        return narrow(self._full(tier), self._rate(tier), self.net.inputs, scaler=self.scaler)

    def _index(self, tier: str) -> IndexMap:
        """Which block of each full tensor the tier holds."""
        shapes = self.net.shapes(("heterofl", tier), lambda: self._net(tier))
        return {name: tuple(slice(0, size) for size in shape) for name, shape in shapes.items()}

    def _statistics(self, tier: str) -> dict[str, tuple[int, ...]]:
        """The running statistics that the tier's net would hold: name -> shape."""
        shapes = self.net.shapes(("heterofl", "tracked", tier), lambda: self._tracked(tier))
        return {name: shape for name, shape in shapes.items() if name.endswith(("running_mean", "running_var"))}

    def _tracked(self, tier: str) -> nn.Module:
        return narrow(self.net(tier), self._rate(tier), self.net.inputs, scaler=self.scaler)

    def _passes(self, round: int, tier: str) -> bool:
        """Whether the round takes statistics."""
        every = self.fit.schedule_rounds
        return every > 1 and round % every == 0 and bool(self._statistics(tier))

    def initial_state(self, context: ServerContext) -> State:
        return {"weights": weights_of(self._full(context.devices[0].tier))}

    def broadcast(self, state: State, device: Device, context: ServerContext) -> State:
        def compute() -> State:
            return {"weights": slice_weights(state["weights"], self._index(device.tier))}

        made: State = context.once(f"heterofl down {self._rate(device.tier)}", compute)
        return made

    def train(self, local_state: None, broadcast: State, context: DeviceContext) -> tuple[None, Update]:
        tier, labels = context.device.tier, present(self.fit.task, context.data)
        net = self.net.borrow(("heterofl", tier), broadcast["weights"], lambda: self._net(tier))
        if self._passes(context.round, tier):
            batches = (x for x, _, _ in self.fit.batches(context.data, context.rng("statistics"), 1))
            meter.add_flops(forward_flops(net, self.net.inputs) * len(context.data))
            return None, {"statistics": statistics_of(net, batches), "samples": len(context.data)}
        objective = masked(self.fit.loss, labels, self.net.outputs) if self.mask else None
        trained = self.fit.train(net, context, objective=objective)
        update: Update = {"weights": weights_of(net), "samples": trained.samples}
        return None, {**update, "labels": labels} if self.mask else update

    def update_spec(self, state: State, device: Device, context: ServerContext) -> Spec:
        samples, most = SAMPLES, self.net.outputs
        if self._passes(context.round, device.tier):
            shapes = self._statistics(device.tier)
            wanted = {name: Array(dtype=torch.float32, shape=shape) for name, shape in shapes.items()}
            return {"statistics": wanted, "samples": samples}
        labels = {"labels": Integers(low=0, high=most - 1, most=most)} if self.mask else {}
        return {**spec_of(self.broadcast(state, device, context)), "samples": samples, **labels}

    def aggregate(self, state: State, replies: Iterable[Reply[Update]], context: ServerContext) -> State:
        if self._passes(context.round, context.devices[0].tier):
            return self._pooled(state, replies)
        mean, answered = CoordinateMean(state["weights"]), False
        names = classifier_tensors(self._full(context.devices[0].tier), self.net.outputs) if self.mask else ()
        for reply in replies:
            answered = True
            rows = {name: torch.tensor(reply.update["labels"], dtype=torch.int64) for name in names}
            weight = float(reply.update["samples"]) if self.weighting == "samples" else 1.0
            mean.add(reply.update["weights"], weight, self._index(reply.device.tier), rows)
        return {"weights": mean.result()} if answered else state

    def _pooled(self, state: State, replies: Iterable[Reply[Update]]) -> State:
        """The statistics of each width, over the samples of its devices."""
        means: dict[str, WeightedMean] = {}
        for reply in replies:
            mean = means.setdefault(f"{self._rate(reply.device.tier):g}", WeightedMean())
            mean.add(moments(reply.update["statistics"]), float(reply.update["samples"]))
        found = {rate: from_moments(mean.result()) for rate, mean in means.items()}
        return {"weights": state["weights"], "statistics": found} if found else state

    def model(self, state: State, local_state: None, device: Device) -> nn.Module:
        weights = slice_weights(state["weights"], self._index(device.tier))
        found = state.get("statistics", {}).get(f"{self._rate(device.tier):g}")
        net = self._net(device.tier) if found is None else self._tracked(device.tier)
        load(net, {**net.state_dict(), **weights, **(found or {})})
        return net

    def variant(self, device: Device) -> Hashable:
        return self._rate(device.tier)


METHODS = {"heterofl": HeteroFL}
