"""FedDLR: low-rank messages in both directions, whose ranks adapt, and a compact model at the end.

Z. Qiao, X. Yu, J. Zhang, K. B. Letaief, *Communication-Efficient Federated Learning with Dual-Side Low-Rank
Compression*, 2021, arXiv 2104.12416. We know of no public implementation, and much below is our reading of it.

    T_p(W): the truncated SVD of least rank r with Σ_{i≤r} σ_i² ≥ p Σ_i σ_i²;   (A, B) its factors  (models/packing.py)
    down:   T_{p_s}(W), or the step T_{p_s}(W - X) to the model X that devices hold           (models/reference.py)
            the device rebuilds W' = A B, or its X, and trains it in full form to W_k
    up:     T_{p_c}(W_k)   or   T_{p_c}(W_k - W' + e_k),   e_k ← what was cut off
    merge:  W ← T_{p_s}(Σ_k n_k A_k B_k / Σ n_k)   or   W ← W + Σ_k n_k A_k B_k / Σ n_k

| symbol | name | meaning |
|---|---|---|
| W | ``state["weights"]`` | packed: truncated with ``target = "weight"``, full with "update" |
| p_s, p_c | ``p_server``, ``p_client`` | energy kept on the way down and up; 1: dense, no SVD |
| – | ``p_model`` | energy of W that the deployed model keeps, with ``target = "update"`` |
| A, B | ``a``, ``b`` | P_r √S_r (m, r) and √S_r Q_rᵀ (r, n); a tensor is ``dense`` where they are not smaller |
| e_k | ``own["residual"]`` | error-feedback memory, in full shape, on the device |

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
from potluck.core.errors import ModelError
from potluck.core.spec import Number, Spec
from potluck.core.types import Desk, Device, Reply, Setup, Task
from potluck.methods.lowrank_options import FEDDLR, doubts_of_feddlr, is_share, refuse_feddlr
from potluck.methods.protocol import Traits
from potluck.methods.refuse import demand_lossless_down, demand_no_topk
from potluck.models.fit import Fit
from potluck.models.lowrank import from_packed
from potluck.models.nets import Nets, weights_of
from potluck.models.packing import Packed, PackedMean, Shapes, largest_rank, left_out, pack, packed_spec, unpack
from potluck.models.reference import Message as Told
from potluck.models.reference import Reference, Weights, advance, begin, follow, message

MOST_SAMPLES = 2**40
Energy = Annotated[float, Predicate(is_share)]


class Message(TypedDict):
    """On the way down: name -> {"a", "b"} or {"dense"}; with ``down = "update"`` a ``Told``: that, or steps of it."""

    weights: Packed


class State(Message):
    """On the server; with ``down = "update"`` beside it what the devices hold."""

    reference: NotRequired[Reference]


class Up(Message):
    """On the way up: the packed weights, or their update."""

    samples: int


class Own(TypedDict, total=False):
    """On the device: what the last replies left out, and the round of the last one; the model it trained from."""

    residual: Weights
    round: int
    reference: Weights


@dataclass(frozen=True, slots=True, kw_only=True)
class FedDLR:
    """truncated messages on both sides, a compact model"""

    net: Nets
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

    traits: ClassVar[Traits] = Traits(profiles={"recommended": {}, "faithful": FEDDLR})

    def check(self, setup: Setup) -> Sequence[str]:
        refuse_feddlr(self, setup)
        demand_no_topk(setup, "feddlr", "its messages are factors, whose coordinates change meaning each round")
        if self.down == "update":
            demand_lossless_down(setup, 'down = "update"', 'down = "weight"')
        shapes = {name: tuple(w.shape) for name, w in self.net(setup.tiers[0]).state_dict().items()}
        if not any(largest_rank(shape, self.flatten) for shape in shapes.values()):
            raise ModelError(f"feddlr: the net has no matrix that factors make smaller ({', '.join(shapes)})")
        return doubts_of_feddlr(self, setup)

    def _share(self, share: float, round: int) -> float:
        return 1.0 if round <= self.dense_rounds else share

    def _shapes(self, tier: str) -> Shapes:
        return self.net.shapes(tier, lambda: self.net(tier))

    def _pack(self, weights: Mapping[str, Tensor], share: float) -> Packed:
        return pack(weights, share, self.energy, self.flatten)

    def start(self, desk: Desk) -> State:
        weights = weights_of(self.net(desk.devices[0].tier))
        share = self._share(self.p_server, 1) if self.target == "weight" else 1.0
        state: State = {"weights": self._pack(weights, share)}
        return {**state, "reference": begin(weights)} if self.down == "update" else state

    def cast(self, state: State, device: Device, desk: Desk) -> Message | Told:
        share = self._share(self.p_server, desk.round)
        if self.down == "update":
            return message(state["reference"], device.id)
        if self.target == "weight" or share == 1:
            return {"weights": state["weights"]}

        def compute() -> Message:
            return {"weights": self._pack(_dense(state), share)}

        made: Message = desk.once("feddlr down", compute)
        return made

    def train(self, own: Own | None, down: Message | Told, task: Task) -> tuple[Own | None, Up]:
        share, held, kept = self._share(self.p_client, task.round), own or Own(), Own()
        received = self._received(held, down, task.device.tier)
        net = self.net.loaded(task.device.tier, received)
        trained = self.fit.train(net, task)
        change = weights_of(net)
        if self.target == "update":
            change = tree.subtract(change, received)
            if self.error_feedback and "residual" in held and task.round - held["round"] <= self.residual_max_age:
                change |= {name: change[name] + e for name, e in held["residual"].items()}
        packed = self._pack(change, share)
        if self.error_feedback:
            kept = {"residual": left_out(change, packed, self.flatten), "round": task.round}
            meter.note("residual over update", tree.norm(kept["residual"]) / max(tree.norm(change), 1e-30))
        if self.down == "update":
            kept["reference"] = received
        return kept or None, {"weights": packed, "samples": trained.samples}

    def _received(self, own: Own, down: Any, tier: str) -> Weights:
        """The weights to train from."""
        if self.down == "update":
            return follow(own.get("reference"), down, self.flatten)
        return unpack(down["weights"], self._shapes(tier), self.flatten)

    def expect(self, state: State, device: Device, desk: Desk) -> Spec:
        weights = {name: node.get("dense") for name, node in state["weights"].items()}
        shapes = self._shapes(device.tier)
        like = {n: torch.empty(shapes[n], device="meta") if w is None else w for n, w in weights.items()}
        dense = self._share(self.p_client, desk.round) == 1
        samples = Number(kind=int, low=1, high=MOST_SAMPLES)
        return {"weights": packed_spec(like, self.flatten, dense=dense), "samples": samples}

    def merge(self, state: State, replies: Iterable[Reply[Up]], desk: Desk) -> State:
        mean, answered = PackedMean(self._shapes(desk.devices[0].tier), self.flatten), []
        for reply in replies:
            mean.add(reply.up["weights"], float(reply.up["samples"]))
            answered.append(reply.device.id)
        if not answered:
            return state
        share = self._share(self.p_server, desk.round + 1)
        if self.target == "weight":
            return {"weights": mean.result(share, self.energy)}
        change = {name: node["dense"] for name, node in mean.result(1.0, self.energy).items()}
        moved = tree.add(_dense(state), change)
        weights = {name: w if w.is_floating_point() else change[name] for name, w in moved.items()}
        after: State = {"weights": {name: {"dense": w} for name, w in weights.items()}}
        if self.down == "update":
            after["reference"] = advance(state["reference"], weights, answered, share, self.energy, self.flatten)
        return after

    def model(self, state: State, own: None, device: Device) -> nn.Module:
        packed, net = state["weights"], self.net(device.tier)
        if self.target == "update":
            packed = self._pack(_dense(state), self.p_model)
        return from_packed(net, packed, self.flatten, small=self.compact)

    def variant(self, device: Device) -> Hashable:
        return "one model for all"


def _dense(state: State) -> Weights:
    """The server's full weights."""
    return {name: node["dense"] for name, node in state["weights"].items()}
