"""FedDLR: low-rank messages in both directions, whose ranks adapt, and a compact model at the end.

Z. Qiao, X. Yu, J. Zhang, K. B. Letaief, *Communication-Efficient Federated Learning with Dual-Side Low-Rank
Compression*, 2021, arXiv 2104.12416. We know of no public implementation, and much below is our reading of it.

    T_p(W): the truncated SVD of least rank r with Σ_{i≤r} σ_i² ≥ p Σ_i σ_i²;   (A, B) its factors  (packing.py)
    broadcast:  T_{p_s}(W), or the step T_{p_s}(W - X) to the model X that devices hold           (reference.py)
                the device rebuilds W' = A B, or its X, and trains it in full form to W_k
    update:     T_{p_c}(W_k)   or   T_{p_c}(W_k - W' + e_k),   e_k ← what was cut off
    aggregate:  W ← T_{p_s}(Σ_k n_k A_k B_k / Σ n_k)   or   W ← W + Σ_k n_k A_k B_k / Σ n_k

| symbol | name | meaning |
|---|---|---|
| W | ``state["weights"]`` | packed: truncated with ``target = "weight"``, full with "update" |
| p_s, p_c | ``p_server``, ``p_client`` | energy kept on the way down and up; 1: dense, no SVD |
| – | ``p_model`` | energy of W that the deployed model keeps, with ``target = "update"`` |
| A, B | ``a``, ``b`` | P_r √S_r (m, r) and √S_r Q_rᵀ (r, n); a tensor is ``dense`` where they are not smaller |
| e_k | ``local_state["residual"]`` | error-feedback memory, in full shape, on the device |

*Departures*: ``target = "update"`` (default), because truncating weights erases what is small beside them; error
feedback, whose memory is dropped at ``residual_max_age``; ``down = "update"`` (default), as weights hardly ever have a
low rank and their updates do. *Defaults*: all ours; ``faithful`` is our reading of the paper.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NotRequired, TypedDict

import torch
from annotated_types import Ge, Predicate
from torch import Tensor, nn

from potluck.core import meter, tree
from potluck.core.contexts import DeviceContext, Reply, ServerContext
from potluck.core.errors import ConfigError, ModelError
from potluck.core.options import Setup
from potluck.core.spec import SAMPLES, Spec
from potluck.core.types import Device
from potluck.lowrank.layers import full_layers
from potluck.methods.checks import require_effect, require_lossless_down, require_no_sparse
from potluck.methods.feddlr.packing import (
    Packed,
    PackedMean,
    Shapes,
    from_packed,
    largest_rank,
    left_out,
    pack,
    packed_spec,
    unpack,
)
from potluck.methods.feddlr.reference import Message as Told
from potluck.methods.feddlr.reference import Reference, Weights, advance, begin, follow, message
from potluck.methods.protocol import Traits
from potluck.nets.tier_nets import TierNets
from potluck.nets.weights import weights_of
from potluck.training.fit import Fit

FAITHFUL: Mapping[str, Any] = {
    "target": "weight",
    "down": "weight",
    "p_server": 0.95,
    "p_client": 0.95,
    "error_feedback": False,
    "dense_rounds": 0,
    "train": {"lr": 0.05, "momentum": 0.9, "epochs": 1, "batch_size": 64},
}
STALL = (
    'target = "weight" with p_client < 1: once updates are small beside the weights, truncation erases them and '
    'training stalls; "update" does not'
)
CYCLE = (
    'target = "update" and down = "weight" with p_server < 0.99: the server adds along directions that devices never '
    'see, and its weights cycle; raise p_server to 0.999, or choose down = "update"'
)


def _is_share(value: float) -> bool:
    if not 0 < value <= 1:
        hint = f" Did you mean {value / 100:g}?" if 1 < value <= 100 else ""
        raise ValueError(f"expected a share of energy, 0 < p <= 1.{hint}")
    return True


Energy = Annotated[float, Predicate(_is_share)]


class Message(TypedDict):
    """On the way down: name -> {"a", "b"} or {"dense"}; with ``down = "update"`` a ``Told``: that, or steps of it."""

    weights: Packed


class State(Message):
    """On the server; with ``down = "update"`` beside it what the devices hold."""

    reference: NotRequired[Reference]


class Update(Message):
    """On the way up: the packed weights, or their update."""

    samples: int


class LocalState(TypedDict, total=False):
    """On the device: what the last replies left out, and the round of the last one; the model it trained from."""

    residual: Weights
    round: int
    reference: Weights


@dataclass(frozen=True, slots=True, kw_only=True)
class FedDLR:
    """truncated messages on both sides, a compact model"""

    net: TierNets
    fit: Fit
    profile: Literal["faithful", "recommended"] = "recommended"
    target: Literal["weight", "update"] = "update"
    down: Literal["weight", "update"] = "update"
    p_server: Energy = 0.7
    p_model: Energy = 0.999
    p_client: Energy = 0.7
    energy: Literal["squared", "plain"] = "squared"
    flatten: Literal["o_ikk", "ok_ik"] = "o_ikk"
    error_feedback: bool = True
    residual_max_age: Annotated[int, Ge(1)] = 20
    dense_rounds: Annotated[int, Ge(0)] = 0
    compact: bool = True

    traits: ClassVar[Traits] = Traits(profiles={"recommended": {}, "faithful": FAITHFUL})

    def check(self, setup: Setup) -> Sequence[str]:
        _require_consistent(self, setup)
        require_no_sparse(setup, "feddlr", "its messages are factors, whose coordinates change meaning each round")
        if self.down == "update":
            require_lossless_down(setup, 'down = "update"', 'down = "weight"')
        shapes = {name: tuple(w.shape) for name, w in self.net(setup.tiers[0]).state_dict().items()}
        if not any(largest_rank(shape, self.flatten) for shape in shapes.values()):
            raise ModelError(f"feddlr: the net has no matrix that factors make smaller ({', '.join(shapes)})")
        return _doubts(self, setup)

    def _share(self, share: float, round: int) -> float:
        return 1.0 if round <= self.dense_rounds else share

    def _shapes(self, tier: str) -> Shapes:
        return self.net.shapes(tier, lambda: self.net(tier))

    def _pack(self, weights: Mapping[str, Tensor], share: float) -> Packed:
        return pack(weights, share, self.energy, self.flatten)

    def initial_state(self, context: ServerContext) -> State:
        weights = weights_of(self.net(context.devices[0].tier))
        share = self._share(self.p_server, 1) if self.target == "weight" else 1.0
        state: State = {"weights": self._pack(weights, share)}
        return {**state, "reference": begin(weights)} if self.down == "update" else state

    def broadcast(self, state: State, device: Device, context: ServerContext) -> Message | Told:
        share = self._share(self.p_server, context.round)
        if self.down == "update":
            return message(state["reference"], device.id)
        if self.target == "weight" or share == 1:
            return {"weights": state["weights"]}

        def compute() -> Message:
            return {"weights": self._pack(_dense(state), share)}

        made: Message = context.once("feddlr down", compute)
        return made

    def train(
        self, local_state: LocalState | None, broadcast: Message | Told, context: DeviceContext
    ) -> tuple[LocalState | None, Update]:
        share, held, kept = self._share(self.p_client, context.round), local_state or LocalState(), LocalState()
        received = self._received(held, broadcast, context.device.tier)
        net = self.net.with_weights(context.device.tier, received)
        trained = self.fit.train(net, context)
        change = weights_of(net)
        if self.target == "update":
            change = tree.subtract(change, received)
            if self.error_feedback and "residual" in held and context.round - held["round"] <= self.residual_max_age:
                change |= {name: change[name] + e for name, e in held["residual"].items()}
        packed = self._pack(change, share)
        if self.error_feedback:
            kept = {"residual": left_out(change, packed, self.flatten), "round": context.round}
            meter.note("residual over update", tree.norm(kept["residual"]) / max(tree.norm(change), 1e-30))
        if self.down == "update":
            kept["reference"] = received
        return kept or None, {"weights": packed, "samples": trained.samples}

    def _received(self, local_state: LocalState, broadcast: Any, tier: str) -> Weights:
        """The weights to train from."""
        if self.down == "update":
            return follow(local_state.get("reference"), broadcast, self.flatten)
        return unpack(broadcast["weights"], self._shapes(tier), self.flatten)

    def update_spec(self, state: State, device: Device, context: ServerContext) -> Spec:
        weights = {name: node.get("dense") for name, node in state["weights"].items()}
        shapes = self._shapes(device.tier)
        like = {n: torch.empty(shapes[n], device="meta") if w is None else w for n, w in weights.items()}
        dense = self._share(self.p_client, context.round) == 1
        return {"weights": packed_spec(like, self.flatten, dense=dense), "samples": SAMPLES}

    def aggregate(self, state: State, replies: Iterable[Reply[Update]], context: ServerContext) -> State:
        mean, answered = PackedMean(self._shapes(context.devices[0].tier), self.flatten), []
        for reply in replies:
            mean.add(reply.update["weights"], float(reply.update["samples"]))
            answered.append(reply.device.id)
        if not answered:
            return state
        share = self._share(self.p_server, context.round + 1)
        if self.target == "weight":
            return {"weights": mean.result(share, self.energy)}
        change = {name: node["dense"] for name, node in mean.result(1.0, self.energy).items()}
        moved = tree.add(_dense(state), change)
        weights = {name: w if w.is_floating_point() else change[name] for name, w in moved.items()}
        after: State = {"weights": {name: {"dense": w} for name, w in weights.items()}}
        if self.down == "update":
            after["reference"] = advance(state["reference"], weights, answered, share, self.energy, self.flatten)
        return after

    def model(self, state: State, local_state: None, device: Device) -> nn.Module:
        packed, net = state["weights"], self.net(device.tier)
        if self.target == "update":
            packed = self._pack(_dense(state), self.p_model)
        return from_packed(net, packed, self.flatten, small=self.compact)

    def variant(self, device: Device) -> Hashable:
        return "one model for all"


def _dense(state: State) -> Weights:
    """The server's full weights."""
    return {name: node["dense"] for name, node in state["weights"].items()}


