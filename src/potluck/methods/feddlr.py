"""FedDLR: low-rank messages in both directions, whose ranks adapt, and a compact model at the end.

Z. Qiao, X. Yu, J. Zhang, K. B. Letaief, *Communication-Efficient Federated Learning with Dual-Side Low-Rank
Compression*, 2021, arXiv 2104.12416. We know of no public implementation, and much below is our reading of it.

    T_p(W): the truncated SVD of least rank r with Σ_{i≤r} σ_i² ≥ p Σ_i σ_i²;   (A, B) its factors  (models/packing.py)
    down:   T_{p_s}(W);  the device rebuilds W' = A B and trains it in full form to W_k
    up:     T_{p_c}(W_k)   or   T_{p_c}(W_k - W' + e_k),   e_k ← what was cut off
    merge:  W ← T_{p_s}(Σ_k n_k A_k B_k / Σ n_k)   or   W ← W + Σ_k n_k A_k B_k / Σ n_k

| symbol | name | meaning |
|---|---|---|
| W | ``state["weights"]`` | packed: truncated with ``target = "weight"``, full with "update" |
| p_s, p_c | ``p_server``, ``p_client`` | energy kept on the way down and up; 1: dense, no SVD |
| A, B | ``a``, ``b`` | P_r √S_r (m, r) and √S_r Q_rᵀ (r, n); a tensor is ``dense`` where they are not smaller |
| e_k | ``own["residual"]`` | error-feedback memory, in full shape, on the device |

*Departures*: ``target = "update"`` (default), because truncating weights erases what is small beside them; error
feedback, whose memory is dropped at ``residual_max_age``; dense first rounds, as a fresh weight is not low-rank.
*Defaults*: all ours; ``faithful`` is our reading of the paper.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, TypedDict

import torch
from annotated_types import Ge, Predicate
from torch import Tensor, nn

from potluck.core import meter, tree
from potluck.core.errors import ConfigError, ModelError
from potluck.core.spec import Number, Spec
from potluck.core.types import Desk, Device, Reply, Setup, Task
from potluck.methods.lowrank_options import CYCLE, FEDDLR, STALL, is_share
from potluck.methods.protocol import Traits
from potluck.methods.refuse import demand_effect, demand_no_topk
from potluck.models.fit import Fit
from potluck.models.keep_full import candidates
from potluck.models.lowrank import low_rank, with_factors
from potluck.models.nets import Nets, load, weights_of
from potluck.models.packing import Packed, PackedMean, Shapes, largest_rank, pack, packed_spec, unpack

MOST_SAMPLES = 2**40
Energy = Annotated[float, Predicate(is_share)]


class Message(TypedDict):
    """The state, and on the way down: name -> {"a", "b"} or {"dense"}."""

    weights: Packed


class Up(Message):
    """On the way up: the packed weights, or their update."""

    samples: int


class Own(TypedDict):
    """On the device: what the last replies left out, and the round of the last one."""

    residual: dict[str, Tensor]
    round: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FedDLR:
    """truncated messages on both sides, a compact model"""

    net: Nets
    fit: Fit
    profile: Literal["faithful", "recommended"] = "recommended"
    target: Literal["weight", "update"] = "update"
    p_server: Energy = 0.999
    p_client: Energy = 0.95
    energy: Literal["squared", "plain"] = "squared"
    flatten: Literal["o_ikk", "ok_ik"] = "o_ikk"
    error_feedback: bool = True
    residual_max_age: Annotated[int, Ge(1)] = 20
    dense_rounds: Annotated[int, Ge(0)] = 5
    compact: bool = True

    traits: ClassVar[Traits] = Traits(profiles={"recommended": {}, "faithful": FEDDLR})

    def check(self, setup: Setup) -> Sequence[str]:
        dense_both = self.p_server == self.p_client == 1
        idle: dict[str, str] = {}
        if dense_both:
            idle |= dict.fromkeys(("energy", "flatten", "dense_rounds"), "p_server = p_client = 1")
        if self.p_server == 1:
            idle["compact"] = "p_server = 1"
        if "residual_max_age" in setup.given and not self.error_feedback:
            raise ConfigError("method.residual_max_age has no effect without error_feedback; remove it.")
        demand_effect(setup.given, idle)
        demand_no_topk(setup, "feddlr", "its messages are factors, whose coordinates change meaning each round")
        if self.error_feedback and self.target == "weight":
            raise ConfigError(
                'method.error_feedback = true needs target = "update": with weights the stored residual makes the '
                "server jump. Set error_feedback = false."
            )
        shapes = {name: tuple(w.shape) for name, w in self.net(setup.tiers[0]).state_dict().items()}
        if not any(largest_rank(shape, self.flatten) for shape in shapes.values()):
            raise ModelError(f"feddlr: the net has no matrix that factors make smaller ({', '.join(shapes)})")
        told = []
        if self.target == "weight" and self.p_client < 1:
            told.append(STALL)
        if self.target == "update" and self.p_server < 0.99:
            told.append(CYCLE)
        if 0 < setup.rounds <= self.dense_rounds and not dense_both:
            told.append(f"dense_rounds = {self.dense_rounds} of {setup.rounds} rounds: nothing is ever compressed")
        return told

    def _share(self, share: float, round: int) -> float:
        return 1.0 if round <= self.dense_rounds else share

    def _shapes(self, tier: str) -> Shapes:
        return self.net.shapes(tier, lambda: self.net(tier))

    def _pack(self, weights: Mapping[str, Tensor], share: float) -> Packed:
        return pack(weights, share, self.energy, self.flatten)

    def start(self, desk: Desk) -> Message:
        share = self._share(self.p_server, 1) if self.target == "weight" else 1.0
        return {"weights": self._pack(weights_of(self.net(desk.devices[0].tier)), share)}

    def cast(self, state: Message, device: Device, desk: Desk) -> Message:
        share = self._share(self.p_server, desk.round)
        if self.target == "weight" or share == 1:
            return state

        def compute() -> Message:
            return {"weights": self._pack({name: node["dense"] for name, node in state["weights"].items()}, share)}

        made: Message = desk.once("feddlr down", compute)
        return made

    def train(self, own: Own | None, down: Message, task: Task) -> tuple[Own | None, Up]:
        tier, share = task.device.tier, self._share(self.p_client, task.round)
        received = unpack(down["weights"], self._shapes(tier), self.flatten)
        net = self.net.loaded(tier, received)
        trained = self.fit.train(net, task)
        found = weights_of(net)
        if self.target == "weight":
            return None, {"weights": self._pack(found, share), "samples": trained.samples}
        change = tree.subtract(found, received)
        if own is not None and self.error_feedback and task.round - own["round"] <= self.residual_max_age:
            change |= {name: change[name] + e for name, e in own["residual"].items()}
        packed = self._pack(change, share)
        up: Up = {"weights": packed, "samples": trained.samples}
        if not self.error_feedback:
            return None, up
        factored = {name: node for name, node in packed.items() if "a" in node}
        sent = unpack(factored, self._shapes(tier), self.flatten)
        residual = {name: change[name] - c for name, c in sent.items()}
        meter.note("residual over update", tree.norm(residual) / max(tree.norm(change), 1e-30))
        return {"residual": residual, "round": task.round}, up

    def expect(self, state: Message, device: Device, desk: Desk) -> Spec:
        weights = {name: node.get("dense") for name, node in state["weights"].items()}
        shapes = self._shapes(device.tier)
        like = {n: torch.empty(shapes[n], device="meta") if w is None else w for n, w in weights.items()}
        dense = self._share(self.p_client, desk.round) == 1
        samples = Number(kind=int, low=1, high=MOST_SAMPLES)
        return {"weights": packed_spec(like, self.flatten, dense=dense), "samples": samples}

    def merge(self, state: Message, replies: Iterable[Reply[Up]], desk: Desk) -> Message:
        mean = PackedMean(self._shapes(desk.devices[0].tier), self.flatten)
        for reply in replies:
            mean.add(reply.up["weights"], float(reply.up["samples"]))
        if not mean:
            return state
        if self.target == "weight":
            return {"weights": mean.result(self._share(self.p_server, desk.round + 1), self.energy)}
        change = {name: node["dense"] for name, node in mean.result(1.0, self.energy).items()}
        before = {name: node["dense"] for name, node in state["weights"].items()}
        moved = tree.add(before, change)
        return {"weights": {n: {"dense": w if w.is_floating_point() else change[n]} for n, w in moved.items()}}

    def model(self, state: Message, own: None, device: Device) -> nn.Module:
        packed, net = state["weights"], self.net(device.tier)
        if self.target == "update":
            packed = self._pack({name: node["dense"] for name, node in packed.items()}, self.p_server)
        pairs = {layer: packed[f"{layer}.weight"] for layer in candidates(net)} if self.compact else {}
        pairs = {layer: node for layer, node in pairs.items() if "a" in node}
        small = low_rank(net, {layer: node["a"].shape[1] for layer, node in pairs.items()}, self.flatten)
        whole = {name: node for name, node in packed.items() if name.removesuffix(".weight") not in pairs}
        weights = unpack(whole, self._shapes(device.tier), self.flatten)
        u, v = ({layer: node[part] for layer, node in pairs.items()} for part in ("a", "b"))
        load(small, with_factors(weights, u, v))
        return small

    def variant(self, device: Device) -> Hashable:
        return "one model for all"
