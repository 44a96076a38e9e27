"""FedH2L: peers of any architecture teach each other, without a server, by posteriors on a small shared seed set.

Y. Li, W. Zhou, H. Wang, H. Mi, T. Hospedales, *FedH2L: Federated Learning with Model and Statistical Heterogeneity*,
2021, arXiv 2101.11296. We implement its mechanism and do not claim to reproduce its figures.

    publish   θ_i ← SGD on L_loc = mean over P_i of CE(y, softmax z_i(x));   say p_i(x) = softmax(z_i(x)/τ), x in B_r
    receive   g = ∇L_mut,  L_mut = mean over B_r of CE(y, softmax z_i(x)) + λ τ² (1/|A|) Σ_{j∈A} KL(p_j(x) ‖ p_i(x))
              r = ∇L_loc on a private batch at the same θ_i;   step with g - (⟨g, r⟩/‖r‖²) r where ⟨g, r⟩ < 0, else g

| symbol | name | meaning |
|---|---|---|
| λ, τ | ``weight``, ``temperature`` | share of the peers' opinion; softness of posteriors |
| A | ``inbox`` | the peers whose updates arrived; without any, L_mut is the plain loss on the seeds |
| B_r | ``seed_set.rows_of_round`` | the seeds of the round, equal on all participants |
| P_i | ``context.data`` | what never leaves the device |

Only the mean p̄ of the peers' posteriors matters: ∇ of the KL part is λ τ (p_i - p̄) with respect to z_i. Updates are
whole numbers, whose sum is exact (``posteriors.py``): a relay may send one sum for all.

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
from potluck.core.contexts import DeviceContext
from potluck.core.errors import ConfigError
from potluck.core.options import NetChoice, Setup
from potluck.core.spec import Exactly, Spec
from potluck.core.types import Device, Shard
from potluck.methods.checks import require_effect, require_soft
from potluck.methods.fedh2l import posteriors, projection, seed_set
from potluck.methods.protocol import Traits
from potluck.nets.batch_statistics import freeze_statistics
from potluck.nets.tier_nets import TierNets
from potluck.nets.weights import load, weights_of
from potluck.tasks.task import Soft
from potluck.training import distil
from potluck.training.fit import Fit

PASSING = ("float16", "zstd")
"""Codecs after which the rows of a posterior still add up to one."""


class LocalState(TypedDict):
    """What stays on the device. ``last`` holds the latest update of each peer where stale ones may stand in."""

    weights: dict[str, Tensor]
    seed_digest: str
    last: NotRequired[dict[str, Any]]


class Terms(TypedDict):
    """What both sides of an exchange must agree on. Labels and ids never travel: both sides hold the seeds."""

    seed_digest: str
    batch: int
    temperature: float
    posts: str


class Update(Terms):
    """(S, C), or (S,) of ``onehot``."""

    posteriors: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class FedH2L:
    """peers of any architecture teach each other on shared seeds"""

    net: TierNets
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
        _require_peers(self, setup, self.net.outputs)
        _require_task(self, setup, self._soft)
        return ()

    def initial_state(self, context: DeviceContext) -> LocalState:
        local_state: LocalState = {
            "weights": weights_of(self.net(context.device.tier)),
            "seed_digest": seed_set.digest(_seeds(context)),
        }
        return {**local_state, "last": {}} if self.stale_rounds else local_state

    def publish(self, local_state: LocalState, context: DeviceContext) -> tuple[LocalState, Update]:
        net = self.net.with_weights(context.device.tier, local_state["weights"])
        data = context.data
        if self.schedule == "batch":
            data = data.take(torch.randperm(len(data), generator=context.rng("step"))[: self.fit.batch_size])
        self.fit.train(net, context, data=data, epochs=1 if self.schedule == "batch" else None)
        after: LocalState = {**local_state, "weights": weights_of(net)}
        said_SC = distil.outputs(net, self._batch(local_state, context), self.fit.device)
        sent = posteriors.encode(self.fit.task.soften(said_SC, self.temperature), self.posts, self._soft)
        update: Update = {"posteriors": sent, **self._terms(local_state, context)}
        return after, update

    @property
    def _soft(self) -> Soft:
        """What the task lets peers tell each other."""
        return require_soft("fedh2l", self.fit.task)

    def _terms(self, local_state: LocalState, context: DeviceContext) -> Terms:
        return {
            "seed_digest": local_state["seed_digest"],
            "batch": context.round,
            "temperature": float(self.temperature),
            "posts": self.posts,
        }

    def _batch(self, local_state: LocalState, context: DeviceContext) -> Shard:
        """B_r."""
        seeds = _seeds(context)
        size = self.seed_batch_exchange or (len(seeds) if self.schedule == "round" else self.fit.batch_size)
        return seeds.take(seed_set.rows_of_round(len(seeds), size, local_state["seed_digest"], context.round))

    def update_spec(self, local_state: LocalState, context: DeviceContext) -> Spec:
        shape = posteriors.expected(self.posts, len(self._batch(local_state, context)), self.net.outputs, self._soft)
        return {"posteriors": shape} | {
            name: Exactly(value=value) for name, value in self._terms(local_state, context).items()
        }

    def receive(self, local_state: LocalState, inbox: Mapping[int, Update], context: DeviceContext) -> LocalState:
        told = {peer: update["posteriors"] for peer, update in inbox.items()}
        if self.stale_rounds:
            kept = {
                peer: node
                for peer, node in local_state["last"].items()
                if context.round - node["round"] <= self.stale_rounds
            }
            kept |= {str(peer): {"posteriors": one, "round": context.round} for peer, one in told.items()}
            told = {int(peer): node["posteriors"] for peer, node in kept.items()}
            local_state = {**local_state, "last": kept}
        total = posteriors.total((told[peer] for peer in sorted(told)), self.posts, self.net.outputs)
        return self._learn(local_state, total, len(told), context)

    def combine(self, updates: Iterable[Update]) -> dict[str, Any] | None:
        if self.posts not in posteriors.POOLED or self.stale_rounds:
            return None
        return posteriors.pooled([update["posteriors"] for update in updates], self.posts, self.net.outputs)

    def receive_combined(
        self, local_state: LocalState, pool: Mapping[str, Any], mine: Update, context: DeviceContext
    ) -> LocalState:
        others = posteriors.without(pool, mine["posteriors"], self.posts, self.net.outputs)
        return self._learn(local_state, others, pool["count"] - 1, context)

    def _learn(
        self, local_state: LocalState, total_SC: Tensor | None, peers: int, context: DeviceContext
    ) -> LocalState:
        """The mutual phase: K passes over B_r, or one step."""
        meter.note("peers", peers)
        taught = total_SC is not None and self.weight > 0
        if not (taught or self.seed_ce):
            return local_state
        net, batch = (
            self.net.with_weights(context.device.tier, local_state["weights"]),
            self._batch(local_state, context),
        )
        y_S, p_SC = batch.y.to(self.fit.device), None
        if total_SC is not None and taught:
            p_SC = posteriors.mean(total_SC, self._soft, self.posts, peers).to(self.fit.device)
        posterior = self._soft.distribution
        divergences: list[Tensor] = []

        def mutual(net: nn.Module, x: Tensor, place: Tensor) -> Tensor:
            freeze_statistics(net)
            z_BC = net(x)
            terms = [self.fit.loss(z_BC, y_S[place])] if self.seed_ce else []
            if p_SC is not None:
                p_BC = p_SC[place]
                cross = self.fit.task.agree(z_BC, p_BC, self.temperature)
                least = torch.special.xlogy(p_BC, p_BC).sum(dim=1).mean() if posterior else 0.0
                divergences.append((cross + least).detach())
                terms.append(self.weight * self.temperature**2 * cross)
            return sum(terms[1:], terms[0])

        size = len(batch) if self.schedule == "batch" else self.fit.batch_size
        plain = replace(self.fit, augment="none", batch_size=size)
        guard = projection.Guard.of(self.fit, context, self.protect, self.margin)
        plain.train(
            net,
            context,
            objective=mutual,
            adjust=guard.adjust,
            data=distil.numbered(batch),
            epochs=self.mutual_epochs,
            purpose="mutual",
        )
        guard.note()
        if divergences:
            meter.note("kl" if posterior else "disagreement", float(torch.stack(divergences).mean()))
        return {**local_state, "weights": weights_of(net)}

    def model(self, local_state: LocalState | None, device: Device) -> nn.Module:
        net = self.net(device.tier)
        if local_state is not None:
            load(net, local_state["weights"])
        return net


def _seeds(context: DeviceContext) -> Shard:
    assert context.public is not None, "checked before the run"
    return context.public


def _require_peers(method: Any, setup: Setup, classes: int) -> None:
    """Raises ConfigError for an exchange of posteriors on seeds that cannot work, or is not built yet."""
    if method.seeds != "public":
        raise ConfigError(
            f'method.seeds = "{method.seeds}": not built yet; this version has "public", the set of [data] public'
        )
    if method.weighting != "mean":
        raise ConfigError(f'method.weighting = "{method.weighting}": not built yet; this version has "mean"')
    if not setup.public_samples:
        raise ConfigError("fedh2l needs a shared seed set: set [data] public, e.g. 0.05")
    if len(setup.devices) < 2:
        raise ConfigError('fedh2l needs two participants at least; for one device choose method.name = "local"')
    _require_exchange(method, setup)
    if classes > posteriors.MOST_CLASSES[method.posts]:
        most = posteriors.MOST_CLASSES[method.posts]
        raise ConfigError(f'method.posts = "{method.posts}": too coarse for {classes} classes, at most {most}')
    for direction, codecs in (("up", setup.up_codecs), ("down", setup.down_codecs)):
        spoiling = [name for name in codecs if name not in PASSING]
        if spoiling:
            raise ConfigError(
                f"wire.{direction} holds {spoiling[0]}, and posteriors are rounded by method.posts already: "
                'choose posts = "fixed8" for smaller ones, or zstd'
            )
        if direction == "down" and "float16" in codecs and method.posts == "float32":
            raise ConfigError("wire.down holds float16: a relay would change what peers said; put it into wire.up")


def _require_task(method: Any, setup: Setup, soft: Soft) -> None:
    """Raises ConfigError for options that have no meaning for what the task softens to."""
    if method.posts == "onehot" and not soft.distribution:
        raise ConfigError(
            f'method.posts = "onehot": a task "{method.fit.task.name}" has no one class: choose "fixed16"'
        )
    if "temperature" in setup.given and not soft.tempered:
        raise ConfigError(f'method.temperature has no effect on the task "{method.fit.task.name}"; remove it')


def _require_exchange(method: Any, setup: Setup) -> None:
    """The options that say what is exchanged when."""
    if method.schedule == "batch" and ("mutual_epochs" in setup.given or method.mutual_epochs != 1):
        raise ConfigError("method.mutual_epochs has no meaning with schedule = batch: a round is one mutual step")
    if method.seed_batch_exchange > setup.public_samples:
        raise ConfigError(
            f"method.seed_batch_exchange = {method.seed_batch_exchange}: expected 0 (all) or 1 to "
            f"{setup.public_samples}, the number of seeds"
        )
    if method.stale_rounds and (method.seed_batch_exchange or method.schedule == "batch"):
        raise ConfigError(
            f"method.stale_rounds = {method.stale_rounds}: an update of another round is about other seeds; it needs "
            'schedule = "round" and seed_batch_exchange = 0'
        )
    idle = {"margin": "protect = none"} if method.protect == "none" else {}
    require_effect(setup.given, idle)