def _require_consistent(method: Any, setup: Setup) -> None:
    """Raises ConfigError for options of FedDLR that contradict one another, or that have no effect."""
    idle: dict[str, str] = {}
    if method.p_server == method.p_client == 1:
        idle |= dict.fromkeys(("energy", "flatten", "dense_rounds"), "p_server = p_client = 1")
    if method.target == "weight":
        idle["p_model"] = 'target = "weight", whose model is that of p_server'
    if (method.p_server if method.target == "weight" else method.p_model) == 1:
        idle["compact"] = "p_server = 1" if method.target == "weight" else "p_model = 1"
    if not method.error_feedback and "residual_max_age" in setup.given:
        raise ConfigError("method.residual_max_age has no effect without error_feedback; remove it.")
    require_effect(setup.given, idle)
    if method.target == "update":
        return
    if method.error_feedback:
        raise ConfigError(
            'method.error_feedback = true needs target = "update": with weights the stored residual makes the '
            "server jump. Set error_feedback = false."
        )
    if method.down == "update":
        raise ConfigError(
            'method.down = "update" needs target = "update": the server sends what its full weights have moved, and '
            'with target = "weight" it has none. Set down = "weight".'
        )


def _doubts(method: Any, setup: Setup) -> list[str]:
    """Warnings about a legal but doubtful choice of FedDLR's options."""
    told = full_layers(method.net(setup.tiers[0])) if method.compact else []
    if method.target == "weight" and method.p_client < 1:
        told.append(STALL)
    if method.target == "update" and method.down == "weight" and method.p_server < 0.99:
        told.append(CYCLE)
    if 0 < setup.rounds <= method.dense_rounds and not method.p_server == method.p_client == 1:
        told.append(f"dense_rounds = {method.dense_rounds} of {setup.rounds} rounds: nothing is ever compressed")
    return told
