"""FedHM: one full model at the server, low-rank copies of different rank on the devices.

D. Yao, W. Pan, M. J. O'Neill, Y. Dai, Y. Wan, H. Jin, L. Sun, *FedHM: Efficient Federated Learning for Heterogeneous
Models via Low-rank Factorization*, 2021, arXiv 2111.14655.

    initial_state   M ← T_r(M) ‖M‖ / ‖T_r(M)‖, r the rank of the weakest tier                       ("low_rank"; ours)
    broadcast       M = P S Qᵀ;   U = P_r √S_r,   V = √S_r Q_rᵀ,   r = max(round(O / f), 1)        M: (O·k) × (I·k)
    train           loss + (λ/2) ‖U V‖²_F:   dU += λ U V Vᵀ,   dV += λ Uᵀ U V
    aggregate       M_k = U_k V_k;   M ← Σ_k w_k M_k                            ("replace"; the others: lowrank/fuse.py)

| symbol | name | meaning |
|---|---|---|
| M | ``state["weights"]`` | full weights, on the server and on devices of f = 1 |
| U, V | ``u``, ``v`` | factors on the wire, which run as two small layers |
| f | ``rank_factor`` | 1/γ of the paper; 1: the full net, no SVD |
| λ | ``frobenius`` | decay of the product |
| w_k, T | ``weighting``, ``temperature`` | n_k ("samples"), exp(-f_k / T) ("size_softmax"), or their product |

*Departures*: ``delta`` (default) merges changes; what a small device was not sent fades by ``retention``, and with
``replace`` by its whole share. In fresh weights that part is noise: hence the low-rank start. A layer is dense where
its rank does not pay. The randomised SVD may leave 1 % more error; ``model`` takes the best. ``keep_history`` counts W
as the mean reply's samples. *Defaults*: ``faithful`` is the authors' code (schedule: CIFAR-10); ``recommended`` ours.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NotRequired, TypedDict

from annotated_types import Ge, Gt, Le, Predicate
from torch import Tensor, nn

from potluck.core import meter
from potluck.core.contexts import DeviceContext, Reply, ServerContext
from potluck.core.options import Ladder, Setup
from potluck.core.spec import SAMPLES, Exactly, Integers, Spec, spec_of
from potluck.core.types import Device
from potluck.lowrank.factorise import add_decay_gradient, add_frobenius_gradient, factorise, low_rank, with_factors
from potluck.lowrank.fuse import reply_weight
from potluck.lowrank.layers import dense_layers, factorisable, ranks_by_factor
from potluck.lowrank.spectra import Spectra
from potluck.methods.checks import require_effect, require_lossless_down, require_no_sparse
from potluck.methods.protocol import Traits
from potluck.nets.tier_nets import TierNets
from potluck.nets.weights import load, weights_of
from potluck.training.fit import Fit
from potluck.training.labels import classifier_tensors, masked, present

Weights = dict[str, Tensor]
FAITHFUL: Mapping[str, Any] = {
    "aggregation": "replace",
    "initial": "full",
    "weighting": "uniform",
    "temperature": 1.0,
    "l2_on_factors": 1e-4,
    "keep_history": True,
    "mask_labels": True,
    "classifier_rows": "paper",
    "train": {"lr": 0.1, "batch_size": 64, "epochs": 10, "weight_decay": 1e-4}
    | {"schedule": "step", "milestones": [100, 150]},
    "model": {"norm": "batch_stat"},
}
COLLAPSE = (
    'aggregation = "replace" with unequal rank factors: the model collapses to the smallest rank, because each round '
    'shrinks what small devices were not sent; "delta" does not'
)


def _is_factor(value: float) -> bool:
    if not 1 <= value <= 64:
        raise ValueError("expected a number from 1 (full) to 64.")
    return True


class State(TypedDict):
    """On the server."""

    weights: Weights


class Broadcast(TypedDict):
    """On the way down: tensors that stay full, and the factors of the others."""

    full: Weights
    u: Weights
    v: Weights


class Update(Broadcast):
    """On the way up: the same, trained; and the classes at hand, where rows of the classifier depend on them."""

    rank_factor: float
    samples: int
    labels: NotRequired[list[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class FedHM:
    """low-rank copies of unequal rank, fused into one full model"""

    net: TierNets
    fit: Fit
    profile: Literal["faithful", "recommended"] = "recommended"
    aggregation: Literal["replace", "delta", "rank_partitioned"] = "delta"
    retention: Annotated[float, Ge(0), Le(1)] = 0.9
    initial: Literal["low_rank", "full"] = "low_rank"
    weighting: Literal["uniform", "samples", "size_softmax", "samples_size"] = "samples"
    temperature: Annotated[float, Gt(0)] = 8.0
    frobenius: Annotated[float, Ge(0)] = 1e-4
    l2_on_factors: Annotated[float, Ge(0)] = 0.0
    keep_full: Literal["auto"] | list[str] = "auto"
    keep_history: bool = False
    mask_labels: bool = False
    classifier_rows: Literal["all", "renormalised", "paper"] = "renormalised"
    rank_factor: Annotated[Mapping[str, Annotated[float, Predicate(_is_factor)]] | None, Ladder((8.0, 4.0, 1.0))] = None

    traits: ClassVar[Traits] = Traits(profiles={"recommended": {}, "faithful": FAITHFUL})

    def check(self, setup: Setup) -> Sequence[str]:
        factors = {tier: self._factor(tier) for tier in setup.tiers}
        require_effect(setup.given, _idle_options(self, set(factors.values())))
        require_no_sparse(setup, "fedhm", "after each factorisation the coordinates mean something else")
        if self.aggregation == "delta":
            require_lossless_down(setup, 'aggregation = "delta"', "replace or rank_partitioned")
        collapses = self.aggregation == "replace" and len(set(factors.values())) > 1
        told = dense_layers(factors, self.net(setup.tiers[0]), self._kept)
        return [*told, COLLAPSE] if collapses else told

    @property
    def _kept(self) -> list[str] | None:
        return None if self.keep_full == "auto" else list(self.keep_full)

    def _factor(self, tier: str) -> float:
        """The rank factor of a tier; 1 for the server's own model."""
        return (self.rank_factor or {}).get(tier, 1.0)

    def initial_state(self, context: ServerContext) -> State:
        state: State = {"weights": weights_of(self.net(context.devices[0].tier))}
        least = max(self._factor(device.tier) for device in context.devices)
        full = self.initial == "full" or least == 1 or not self.net.fresh
        return state if full else {"weights": self._spectra(state, context).truncated(least)}

    def _spectra(self, state: State, context: ServerContext) -> Spectra:
        """The round's decompositions, for casting and for merging."""

        def compute() -> Spectra:
            layers = factorisable(self.net.with_weights(context.devices[0].tier, state["weights"]), self._kept)
            factors = {self._factor(device.tier) for device in context.devices}
            return Spectra(state["weights"], layers, factors, lambda layer: context.rng(f"svd/{layer}"))

        found: Spectra = context.once("fedhm spectra", compute)
        return found

    def broadcast(self, state: State, device: Device, context: ServerContext) -> Broadcast:
        full, u, v = self._spectra(state, context).cut(self._factor(device.tier))
        return {"full": full, "u": u, "v": v}

    def train(self, local_state: None, broadcast: Broadcast, context: DeviceContext) -> tuple[None, Update]:
        tier, ranks = context.device.tier, {layer: u_MR.shape[1] for layer, u_MR in broadcast["u"].items()}
        weights = with_factors(broadcast["full"], broadcast["u"], broadcast["v"])
        net = self.net.borrow(("fedhm", tier, *ranks.items()), weights, lambda: low_rank(self.net(tier), ranks))
        labels = present(self.fit.task, context.data)
        objective = masked(self.fit.loss, labels, self.net.outputs) if self.mask_labels else None
        trained = self.fit.train(net, context, objective=objective, adjust=self._decay)
        found = weights_of(net)
        update: Update = {
            "full": {name: found[name] for name in broadcast["full"]},
            "u": {layer: found[f"{layer}.u"] for layer in ranks},
            "v": {layer: found[f"{layer}.v"] for layer in ranks},
            "rank_factor": self._factor(tier),
            "samples": trained.samples,
        }
        return None, {**update, "labels": labels} if self._counts_rows(tier) else update

    def _counts_rows(self, tier: str) -> bool:
        return self.classifier_rows != "all" and self._factor(tier) > 1

    def _decay(self, net: nn.Module) -> None:
        """Decay of the product and of the factors, for which ``[train] weight_decay`` is not: it is taken back."""
        add_frobenius_gradient(net, self.frobenius)
        add_decay_gradient(net, self.l2_on_factors - self.fit.weight_decay)

    def update_spec(self, state: State, device: Device, context: ServerContext) -> Spec:
        most = self.net.outputs
        labels = {"labels": Integers(low=0, high=most - 1, most=most)} if self._counts_rows(device.tier) else {}
        told = {"rank_factor": Exactly(value=self._factor(device.tier)), "samples": SAMPLES}
        return {**spec_of(self.broadcast(state, device, context)), **told, **labels}

    def aggregate(self, state: State, replies: Iterable[Reply[Update]], context: ServerContext) -> State:
        spectra, factors, samples = self._spectra(state, context), [], 0
        fused = spectra.fused(self.aggregation, self._rows(state, spectra, context), self.retention)
        for reply in replies:
            update, factor = reply.update, self._factor(reply.device.tier)
            fused.add(
                update["full"], update["u"], update["v"], self._weight(factor, update["samples"]), update.get("labels")
            )
            factors.append(factor)
            samples += update["samples"]
        if not factors:
            return state
        absent = min(factors) > min(self._factor(device.tier) for device in context.devices)
        if self.aggregation == "replace" and self.keep_history and absent:
            fused.add(state["weights"], {}, {}, self._weight(1.0, samples / len(factors)))
        meter.note("largest rank absent", absent)
        meter.note("unsent energy", spectra.unsent(min(factors)))
        return {"weights": fused.result(renormalise=self.classifier_rows != "paper")}

    def _rows(self, state: State, spectra: Spectra, context: ServerContext) -> list[str]:
        """The classifier's tensors, where devices count with the rows of their own classes only."""
        net = self.net.with_weights(context.devices[0].tier, state["weights"])
        names = [] if self.classifier_rows == "all" else classifier_tensors(net, self.net.outputs)
        return [name for name in names if name.removesuffix(".weight") not in spectra.layers]

    def _weight(self, factor: float, samples: float) -> float:
        smallest = min((self.rank_factor or {"": 1.0}).values())
        return reply_weight(self.weighting, samples, factor - smallest, self.temperature)

    def model(self, state: State, local_state: None, device: Device) -> nn.Module:
        factors = self.rank_factor or {device.tier: 1.0}
        net = self.net(device.tier if device.tier in factors else next(iter(factors)))
        load(net, state["weights"])
        ranks = ranks_by_factor(factorisable(net, self._kept), self._factor(device.tier))
        return factorise(net, ranks) if ranks else net

    def variant(self, device: Device) -> Hashable:
        return self._factor(device.tier)


def _idle_options(method: Any, factors: Set[float]) -> dict[str, str]:
    """Options of FedHM without effect, and because of what."""
    idle: dict[str, str] = {}
    if method.weighting in ("uniform", "samples"):
        idle["temperature"] = f'weighting = "{method.weighting}"'
    if method.aggregation != "replace":
        idle["keep_history"] = f'aggregation = "{method.aggregation}"'
    if method.aggregation != "delta":
        idle["retention"] = f'aggregation = "{method.aggregation}"'
    if factors == {1.0}:
        without = ("frobenius", "l2_on_factors", "classifier_rows", "retention", "initial")
        idle |= dict.fromkeys(without, "rank factor 1 everywhere")
    return idle


METHODS = {"fedhm": FedHM}
