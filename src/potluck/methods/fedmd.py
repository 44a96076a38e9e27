"""FedMD: nets of any architecture agree on class scores of public samples.

D. Li, J. Wang, *FedMD: Heterogenous Federated Learning via Model Distillation*, 2019, arXiv 1910.03581.

    start     train on the public labelled set, then on own data
    round t   f̃ = mean_k f_k(x), x in B_t;   digest: fit f_k to f̃ on B_t;   revisit: SGD on own data

| symbol | name | meaning |
|---|---|---|
| f_k(x) | ``scores`` of a reply | class scores: logits, or posteriors |
| f̃ | ``scores`` of the state | their mean |
| B_t | ``ids`` | places in the public set, drawn anew each round and shipped |

The two exchanges of a round are spread over two rounds: the server sends f̃ of B_{t-1} and the ids of B_t; a device
digests B_{t-1}, revisits its own data and answers with its scores on B_t. Nothing is there to digest in round 1. A mean
of logits is not a mean of posteriors, and logits differ in scale between nets: ``score_spread`` in the server's notes
is the largest over the smallest deviation of a round's scores.

*Departures*: ``scores = "posteriors"``, ``weighting = "samples"``, and ``"sharpen"`` (the mean of posteriors, then
softmax(mean / 0.1), after DS-FL, arXiv 2008.06180) are variants. *Defaults*: mean absolute error as in the authors'
code (our reading), 500 public samples a round, one digest epoch: ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal, TypedDict

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor, nn

from potluck.core import meter
from potluck.core.contexts import DeviceContext, Reply, ServerContext
from potluck.core.errors import ConfigError
from potluck.core.mean import WeightedMean
from potluck.core.options import NetChoice, Setup
from potluck.core.spec import SAMPLES, Array, Spec
from potluck.core.types import Device, Shard
from potluck.methods.checks import require_soft
from potluck.methods.protocol import Traits
from potluck.nets.tier_nets import TierNets
from potluck.nets.weights import load, weights_of
from potluck.tasks.task import LearningTask
from potluck.training import distil
from potluck.training.distil import numbered
from potluck.training.fit import Fit

SHARPENING = 0.1
"""The temperature of DS-FL's entropy reduction."""


class State(TypedDict):
    """On the server: f̃ of the last round, and of which samples; both empty before the first."""

    scores: Tensor
    ids: Tensor


class Broadcast(TypedDict):
    """On the way down: f̃ of B_{t-1}, its ids, and the ids of B_t."""

    scores: Tensor
    ids: Tensor
    asked: Tensor


class LocalState(TypedDict):
    """What stays on the device."""

    weights: dict[str, Tensor]


class Update(TypedDict):
    """On the way up: scores on B_t, (S, C)."""

    scores: Tensor
    samples: int


def absolute(z_BC: Tensor, target_BC: Tensor, task: LearningTask, are_logits: bool) -> Tensor:
    """Mean absolute error of scores; of softened ones where the targets are softened."""
    return F.l1_loss(z_BC if are_logits else task.soften(z_BC, 1.0), target_BC)


def squared(z_BC: Tensor, target_BC: Tensor, task: LearningTask, are_logits: bool) -> Tensor:
    """Mean squared error, likewise."""
    return F.mse_loss(z_BC if are_logits else task.soften(z_BC, 1.0), target_BC)


def divergence(z_BC: Tensor, target_BC: Tensor, task: LearningTask, are_logits: bool) -> Tensor:
    """KL(target ‖ softmax z), summed over classes and averaged over samples (not over classes as well)."""
    target_BC = target_BC.softmax(dim=1) if are_logits else target_BC
    return F.kl_div(z_BC.log_softmax(dim=1), target_BC, reduction="batchmean")


