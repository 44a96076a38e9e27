"""The one local training loop.

Everything random (order of samples, augmentation, dropout) comes from the device's own generators, so a device trains
the same wherever it runs. The optimiser is made anew each round: no momentum survives an aggregation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim.sgd import sgd

from potluck.core import meter
from potluck.core.contexts import DeviceContext
from potluck.core.errors import TrainingError
from potluck.core.types import Shard
from potluck.tasks.task import LearningTask
from potluck.training.augment import crop_flip
from potluck.training.flops import training_flops

Loss = Callable[[Tensor, Tensor], Tensor]
Objective = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""(net, x of a batch, y of a batch) -> the scalar to be minimised."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What a local training did: samples of the share, steps made, mean loss of the last epoch."""

    samples: int
    steps: int
    loss: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Sgd:
    """torch's SGD as the kernel it ends in, one call for all tensors.

    The class of ``torch.optim`` costs four times as much as a step of a tiny net, and imports torch's compiler, which
    takes a device longer than a round's training.
    """

    weights: Sequence[nn.Parameter]
    values: Sequence[Tensor]
    """The weights' own memory, outside of autograd."""
    buffers: Sequence[Tensor]
    """The momentum of each; none without momentum."""
    lr: float
    momentum: float
    weight_decay: float

    @classmethod
    def of(cls, weights: Sequence[nn.Parameter], *, lr: float, momentum: float, weight_decay: float) -> Sgd:
        """With no momentum yet."""
        values = [weight.detach() for weight in weights]
        buffers = [torch.zeros_like(value) for value in values] if momentum else []
        return cls(weights=weights, values=values, buffers=buffers, lr=lr, momentum=momentum, weight_decay=weight_decay)

    def step(self) -> None:
        """One step along the gradients; weights without one stay."""
        found = [(at, weight.grad) for at, weight in enumerate(self.weights) if weight.grad is not None]
        if not found:
            return
        sgd(
            [self.values[at] for at, _ in found],
            [gradient for _, gradient in found],
            [self.buffers[at] if self.momentum else None for at, _ in found],
            fused=True,
            foreach=False,
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )


