"""FedDEQ: one equilibrium layer, and as many evaluations of its cell as a device can afford.

A. Gkillas, D. Ampeliotis, K. Berberidis, *Deep Equilibrium Models Meet Federated Learning*, EUSIPCO 2023, arXiv
2305.18646. "FedDEQ" is our name; the paper's fusion rule, cell and solver are not known to us: this is the mechanism.

    z* = f_θ(z*, x),  x = stem(image)                  z_K = solve(f_θ(·, x), z_0, K_i evaluations),  logits = head(z_K)
    θ_i = SGD(θ; data of i) at K_i evaluations          θ ← Σ_i w_i θ_i,  w_i ≥ 0,  Σ_i w_i = 1

| symbol | name | meaning |
|---|---|---|
| θ | ``weights`` | stem, cell and head; independent of K |
| K_i | ``steps`` | evaluations of the cell on device i, all counted, in training and evaluation alike |
| z_0 | ``z0`` | ``zero``, or ``input`` (z_0 = x) |
| n_i | ``samples`` | training samples |
| r_i | ``residual`` | mean of ‖f(z) - z‖ / ‖f(z)‖ in the last local epoch, at most 10 |
| w_i | ``fusion`` | proportional to n_i, n_i K_i^p, n_i exp(-β r_i), or ``calibrated`` (fusion.py) |

A reply is *unhealthy* if r_i > 1 or anything is not finite: it travels without weights and is left out, and the round
says so. ``calibrated`` fits on the even samples of the server and judges on the odd ones, at the largest K.

*Departures*, undone by ``profile = "faithful"`` (Anderson, implicit gradient and fusion by quality are our reading):
phantom gradients, for which the K evaluations serve value and gradient; plain iteration; ``fixed_point_loss`` γ adds
Σ_j γ^(K-j) L(head(z_j)) over the recorded z_j; ``jacobian_weight`` λ adds λ‖Jᵀε‖²/D in a quarter of the batches;
``random_steps`` trains half of them at some K' ≤ K_i. *Defaults*: ours; γ after torchdeq and DEQ-Flow.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NotRequired, TypedDict

from annotated_types import Ge, Le, Lt
from torch import Tensor, nn

from potluck.core import meter, tree
from potluck.core.contexts import DeviceContext, Reply, ServerContext
from potluck.core.errors import TrainingError
from potluck.core.options import IfServerData, Ladder, Setup
from potluck.core.spec import MOST_SAMPLES, Exactly, Number, OneOf, Spec, spec_of
from potluck.core.types import Device
from potluck.methods.checks import overrides, whole_weights
from potluck.methods.feddeq import equation, fusion
from potluck.methods.feddeq.monitor import Watch
from potluck.methods.protocol import Traits
from potluck.nets import deqnet
from potluck.nets.tier_nets import TierNets
from potluck.nets.weights import load, weights_of
from potluck.training.fit import Fit
from potluck.training.random_depth import at_depths

Weights = dict[str, Tensor]
Table = Mapping[str, str | int | float]
RECOMMENDED = {
    "solver": {"kind": "fixed_point", "damping": 1.0, "tol": 0.0},
    "gradient": {"kind": "phantom", "steps": 5, "damping": 1.0},
}
FAITHFUL = {
    "solver": {"kind": "anderson", "damping": 1.0, "history": 5, "ridge": 1e-6, "tol": 0.0},
    "gradient": {"kind": "ift", "steps": 8},
    "fusion": IfServerData("calibrated", "iterations"),
    "fixed_point_loss": 0.0,
    "train": {"lr": 0.01, "momentum": 0.9, "epochs": 1, "batch_size": 64},
}


class State(TypedDict):
    """On the server."""

    weights: Weights


class Broadcast(TypedDict):
    """On the way down."""

    weights: Weights
    steps: int


class Update(TypedDict):
    """On the way up; the weights of a healthy reply only."""

    weights: NotRequired[Weights]
    samples: int
    steps: int
    evaluations: int
    residual: float
    residual_p95: float
    healthy: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class FedDEQ:
    """one equilibrium layer, as many iterations of its cell as a device affords"""

    net: TierNets
    fit: Fit
    profile: Literal["recommended", "faithful"] = "recommended"
    z0: Literal["zero", "input"] = "zero"
    fusion: Literal["samples", "iterations", "residual", "calibrated"] = "samples"
    fusion_power: Annotated[float, Ge(0), Le(4)] = 1.0
    fusion_beta: Annotated[float, Ge(0), Le(100)] = 1.0
    fusion_steps: Annotated[int, Ge(10), Le(50)] = 25
    fixed_point_loss: Annotated[float, Ge(0), Lt(1)] = 0.8
    jacobian_weight: Annotated[float, Ge(0), Le(1e6)] = 0.0
    random_steps: bool = False
    solver: Table | None = None
    gradient: Table | None = None
    steps: Annotated[Mapping[str, int] | None, Ladder((2, 4, 8))] = None

    traits: ClassVar[Traits] = Traits(
        kind="deq", preset="deq-s-like", profiles={"recommended": RECOMMENDED, "faithful": FAITHFUL}
    )

    def check(self, setup: Setup) -> Sequence[str]:
        fusion.require_rule(self.fusion, setup)
        for tier in setup.tiers:
            self._net(tier)
        said = whole_weights(setup, "feddeq") + overrides(setup, self.profile, self.traits.profiles[self.profile])
        return said + equation.doubts(self._equation(), self.steps or {}, correction=self.fixed_point_loss)

    def initial_state(self, context: ServerContext) -> State:
        return {"weights": weights_of(self._net(context.devices[0].tier))}

    def broadcast(self, state: State, device: Device, context: ServerContext) -> Broadcast:
        return {"weights": state["weights"], "steps": self._steps(device.tier)}

    def train(self, local_state: None, broadcast: Broadcast, context: DeviceContext) -> tuple[None, Update]:
        steps, samples = broadcast["steps"], len(context.data)
        net = self.net.borrow(steps, broadcast["weights"], lambda: self._net(context.device.tier))
        watch = Watch(math.ceil(samples / self.fit.batch_size), steps)
        objective = watch.objective(self.fit.loss, self.fixed_point_loss, self.jacobian_weight, context.rng("jacobian"))
        rng = context.rng("random steps") if self.random_steps else None
        try:
            self.fit.train(net, context, objective=at_depths(objective, self._set, steps, rng))
            finite = watch.finite
        except TrainingError:  # of a loss that is not finite
            finite = False
        weights = weights_of(net)
        finite, (mean, p95) = finite and all(map(tree.finite, weights.values())), watch.residuals()
        healthy = finite and mean <= fusion.UNHEALTHY
        meter.note("grad_steps", watch.grad_steps)
        if healthy and mean > fusion.DOUBTFUL:
            meter.note(f"residual above {fusion.DOUBTFUL:g}", mean)
        update: Update = {
            "samples": samples,
            "steps": steps,
            "evaluations": watch.evaluations,
            "residual": min(mean, fusion.CLIP) if finite else fusion.CLIP,
            "residual_p95": min(p95, fusion.CLIP) if finite else fusion.CLIP,
            "healthy": healthy,
        }
        return None, {**update, "weights": weights} if healthy else update

    def update_spec(self, state: State, device: Device, context: ServerContext) -> Spec:
        counter, size = Number(kind=int, low=0, high=MOST_SAMPLES), Number(kind=float, low=0, high=fusion.CLIP)
        return {
            "weights": OneOf((spec_of(state["weights"]), {})),
            "samples": counter,
            "steps": Exactly(value=self._steps(device.tier)),
            "evaluations": counter,
            "residual": size,
            "residual_p95": size,
            "healthy": Number(kind=bool, low=0, high=1),
        }

    def aggregate(self, state: State, replies: Iterable[Reply[Update]], context: ServerContext) -> State:
        sound = ((update["weights"], self._share(update)) for update in fusion.sound(replies))
        if self.fusion == "calibrated":
            assert context.held is not None, "checked before the run"
            net = self._net(max(self.steps or {}, key=self._steps))
            found = fusion.calibrated_mean(sound, net, context.held, self.fit.loss, self.fusion_steps)
        else:
            found = fusion.mean(sound)
        return state if found is None else {"weights": found}

    def _share(self, update: Update) -> float:
        of = update["samples"], update["steps"], update["residual"]
        return fusion.share(self.fusion, *of, power=self.fusion_power, beta=self.fusion_beta)

    def model(self, state: State, local_state: None, device: Device) -> nn.Module:
        net = self._net(device.tier)
        load(net, state["weights"])
        return net

    def variant(self, device: Device) -> Hashable:
        return self._steps(device.tier)

    def _steps(self, tier: str) -> int:
        return (self.steps or {})[tier]

    def _equation(self) -> equation.Equation:
        return equation.equation_of(self.solver or RECOMMENDED["solver"], self.gradient or RECOMMENDED["gradient"])

    def _net(self, tier: str) -> nn.Module:
        """A fresh net of the tier at its depth. Raises ModelError for a net or steps that do not fit."""
        net = self.net(tier)
        self._set(net, self._steps(tier), f"method.steps.{tier}")
        return net

    def _set(self, net: nn.Module, steps: int, key: str = "steps") -> None:
        use = self._equation()
        deqnet.set_depth(net, steps, solver=use.solver, gradient=use.gradient, tol=use.tol, z0=self.z0, key=key)
