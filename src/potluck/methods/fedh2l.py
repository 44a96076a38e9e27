"""FedH2L: peers of any architecture teach each other, without a server, by posteriors on a small shared seed set.

Y. Li, W. Zhou, H. Wang, H. Mi, T. Hospedales, *FedH2L: Federated Learning with Model and Statistical Heterogeneity*,
2021, arXiv 2101.11296. We implement its mechanism and do not claim to reproduce its figures.

    post      θ_i ← SGD on L_loc = mean over P_i of CE(y, softmax z_i(x));   say p_i(x) = softmax(z_i(x)/τ), x in B_r
    absorb    g = ∇L_mut,  L_mut = mean over B_r of CE(y, softmax z_i(x)) + λ τ² (1/|A|) Σ_{j∈A} KL(p_j(x) ‖ p_i(x))
              r = ∇L_loc on a private batch at the same θ_i;   step with g - (⟨g, r⟩/‖r‖²) r where ⟨g, r⟩ < 0, else g

| symbol | name | meaning |
|---|---|---|
| λ, τ | ``weight``, ``temperature`` | share of the peers' opinion; softness of posteriors |
| A | ``inbox`` | the peers whose posts arrived; without any, L_mut is the plain loss on the seeds |
| B_r | ``seed_set.rows_of_round`` | the seeds of the round, equal on all participants |
| P_i | ``task.data`` | what never leaves the device |

Only the mean p̄ of the peers' posteriors matters: ∇ of the KL part is λ τ (p_i - p̄) with respect to z_i. Posts are whole
numbers, whose sum is exact (``posteriors.py``): a relay may send one sum for all posts.

*Departures* (the paper's choice is not known to us): which gradient is protected, and an exchange a round instead of a
batch (``schedule``; ``batch`` is one local step, an exchange, one mutual step, on B_r of one batch); the seeds are
the experiment's public set, so no private sample is sent; running statistics follow private batches of the local
phase only. *Defaults*: λ = τ = 1 as in deep mutual learning (arXiv 1706.00384); all else ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, NotRequired, TypedDict

import torch
from annotated_types import Ge, Le
from torch import Tensor, nn

from potluck.core import meter
from potluck.core.spec import Exactly, Spec
from potluck.core.types import Device, NetChoice, Setup, Shard, Task
from potluck.methods.peers import demand_peers
from potluck.methods.protocol import Traits
from potluck.models import posteriors, projection, seed_set
from potluck.models.fit import Fit
from potluck.models.nets import Nets, load, weights_of
from potluck.models.norms import freeze_statistics


class Own(TypedDict):
    """What stays on the device. ``last`` holds the latest post of each peer where stale ones may stand in."""

    weights: dict[str, Tensor]
    seed_digest: str
    last: NotRequired[dict[str, Any]]


class Terms(TypedDict):
    """What both sides of an exchange must agree on. Labels and ids never travel: both sides hold the seeds."""

    seed_digest: str
    batch: int
    temperature: float
    posts: str


class Up(Terms):
    """A post: (S, C), or (S,) of ``onehot``."""

    posteriors: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class FedH2L:
    """peers of any architecture teach each other on shared seeds"""

    net: Nets
    fit: Fit
    models: Annotated[Mapping[str, str] | None, NetChoice()] = None
    seeds: Literal["public", "contributed"] = "public"
    schedule: Literal["round", "batch"] = "round"
    mutual_epochs: Annotated[int, Ge(1), Le(100)] = 1
    seed_batch_exchange: Annotated[int, Ge(0)] = 0
    weight: Annotated[float, Ge(0), Le(100)] = 1.0
    temperature: Annotated[float, Ge(0.1), Le(20)] = 1.0
    protect: projection.Protect = "private"
    margin: Annotated[float, Ge(0), Le(1)] = 0.0
    weighting: Literal["mean", "correct", "confidence", "sharpen"] = "mean"
    posts: posteriors.Form = "fixed16"
    stale_rounds: Annotated[int, Ge(0), Le(20)] = 0
    seed_ce: bool = True

    traits: ClassVar[Traits] = Traits(personal=True, peers=True)

    def check(self, setup: Setup) -> Sequence[str]:
        demand_peers(self, setup, self.net.classes)
        return ()

    def start(self, task: Task) -> Own:
        own: Own = {"weights": weights_of(self.net(task.device.tier)), "seed_digest": seed_set.digest(_seeds(task))}
        return {**own, "last": {}} if self.stale_rounds else own

    def post(self, own: Own, task: Task) -> tuple[Own, Up]:
        net = self.net.loaded(task.device.tier, own["weights"])
        data = task.data
        if self.schedule == "batch":
            data = data.take(torch.randperm(len(data), generator=task.rng("step"))[: self.fit.batch_size])
        self.fit.train(net, task, data=data, epochs=1 if self.schedule == "batch" else None)
        after: Own = {**own, "weights": weights_of(net)}
        p_SC = (posteriors.logits(net, self._batch(own, task), self.fit.device) / self.temperature).softmax(dim=1)
        up: Up = {"posteriors": posteriors.encode(p_SC, self.posts), **self._terms(own, task)}
        return after, up

    def _terms(self, own: Own, task: Task) -> Terms:
        return {
            "seed_digest": own["seed_digest"],
            "batch": task.round,
            "temperature": float(self.temperature),
            "posts": self.posts,
        }

    def _batch(self, own: Own, task: Task) -> Shard:
        """B_r."""
        seeds = _seeds(task)
        size = self.seed_batch_exchange or (len(seeds) if self.schedule == "round" else self.fit.batch_size)
        return seeds.take(seed_set.rows_of_round(len(seeds), size, own["seed_digest"], task.round))

    def expect(self, own: Own, task: Task) -> Spec:
        shape = posteriors.expected(self.posts, len(self._batch(own, task)), self.net.classes)
        return {"posteriors": shape} | {name: Exactly(value=value) for name, value in self._terms(own, task).items()}

    def absorb(self, own: Own, inbox: Mapping[int, Up], task: Task) -> Own:
        posts = {peer: up["posteriors"] for peer, up in inbox.items()}
        if self.stale_rounds:
            kept = {peer: node for peer, node in own["last"].items() if task.round - node["round"] <= self.stale_rounds}
            kept |= {str(peer): {"posteriors": post, "round": task.round} for peer, post in posts.items()}
            posts = {int(peer): node["posteriors"] for peer, node in kept.items()}
            own = {**own, "last": kept}
        total = posteriors.total((posts[peer] for peer in sorted(posts)), self.posts, self.net.classes)
        return self._learn(own, total, len(posts), task)

    def pool(self, posts: Iterable[Up]) -> dict[str, Any] | None:
        if self.posts not in posteriors.POOLED or self.stale_rounds:
            return None
        return posteriors.pooled([up["posteriors"] for up in posts], self.posts, self.net.classes)

    def absorb_pool(self, own: Own, pool: Mapping[str, Any], mine: Up, task: Task) -> Own:
        others = posteriors.without(pool, mine["posteriors"], self.posts, self.net.classes)
        return self._learn(own, others, pool["count"] - 1, task)

    def _learn(self, own: Own, total_SC: Tensor | None, peers: int, task: Task) -> Own:
        """The mutual phase: K passes over B_r, or one step."""
        meter.note("peers", peers)
        taught = total_SC is not None and self.weight > 0
        if not (taught or self.seed_ce):
            return own
        net, batch = self.net.loaded(task.device.tier, own["weights"]), self._batch(own, task)
        y_S, p_SC = batch.y.to(self.fit.device), None
        if total_SC is not None and taught:
            p_SC = posteriors.mean(total_SC).to(self.fit.device)
        divergences: list[Tensor] = []

        def mutual(net: nn.Module, x: Tensor, place: Tensor) -> Tensor:
            freeze_statistics(net)
            z_BC = net(x)
            terms = [self.fit.loss(z_BC, y_S[place])] if self.seed_ce else []
            if p_SC is not None:
                p_BC, logq_BC = p_SC[place], (z_BC.float() / self.temperature).log_softmax(dim=1)
                cross = -(p_BC * logq_BC).sum(dim=1).mean()
                divergences.append((cross + torch.special.xlogy(p_BC, p_BC).sum(dim=1).mean()).detach())
                terms.append(self.weight * self.temperature**2 * cross)
            return sum(terms[1:], terms[0])

        size = len(batch) if self.schedule == "batch" else self.fit.batch_size
        plain = replace(self.fit, augment="none", batch_size=size)
        guard = projection.Guard.of(self.fit, task, self.protect, self.margin)
        plain.train(
            net,
            task,
            objective=mutual,
            adjust=guard.adjust,
            data=seed_set.numbered(batch),
            epochs=self.mutual_epochs,
            purpose="mutual",
        )
        guard.note()
        if divergences:
            meter.note("kl", float(torch.stack(divergences).mean()))
        return {**own, "weights": weights_of(net)}

    def model(self, own: Own | None, device: Device) -> nn.Module:
        net = self.net(device.tier)
        if own is not None:
            load(net, own["weights"])
        return net


def _seeds(task: Task) -> Shard:
    assert task.public is not None, "checked before the run"
    return task.public