ADAMS: Mapping[str, Callable[..., torch.optim.Optimizer]] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Local training: the settings of ``[train]``, and the loop."""

    optimiser: str
    lr: float
    momentum: float
    weight_decay: float
    epochs: Mapping[str, int]
    batch_size: int
    schedule: str
    milestones: Sequence[int]
    gamma: float
    schedule_rounds: int
    clip_norm: float
    channels_last: bool
    bf16: bool
    augment: str
    task: LearningTask
    own_loss: Loss | None = None
    """A loss of one's own, instead of the task's."""
    device: str = "cpu"
    costs: dict[tuple[str, str], float] = field(default_factory=dict, compare=False, repr=False)
    """FLOPs of training on one sample by (tier, purpose): measured once, since a tier's net does not change."""

    @property
    def loss(self) -> Loss:
        """(outputs, targets) of a batch -> the scalar to be minimised."""
        return self.task.loss if self.own_loss is None else self.own_loss

    def base(self, net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """The plain objective: the loss of the net's output."""
        return self.loss(net(x), y)

    def lr_at(self, round: int) -> float:
        """The learning rate of a round (from 1): constant, cosine to zero, or times ``gamma`` after each milestone."""
        if self.schedule == "cosine":
            return self.lr * 0.5 * (1 + math.cos(math.pi * min(round - 1, self.schedule_rounds) / self.schedule_rounds))
        if self.schedule == "step":
            return self.lr * self.gamma ** sum(round > milestone for milestone in self.milestones)
        return self.lr

    def make_optimiser(self, weights: Iterable[nn.Parameter], round: int) -> Sgd | torch.optim.Optimizer:
        """A fresh optimiser over the trainable ones of the weights, at the round's learning rate."""
        trainable = [weight for weight in weights if weight.requires_grad]
        if self.optimiser in ADAMS:
            return ADAMS[self.optimiser](trainable, lr=self.lr_at(round), weight_decay=self.weight_decay)
        return Sgd.of(trainable, lr=self.lr_at(round), momentum=self.momentum, weight_decay=self.weight_decay)

    def train(
        self,
        net: nn.Module,
        context: DeviceContext,
        *,
        objective: Objective | None = None,
        adjust: Callable[[nn.Module], None] | None = None,
        data: Shard | None = None,
        epochs: int | None = None,
        purpose: str = "train",
    ) -> Trained:
        """Trains ``net`` in place on the device's data (or ``data``) for the tier's epochs (or ``epochs``).

        ``objective`` replaces the plain loss; ``adjust`` changes the gradients after each backward pass. Generators are
        derived for ``purpose``. Raises TrainingError, naming round, tier and device, when a loss is not finite.
        """
        shard = context.data if data is None else data
        passes = self.epochs[context.device.tier] if epochs is None else epochs
        minimised = self.base if objective is None else objective
        weights = list(net.parameters())
        optimiser = self.make_optimiser(weights, context.round)
        net.train()
        losses: list[Tensor] = []
        with self.seeded(context, purpose):
            for x, y, last in self.batches(shard, context.rng(purpose), passes):
                for weight in weights:
                    weight.grad = None
                with self.autocast():
                    loss = minimised(net, x, y)
                loss.backward()  # type: ignore[no-untyped-call]
                if adjust is not None:
                    adjust(net)
                self.clip(net)
                optimiser.step()
                if last:
                    losses.append(loss.detach())
        steps = passes * math.ceil(len(shard) / self.batch_size)
        mean = math.fsum(torch.stack(losses).tolist()) / len(losses) if losses else 0.0
        self.require_finite(mean, context)
        self.count(net, context, purpose, shard, passes * len(shard))
        return Trained(samples=len(shard), steps=steps, loss=mean)

    def batches(self, shard: Shard, rng: torch.Generator, epochs: int) -> Iterator[tuple[Tensor, Tensor, bool]]:
        """(x, y, whether this is the last epoch) over ``epochs`` shuffled passes; the last batch may be smaller."""
        if not len(shard):  # torch.split would give one batch of nothing, whose mean loss is NaN
            return
        x_all, y_all = shard.x.to(self.device), shard.y.to(self.device)
        for epoch in range(epochs):
            order = torch.randperm(len(shard), generator=rng).to(self.device)
            batches = zip(*(torch.split(held[order], self.batch_size) for held in (x_all, y_all)), strict=True)
            for picked, y in batches:
                x = crop_flip(picked, rng) if self.augment == "crop-flip" else picked
                if self.channels_last and x.dim() == 4:
                    x = x.contiguous(memory_format=torch.channels_last)
                yield x, y, epoch == epochs - 1

    def autocast(self) -> AbstractContextManager[None]:
        """bfloat16 autocast where asked for."""
        return torch.autocast(self.device, dtype=torch.bfloat16) if self.bf16 else nullcontext()

    @contextmanager
    def seeded(self, context: DeviceContext, purpose: str) -> Iterator[None]:
        """Seeds the global generator for the block (dropout draws from it) and restores it."""
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed: it notes three stack traces for devices that are not there, at 2 ms a call.
            torch.default_generator.manual_seed(context.rng(f"{purpose}/global").initial_seed())
            if self.device != "cpu":
                torch.cuda.manual_seed(torch.default_generator.initial_seed())
            yield

    def clip(self, net: nn.Module) -> None:
        """Clips the gradients' global norm where ``clip_norm`` is above zero."""
        if self.clip_norm > 0:
            nn.utils.clip_grad_norm_(net.parameters(), self.clip_norm)

    def require_finite(self, loss: float, context: DeviceContext) -> None:
        """Raises TrainingError unless ``loss`` is finite."""
        if not math.isfinite(loss):
            raise TrainingError(
                f"round {context.round}, tier {context.device.tier!r}, device {context.device.id}: the loss became "
                f"{loss}; lower train.lr (now {self.lr:g}), set train.clip_norm, or check the loss and the data"
            )

    def count(self, net: nn.Module, context: DeviceContext, purpose: str, shard: Shard, samples: int) -> None:
        """Adds the FLOPs of training on so many samples to the meter."""
        key = (context.device.tier, purpose)
        if key not in self.costs:
            self.costs[key] = training_flops(net, shard.inputs)
        meter.add_flops(self.costs[key] * samples)
