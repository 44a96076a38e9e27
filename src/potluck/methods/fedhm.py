"""FedHM: one full model at the server, low-rank copies of different rank on the devices.

D. Yao, W. Pan, M. J. O'Neill, Y. Dai, Y. Wan, H. Jin, L. Sun, *FedHM: Efficient Federated Learning for Heterogeneous
Models via Low-rank Factorization*, 2021, arXiv 2111.14655.

    cast:    M = P S Qᵀ;   U = P_r √S_r,   V = √S_r Q_rᵀ,   r = max(round(O / f), 1)        M: (O·k) × (I·k)
    train:   loss + (λ/2) ‖U V‖²_F:   dU += λ U V Vᵀ,   dV += λ Uᵀ U V
    merge:   M_k = U_k V_k;   M ← Σ_k w_k M_k                                    ("replace"; the others: models/fuse.py)
    start:   M ← T_r(M) ‖M‖ / ‖T_r(M)‖, r the rank of the weakest tier                              ("low_rank"; ours)

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

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NotRequired, TypedDict

from annotated_types import Ge, Gt, Le, Predicate
from torch import Tensor, nn

from potluck.core import meter
from potluck.core.spec import Exactly, Integers, Number, Spec, spec_of
from potluck.core.types import Desk, Device, Ladder, Reply, Setup, Task
from potluck.methods.lowrank_options import COLLAPSE, FEDHM, idle_in_fedhm, is_factor
from potluck.methods.protocol import Traits
from potluck.methods.refuse import demand_effect, demand_lossless_down, demand_no_topk, dense_layers
from potluck.models.fit import Fit
from potluck.models.fuse import reply_weight
from potluck.models.keep_full import factorisable, ranks_by_factor
from potluck.models.labels import classifier_tensors, masked, present
from potluck.models.lowrank import add_decay_gradient, add_frobenius_gradient, factorise, low_rank, with_factors
from potluck.models.nets import Nets, load, weights_of
from potluck.models.spectra import Spectra

Weights = dict[str, Tensor]


class State(TypedDict):
    """On the server."""

    weights: Weights


class Down(TypedDict):
    """On the way down: tensors that stay full, and the factors of the others."""

    full: Weights
    u: Weights
    v: Weights


class Up(Down):
    """On the way up: the same, trained; and the classes at hand, where rows of the classifier depend on them."""

    rank_factor: float
    samples: int
    labels: NotRequired[list[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class FedHM:
    """low-rank copies of unequal rank, fused into one full model"""

    net: Nets
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
    rank_factor: Annotated[Mapping[str, Annotated[float, Predicate(is_factor)]] | None, Ladder((8.0, 4.0, 1.0))] = None

    traits: ClassVar[Traits] = Traits(profiles={"recommended": {}, "faithful": FEDHM})

    def check(self, setup: Setup) -> Sequence[str]:
        factors = {tier: self._factor(tier) for tier in setup.tiers}
        demand_effect(setup.given, idle_in_fedhm(self, set(factors.values())))
        demand_no_topk(setup, "fedhm", "after each factorisation the coordinates mean something else")
        if self.aggregation == "delta":
            demand_lossless_down(setup, 'aggregation = "delta"', "replace or rank_partitioned")
        collapses = self.aggregation == "replace" and len(set(factors.values())) > 1
        told = dense_layers(factors, self.net(setup.tiers[0]), self._kept)
        return [*told, COLLAPSE] if collapses else told

    @property
    def _kept(self) -> list[str] | None:
        return None if self.keep_full == "auto" else list(self.keep_full)

    def _factor(self, tier: str) -> float:
        """The rank factor of a tier; 1 for the server's own model."""
        return (self.rank_factor or {}).get(tier, 1.0)

    def start(self, desk: Desk) -> State:
        state: State = {"weights": weights_of(self.net(desk.devices[0].tier))}
        least = max(self._factor(device.tier) for device in desk.devices)
        full = self.initial == "full" or least == 1 or not self.net.fresh
        return state if full else {"weights": self._spectra(state, desk).truncated(least)}

    def _spectra(self, state: State, desk: Desk) -> Spectra:
        """The round's decompositions, for casting and for merging."""

        def compute() -> Spectra:
            layers = factorisable(self.net.loaded(desk.devices[0].tier, state["weights"]), self._kept)
            factors = {self._factor(device.tier) for device in desk.devices}
            return Spectra(state["weights"], layers, factors, lambda layer: desk.rng(f"svd/{layer}"))

        found: Spectra = desk.once("fedhm spectra", compute)
        return found

    def cast(self, state: State, device: Device, desk: Desk) -> Down:
        full, u, v = self._spectra(state, desk).cut(self._factor(device.tier))
        return {"full": full, "u": u, "v": v}

    def train(self, own: None, down: Down, task: Task) -> tuple[None, Up]:
        tier, ranks = task.device.tier, {layer: u_MR.shape[1] for layer, u_MR in down["u"].items()}
        weights = with_factors(down["full"], down["u"], down["v"])
        net = self.net.lent(("fedhm", tier, *ranks.items()), weights, lambda: low_rank(self.net(tier), ranks))
        labels = present(task.data)
        objective = masked(self.fit.loss, labels, self.net.classes) if self.mask_labels else None
        trained = self.fit.train(net, task, objective=objective, adjust=self._decay)
        found = weights_of(net)
        up: Up = {
            "full": {name: found[name] for name in down["full"]},
            "u": {layer: found[f"{layer}.u"] for layer in ranks},
            "v": {layer: found[f"{layer}.v"] for layer in ranks},
            "rank_factor": self._factor(tier),
            "samples": trained.samples,
        }
        return None, {**up, "labels": labels} if self._counts_rows(tier) else up

    def _counts_rows(self, tier: str) -> bool:
        return self.classifier_rows != "all" and self._factor(tier) > 1

    def _decay(self, net: nn.Module) -> None:
        """Decay of the product and of the factors, for which ``[train] weight_decay`` is not: it is taken back."""
        add_frobenius_gradient(net, self.frobenius)
        add_decay_gradient(net, self.l2_on_factors - self.fit.weight_decay)

    def expect(self, state: State, device: Device, desk: Desk) -> Spec:
        most = self.net.classes
        labels = {"labels": Integers(low=0, high=most - 1, most=most)} if self._counts_rows(device.tier) else {}
        told = {"rank_factor": Exactly(value=self._factor(device.tier)), "samples": Number(kind=int, low=1, high=2**40)}
        return {**spec_of(self.cast(state, device, desk)), **told, **labels}

    def merge(self, state: State, replies: Iterable[Reply[Up]], desk: Desk) -> State:
        spectra, factors, samples = self._spectra(state, desk), [], 0
        fused = spectra.fused(self.aggregation, self._rows(state, spectra, desk), self.retention)
        for reply in replies:
            up, factor = reply.up, self._factor(reply.device.tier)
            fused.add(up["full"], up["u"], up["v"], self._weight(factor, up["samples"]), up.get("labels"))
            factors.append(factor)
            samples += up["samples"]
        if not factors:
            return state
        absent = min(factors) > min(self._factor(device.tier) for device in desk.devices)
        if self.aggregation == "replace" and self.keep_history and absent:
            fused.add(state["weights"], {}, {}, self._weight(1.0, samples / len(factors)))
        meter.note("largest rank absent", absent)
        meter.note("unsent energy", spectra.unsent(min(factors)))
        return {"weights": fused.result(renormalise=self.classifier_rows != "paper")}

    def _rows(self, state: State, spectra: Spectra, desk: Desk) -> list[str]:
        """The classifier's tensors, where devices count with the rows of their own classes only."""
        net = self.net.loaded(desk.devices[0].tier, state["weights"])
        names = [] if self.classifier_rows == "all" else classifier_tensors(net, self.net.classes)
        return [name for name in names if name.removesuffix(".weight") not in spectra.layers]

    def _weight(self, factor: float, samples: float) -> float:
        smallest = min((self.rank_factor or {"": 1.0}).values())
        return reply_weight(self.weighting, samples, factor - smallest, self.temperature)

    def model(self, state: State, own: None, device: Device) -> nn.Module:
        factors = self.rank_factor or {device.tier: 1.0}
        net = self.net(device.tier if device.tier in factors else next(iter(factors)))
        load(net, state["weights"])
        ranks = ranks_by_factor(factorisable(net, self._kept), self._factor(device.tier))
        return factorise(net, ranks) if ranks else net

    def variant(self, device: Device) -> Hashable:
        return self._factor(device.tier)