LOSSES: dict[str, Callable[[Tensor, Tensor, LearningTask, bool], Tensor]] = {
    "mae": absolute,
    "mse": squared,
    "kl": divergence,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FedMD:
    """nets of any architecture, class scores on public samples"""

    net: TierNets
    fit: Fit
    models: Annotated[Mapping[str, str] | None, NetChoice()] = None
    public_batch: Annotated[int, Ge(0)] = 500
    digest_epochs: Annotated[int, Ge(0)] = 1
    digest_loss: Literal["mae", "mse", "kl"] = "mae"
    scores: Literal["logits", "posteriors"] = "logits"
    weighting: Literal["uniform", "samples", "sharpen"] = "uniform"

    traits: ClassVar[Traits] = Traits(personal=True)

    def check(self, setup: Setup) -> Sequence[str]:
        soft = require_soft("fedmd", self.fit.task)
        if self.digest_loss == "kl" and not soft.distribution:
            raise ConfigError(
                f'method.digest_loss = "kl": it compares posteriors, and {self.fit.task.name} has none: choose "mae"'
            )
        if self.weighting == "sharpen" and not soft.distribution:
            raise ConfigError(
                f'method.weighting = "sharpen": it is for posteriors, and {self.fit.task.name} has none; remove it'
            )
        if not setup.public_samples:
            raise ConfigError("fedmd needs a shared labelled set: set [data] public, e.g. 0.05")
        if self.weighting == "sharpen" and self.scores == "logits":
            raise ConfigError('method.weighting = "sharpen" works on posteriors: set method.scores = "posteriors"')
        return ()

    def initial_state(self, context: ServerContext) -> State:
        return {"scores": torch.zeros(0, self.net.outputs), "ids": torch.zeros(0, dtype=torch.int32)}

    def broadcast(self, state: State, device: Device, context: ServerContext) -> Broadcast:
        return {"scores": state["scores"], "ids": state["ids"], "asked": self._asked(context)}

    def _asked(self, context: ServerContext) -> Tensor:
        """B_t: places in the public set, ascending."""
        assert context.public is not None, "checked before the run"
        count = len(context.public)
        drawn = torch.randperm(count, generator=context.rng("public"))[: self.public_batch or count]
        ids: Tensor = context.once("asked", lambda: drawn.sort().values.to(torch.int32))
        return ids

    def train(
        self, local_state: LocalState | None, broadcast: Broadcast, context: DeviceContext
    ) -> tuple[LocalState, Update]:
        tier, public = context.device.tier, context.public
        assert public is not None, "checked before the run"
        if local_state is None:
            net = self.net.with_weights(tier, weights_of(self.net(tier)))
            self.fit.train(net, context, data=public, purpose="warm start")
        else:
            net = self.net.with_weights(tier, local_state["weights"])
        if len(broadcast["ids"]) and self.digest_epochs:
            self._digest(net, public.take(broadcast["ids"].to(torch.int64)), broadcast["scores"], context)
        trained = self.fit.train(net, context)
        z_SC = distil.outputs(net, public.take(broadcast["asked"].to(torch.int64)), self.fit.device)
        meter.note("score_deviation", float(z_SC.std()) if z_SC.numel() > 1 else 0.0)
        found = z_SC if self.scores == "logits" else self.fit.task.soften(z_SC, 1.0)
        return {"weights": weights_of(net)}, {"scores": found, "samples": trained.samples}

    def _digest(self, net: nn.Module, batch: Shard, scores_SC: Tensor, context: DeviceContext) -> None:
        """Fits the net to f̃. The samples are not augmented: f̃ is of the samples as they are."""
        target_SC, loss, are_logits = scores_SC.to(self.fit.device), LOSSES[self.digest_loss], self.scores == "logits"

        def objective(net: nn.Module, x: Tensor, place: Tensor) -> Tensor:
            return loss(net(x).float(), target_SC[place], self.fit.task, are_logits)

        plain = replace(self.fit, augment="none")
        data, epochs = numbered(batch), self.digest_epochs
        fitted = plain.train(net, context, objective=objective, data=data, epochs=epochs, purpose="digest")
        meter.note("digest_loss", fitted.loss)

    def update_spec(self, state: State, device: Device, context: ServerContext) -> Spec:
        shape = (len(self._asked(context)), self.net.outputs)
        soft = require_soft("fedmd", self.fit.task)
        low, high = (-math.inf, math.inf) if self.scores == "logits" else (soft.low, soft.high)
        return {
            "scores": Array(dtype=torch.float32, shape=shape, low=low, high=high),
            "samples": SAMPLES,
        }

    def aggregate(self, state: State, replies: Iterable[Reply[Update]], context: ServerContext) -> State:
        mean, deviations = WeightedMean(), []
        for reply in replies:
            scores = reply.update["scores"]
            deviations.append(float(scores.std()) if scores.numel() > 1 else 0.0)
            mean.add({"scores": scores}, float(reply.update["samples"]) if self.weighting == "samples" else 1.0)
        if not mean:
            return state
        meter.note("score_spread", max(deviations) / max(min(deviations), 1e-12))
        found: Tensor = mean.result()["scores"]
        if self.weighting == "sharpen":
            found = (found / SHARPENING).softmax(dim=1)
        return {"scores": found, "ids": self._asked(context)}

    def model(self, state: State | None, local_state: LocalState | None, device: Device) -> nn.Module:
        net = self.net(device.tier)
        if local_state is not None:
            load(net, local_state["weights"])
        return net

    def variant(self, device: Device) -> Hashable:
        return device.id


METHODS = {"fedmd": FedMD}
