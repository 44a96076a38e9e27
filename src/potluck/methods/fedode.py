"""FedODE: one ODE block, and as many solver steps of it as a device can afford.

Y. Hoshino, H. Kawakami, H. Matsutani, *Federated Learning of Neural ODE Models with Different Iteration Counts*, IEICE
Transactions on Information and Systems E107-D(6), 2024, doi 10.1587/transinf.2023EDP7176; arXiv 2208.09478. "FedODE"
is our name; the authors speak of flexible federated learning.

    z_{j+1} = z_j + h f_θ(z_j, t_j),  t_j = j h,  j = 0 … C_i - 1         θ_i = SGD(θ; data of i), through all C_i steps
    θ ← Σ_i n_i θ_i / Σ_i n_i                                            γ_C ← the same mean, over those i with C_i = C

| symbol | name | meaning |
|---|---|---|
| θ | ``weights`` | parameters; their shapes do not depend on C, hence they are mergeable |
| C_i | ``steps`` | steps of device i, for all ODE stages or a list with one entry a stage |
| h | ``step`` | ``unit_time``: 1/C; ``unit_step``: 1; ``learned``: C lengths a stage |
| γ_C | ``groups``, ``group`` | with ``norm_groups = "per_steps"``: norms and learned lengths, one set a step count |
| n_i | ``samples`` | training samples |
| f_θ | the net's ODE block | conv-norm-relu-conv-norm without a shortcut of its own |

*Departures*, undone by ``profile = "faithful"`` (whose h = 1, BatchNorm and plain mean are our reading; the paper's are
not known to us): h = 1/C, so that all C discretise one equation; γ_C is averaged among equal C only, after NeFL (arXiv
2308.07761), and a C without a set starts from the nearest one's norms; GroupNorm, since BatchNorm in a block applied C
times mixes the statistics of C states. ``random_steps`` trains half of the batches at some C' ≤ C_i. *Defaults*: ours.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NotRequired, TypedDict

from torch import Tensor, nn

from potluck.core import meter
from potluck.core.contexts import DeviceContext, Reply, ServerContext
from potluck.core.errors import ConfigError
from potluck.core.mean import WeightedMean
from potluck.core.options import Ladder, Setup
from potluck.core.spec import SAMPLES, Exactly, Spec, spec_of
from potluck.core.types import Device
from potluck.methods.checks import overrides, whole_weights
from potluck.methods.protocol import Traits
from potluck.nets import odenet
from potluck.nets.tier_nets import TierNets
from potluck.nets.weights import load, weights_of
from potluck.training.fit import Fit
from potluck.training.random_depth import Steps, at_depths

Weights = dict[str, Tensor]
FAITHFUL = {
    "solver": "euler",
    "step": "unit_step",
    "norm_groups": "global",
    "model": {"norm": "batch"},
    "train": {"lr": 0.05, "momentum": 0.9, "epochs": 1, "batch_size": 64},
}


class State(TypedDict):
    """On the server: θ, and γ_C by the name of C."""

    weights: Weights
    groups: dict[str, Weights]


class Broadcast(TypedDict):
    """On the way down."""

    weights: Weights
    group: NotRequired[Weights]
    steps: Steps


class Update(TypedDict):
    """On the way up."""

    weights: Weights
    group: NotRequired[Weights]
    steps: Steps
    samples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FedODE:
    """one ODE block, as many solver steps of it as a device affords"""

    net: TierNets
    fit: Fit
    profile: Literal["recommended", "faithful"] = "recommended"
    solver: Literal["euler", "midpoint", "heun", "rk4"] = "euler"
    step: Literal["unit_time", "unit_step", "learned"] = "unit_time"
    norm_groups: Literal["per_steps", "global"] = "per_steps"
    time_channel: bool = False
    checkpoint: bool = False
    random_steps: bool = False
    steps: Annotated[Mapping[str, int | list[int]] | None, Ladder((2, 4, 8))] = None

    traits: ClassVar[Traits] = Traits(
        kind="ode", preset="odenet-cifar-like", profiles={"recommended": {}, "faithful": FAITHFUL}
    )

    def check(self, setup: Setup) -> Sequence[str]:
        if self.step == "learned" and self.norm_groups == "global":
            raise ConfigError(
                'step = "learned" needs norm_groups = "per_steps": step sizes of different length cannot be averaged.'
            )
        if self.step == "learned" and self.random_steps:
            raise ConfigError('step = "learned" has one length a step: it does not go with random_steps = true.')
        nets = [self._net(tier) for tier in setup.tiers]
        said = whole_weights(setup, "fedode") + overrides(setup, self.profile, self.traits.profiles[self.profile])
        if len({key_of(self._steps(tier)) for tier in setup.tiers}) > 1:
            if self.step == "unit_step":
                said.append('step = "unit_step" with unequal steps: the devices integrate different equations.')
            if self.norm_groups == "global" and any(map(odenet.has_batch_norm, nets)):
                said.append(
                    'model.norm = "batch" with unequal steps and norm_groups = "global": the averaged statistics are '
                    'those of no device; choose norm = "group", or norm_groups = "per_steps".'
                )
        return said

    def initial_state(self, context: ServerContext) -> State:
        groups: dict[str, Weights] = {}
        for tier in dict.fromkeys(device.tier for device in context.devices):
            weights, group = self._split(self._net(tier))
            if group:
                groups[key_of(self._steps(tier))] = group
        return {"weights": weights, "groups": groups}

    def broadcast(self, state: State, device: Device, context: ServerContext) -> Broadcast:
        broadcast: Broadcast = {"weights": state["weights"], "steps": self._steps(device.tier)}
        group = self._group(state, device.tier)
        return {**broadcast, "group": group} if group else broadcast

    def train(self, local_state: None, broadcast: Broadcast, context: DeviceContext) -> tuple[None, Update]:
        steps, group = broadcast["steps"], broadcast.get("group", {})
        net = self.net.borrow(key_of(steps), {**broadcast["weights"], **group}, lambda: self._net(context.device.tier))
        meter.note("evaluations", odenet.evaluations(net))
        rng = context.rng("random steps") if self.random_steps else None
        trained = self.fit.train(net, context, objective=at_depths(self.fit.base, self._set, steps, rng))
        weights, group = self._split(net)
        update: Update = {"weights": weights, "steps": steps, "samples": trained.samples}
        return None, {**update, "group": group} if group else update

    def update_spec(self, state: State, device: Device, context: ServerContext) -> Spec:
        group = self._group(state, device.tier)
        return {
            "weights": spec_of(state["weights"]),
            **({"group": spec_of(group)} if group else {}),
            "steps": Exactly(value=self._steps(device.tier)),
            "samples": SAMPLES,
        }

    def aggregate(self, state: State, replies: Iterable[Reply[Update]], context: ServerContext) -> State:
        mean, of_steps = WeightedMean(), dict[str, WeightedMean]()
        for reply in replies:
            n = float(reply.update["samples"])
            mean.add(reply.update["weights"], n)
            if "group" in reply.update:
                of_steps.setdefault(key_of(reply.update["steps"]), WeightedMean()).add(reply.update["group"], n)
        if not mean:
            return state
        return {
            "weights": mean.result(),
            "groups": {**state["groups"], **{key: found.result() for key, found in of_steps.items()}},
        }

    def model(self, state: State, local_state: None, device: Device) -> nn.Module:
        net = self._net(device.tier)
        load(net, {**state["weights"], **self._group(state, device.tier)})
        return net

    def variant(self, device: Device) -> Hashable:
        return key_of(self._steps(device.tier))

    def _steps(self, tier: str) -> Steps:
        assert self.steps is not None, "the experiment is resolved"
        return self.steps[tier]

    def _net(self, tier: str) -> nn.Module:
        """A fresh net of the tier at its depth. Raises ModelError for a net or steps that do not fit."""
        net = self.net(tier, odenet.add_time_channel if self.time_channel else None)
        self._set(net, self._steps(tier), f"method.steps.{tier}")
        return net

    def _set(self, net: nn.Module, steps: Steps, key: str = "steps") -> None:
        odenet.set_depth(net, steps, method=self.solver, step=self.step, checkpoint=self.checkpoint, key=key)

    def _split(self, net: nn.Module) -> tuple[Weights, Weights]:
        """(what all devices share, what those of equal steps share); nothing stands in both."""
        names = odenet.group_names(net) if self.norm_groups == "per_steps" else frozenset()
        found = weights_of(net)
        return {k: v for k, v in found.items() if k not in names}, {k: v for k, v in found.items() if k in names}

    def _group(self, state: State, tier: str) -> Weights:
        """γ_C of a tier; where there is none yet, the nearest C's norms, and step lengths of 1/C."""
        groups, key = state["groups"], key_of(self._steps(tier))
        if not groups or key in groups:
            return groups.get(key, {})
        net, near = self._net(tier), groups[nearest(key, list(groups))]
        lengths = odenet.step_names(net)
        return {name: fresh if name in lengths else near[name] for name, fresh in self._split(net)[1].items()}


def key_of(steps: Steps) -> str:
    """The name of a step count in a tree: ``4``, also for a list of nothing but 4, or ``2-4-8``."""
    counts = [steps] if isinstance(steps, int) else steps
    return "-".join(map(str, counts[:1] if len(set(counts)) == 1 else counts))


def nearest(key: str, known: Sequence[str]) -> str:
    """The key whose counts are nearest to those of ``key``, in ratio; of equally near ones the smallest."""
    counts = {one: [int(part) for part in one.split("-")] for one in [key, *known]}
    size = max(map(len, counts.values()))
    logs = {one: [math.log(count) for count in found * (size // len(found))] for one, found in counts.items()}

    def distance(one: str) -> float:  # rounded, or else log 2 and log 4 - log 2 might differ
        return round(sum(abs(a - b) for a, b in zip(logs[one], logs[key], strict=True)), 9)

    return min(known, key=lambda one: (distance(one), logs[one]))


METHODS = {"fedode": FedODE}
