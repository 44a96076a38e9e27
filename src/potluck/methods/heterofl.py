"""HeteroFL: devices of unequal width train slices of one net.

E. Diao, J. Ding, V. Tarokh, *HeteroFL: Computation and Communication Efficient Federated Learning for Heterogeneous
Clients*, 2020, arXiv 2010.01264.

    cast:    the first ⌈p·O⌉ output and ⌈p·I⌉ input channels of every hidden layer            (models/slim.py)
    train:   activations / p after each layer, in training only;  logits of absent classes set to 0
    merge:   W[i,j] ← Σ_{k: (i,j) held} v_k W_k[i,j] / Σ_{k: (i,j) held} v_k;   what nobody held stays

| symbol | name | meaning |
|---|---|---|
| W | ``state["weights"]`` | full weights |
| p | ``width`` | the share of channels of a tier; the paper's levels a to e are 1, 1/2, 1/4, 1/8, 1/16 |
| v_k | ``weighting`` | 1 ("uniform", the authors' code in our reading) or the samples n_k (ours) |

With ``mask``, rows of the classifier are averaged over those devices that have the class.

*Departures*: in a net with GroupNorm widths are rounded up to whole groups of 4 channels. Static BatchNorm
(``[model] norm = "batch"``) keeps no running statistics: the paper then fills them in a pass over all devices' data,
which costs a round and leaks statistics. We do not make that pass: such nets are evaluated with the statistics of each
test batch, so their accuracy depends on its size and order. With GroupNorm, the default, it does not.
*Defaults*: ``width`` is ours (0.25, 0.5, 1 from the weakest tier on); scaler, mask and v_k = 1 are the paper's.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NotRequired, TypedDict

import torch
from annotated_types import Predicate
from torch import Tensor, nn

from potluck.core.spec import Integers, Number, Spec, spec_of
from potluck.core.types import Desk, Device, Ladder, Reply, Setup, Task
from potluck.methods.protocol import Traits
from potluck.methods.refuse import demand_effect, demand_no_topk
from potluck.models.coordinate_mean import CoordinateMean
from potluck.models.fit import Fit
from potluck.models.labels import classifier_tensors, masked, present
from potluck.models.nets import Nets, load, weights_of
from potluck.models.norms import without_running_statistics
from potluck.models.slim import IndexMap, narrow, slice_weights

Weights = dict[str, Tensor]
MOST_SAMPLES = 2**40


def _is_width(value: float) -> bool:
    if not 0 < value <= 1:
        raise ValueError("expected a share of the channels, 0 < width <= 1.")
    return True


class State(TypedDict):
    """On the server; on the way down the same, sliced."""

    weights: Weights


class Up(TypedDict):
    """On the way up: the slice after training, the samples, and with ``mask`` the classes at hand."""

    weights: Weights
    samples: int
    labels: NotRequired[list[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeteroFL:
    """width slices of one net, averaged entry by entry"""

    net: Nets
    fit: Fit
    width: Annotated[Mapping[str, Annotated[float, Predicate(_is_width)]] | None, Ladder((0.25, 0.5, 1.0))] = None
    scaler: bool = True
    mask: bool = True
    weighting: Literal["uniform", "samples"] = "uniform"

    traits: ClassVar[Traits] = Traits()

    def check(self, setup: Setup) -> Sequence[str]:
        demand_no_topk(setup, "heterofl", "it sends weights, and slices of unequal shape")
        if all(self._rate(tier) == 1 for tier in setup.tiers):
            demand_effect(setup.given, {"scaler": "width 1 everywhere"})
        for tier in setup.tiers:
            self._net(tier)  # raises ModelError where a slice would cut a group or join channels
        kept, net = self.net(setup.tiers[0]), self._full(setup.tiers[0])
        if kept.state_dict().keys() != net.state_dict().keys():
            return ["BatchNorm: evaluated with the statistics of each test batch, whose size and order then matter"]
        return ()

    def _rate(self, tier: str) -> float:
        return (self.width or {}).get(tier, 1.0)

    def _full(self, tier: str) -> nn.Module:
        return without_running_statistics(self.net(tier))

    def _net(self, tier: str) -> nn.Module:
        return narrow(self._full(tier), self._rate(tier), self.net.shape, scaler=self.scaler)

    def _index(self, tier: str) -> IndexMap:
        """Which block of each full tensor the tier holds."""
        shapes = self.net.shapes(("heterofl", tier), lambda: self._net(tier))
        return {name: tuple(slice(0, size) for size in shape) for name, shape in shapes.items()}

    def start(self, desk: Desk) -> State:
        return {"weights": weights_of(self._full(desk.devices[0].tier))}

    def cast(self, state: State, device: Device, desk: Desk) -> State:
        def compute() -> State:
            return {"weights": slice_weights(state["weights"], self._index(device.tier))}

        made: State = desk.once(f"heterofl down {self._rate(device.tier)}", compute)
        return made

    def train(self, own: None, down: State, task: Task) -> tuple[None, Up]:
        tier, labels = task.device.tier, present(task.data)
        net = self.net.lent(("heterofl", tier), down["weights"], lambda: self._net(tier))
        objective = masked(self.fit.loss, labels, self.net.classes) if self.mask else None
        trained = self.fit.train(net, task, objective=objective)
        up: Up = {"weights": weights_of(net), "samples": trained.samples}
        return None, {**up, "labels": labels} if self.mask else up

    def expect(self, state: State, device: Device, desk: Desk) -> Spec:
        most = self.net.classes
        labels = {"labels": Integers(low=0, high=most - 1, most=most)} if self.mask else {}
        samples = Number(kind=int, low=1, high=MOST_SAMPLES)
        return {**spec_of(self.cast(state, device, desk)), "samples": samples, **labels}

    def merge(self, state: State, replies: Iterable[Reply[Up]], desk: Desk) -> State:
        mean, answered = CoordinateMean(state["weights"]), False
        names = classifier_tensors(self._full(desk.devices[0].tier), self.net.classes) if self.mask else ()
        for reply in replies:
            answered = True
            rows = {name: torch.tensor(reply.up["labels"], dtype=torch.int64) for name in names}
            weight = float(reply.up["samples"]) if self.weighting == "samples" else 1.0
            mean.add(reply.up["weights"], weight, self._index(reply.device.tier), rows)
        return {"weights": mean.result()} if answered else state

    def model(self, state: State, own: None, device: Device) -> nn.Module:
        net = self._net(device.tier)
        load(net, slice_weights(state["weights"], self._index(device.tier)))
        return net

    def variant(self, device: Device) -> Hashable:
        return self._rate(device.tier)
