"""The one local training loop, and the evaluation of a net.

Everything random (order of samples, augmentation, dropout) comes from the task's own generators, so a device trains the
same wherever it runs. The optimiser is made anew each round: no momentum survives a merge.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.sgd import sgd

from potluck.core import meter
from potluck.core.errors import TrainingError
from potluck.core.types import Shard, Task
from potluck.models.augment import crop_flip
from potluck.models.flops import training_flops
from potluck.models.replay import Replays, as_recorded

Loss = Callable[[Tensor, Tensor], Tensor]
Metric = Callable[[Tensor, Tensor], Tensor]
Objective = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""(net, x of a batch, y of a batch) -> the scalar to be minimised."""


def right(logits_BC: Tensor, y_B: Tensor) -> Tensor:
    """1.0 where the largest logit is the label's, else 0.0; shape (B,)."""
    return (logits_BC.argmax(dim=1) == y_B).to(torch.float64)


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
    loss: Loss
    device: str = "cpu"
    costs: dict[tuple[str, str], float] = field(default_factory=dict, compare=False, repr=False)
    """FLOPs of training on one sample by (tier, purpose): measured once, since a tier's net does not change."""
    replays: WeakKeyDictionary[nn.Module, Replays] = field(default_factory=WeakKeyDictionary, compare=False, repr=False)

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

    def make_optimiser(self, weights: Iterable[nn.Parameter], round: int) -> Sgd | torch.optim.Adam:
        """A fresh optimiser over the trainable ones of the weights, at the round's learning rate."""
        trainable = [weight for weight in weights if weight.requires_grad]
        if self.optimiser == "adam":
            return torch.optim.Adam(trainable, lr=self.lr_at(round), weight_decay=self.weight_decay)
        return Sgd.of(trainable, lr=self.lr_at(round), momentum=self.momentum, weight_decay=self.weight_decay)

    def train(
        self,
        net: nn.Module,
        task: Task,
        *,
        objective: Objective | None = None,
        adjust: Callable[[nn.Module], None] | None = None,
        data: Shard | None = None,
        epochs: int | None = None,
        purpose: str = "train",
    ) -> Trained:
        """Trains ``net`` in place on the task's data (or ``data``) for the tier's epochs (or ``epochs``).

        ``objective`` replaces the plain loss; ``adjust`` changes the gradients after each backward pass. Generators are
        derived for ``purpose``. Raises TrainingError, naming round, tier and device, when a loss is not finite.
        """
        shard = task.data if data is None else data
        passes = self.epochs[task.device.tier] if epochs is None else epochs
        minimised = self.base if objective is None else objective
        weights = list(net.parameters())
        optimiser = self.make_optimiser(weights, task.round)
        net.train()
        replayed = self.replays_of(net) if objective is None else None
        losses: list[Tensor] = []
        with self.seeded(task, purpose), as_recorded():
            for x, y, last in self.batches(shard, task.rng(purpose), passes):
                loss = replayed(net, x, y) if replayed is not None else None
                if loss is None:
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
        self.demand_finite(mean, task)
        self.count(net, task, purpose, shard, passes * len(shard))
        return Trained(samples=len(shard), steps=steps, loss=mean)

    def replays_of(self, net: nn.Module) -> Replays | None:
        """The recorded steps of the net, where it may have some: with our own loss, on the CPU, in float32."""
        if self.loss is not cross_entropy or self.bf16 or self.device != "cpu":
            return None
        held = self.replays.get(net)
        if held is None or not held.suit(net):
            held = self.replays[net] = Replays(net, self.loss)
        return held if held.any else None

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
    def seeded(self, task: Task, purpose: str) -> Iterator[None]:
        """Seeds the global generator for the block (dropout draws from it) and restores it."""
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed: it notes three stack traces for devices that are not there, at 2 ms a call.
            torch.default_generator.manual_seed(task.rng(f"{purpose}/global").initial_seed())
            if self.device != "cpu":
                torch.cuda.manual_seed(torch.default_generator.initial_seed())
            yield

    def clip(self, net: nn.Module) -> None:
        """Clips the gradients' global norm where ``clip_norm`` is above zero."""
        if self.clip_norm > 0:
            nn.utils.clip_grad_norm_(net.parameters(), self.clip_norm)

    def demand_finite(self, loss: float, task: Task) -> None:
        """Raises TrainingError unless ``loss`` is finite."""
        if not math.isfinite(loss):
            raise TrainingError(
                f"round {task.round}, tier {task.device.tier!r}, device {task.device.id}: the loss became {loss}; "
                f"lower train.lr (now {self.lr:g}), set train.clip_norm, or check the loss and the data"
            )

    def count(self, net: nn.Module, task: Task, purpose: str, shard: Shard, samples: int) -> None:
        """Adds the FLOPs of training on so many samples to the meter."""
        key = (task.device.tier, purpose)
        if key not in self.costs:
            self.costs[key] = training_flops(net, shard.shape)
        meter.add_flops(self.costs[key] * samples)


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Sums of a metric (for classification: right answers) and counts, by class and by domain; tensors for the wire."""

    right: Tensor
    total: Tensor
    domain_right: Tensor
    domain_total: Tensor


@torch.no_grad()
def evaluate(
    net: nn.Module, shard: Shard, *, metric: Metric = right, batch_size: int = 250, device: str = "cpu"
) -> Score:
    """The metric summed by class, (classes,), and by domain, (domains,): float64 sums and int64 counts."""
    net.eval()
    scores = []
    for rows in torch.split(torch.arange(len(shard)), batch_size):
        part = shard.take(rows)
        scores.append(metric(net(part.x.to(device)), part.y.to(device)).to("cpu", torch.float64))
    score = torch.cat(scores) if scores else torch.zeros(0, dtype=torch.float64)
    y = shard.y.clamp(0, shard.classes - 1)
    domain = shard.d if shard.d is not None else torch.zeros(0, dtype=torch.int64)
    kinds = int(shard.domains.max()) + 1 if shard.domains is not None and shard.domains.numel() else 0
    in_domain = score if len(domain) else score[:0]
    return Score(
        right=torch.bincount(y, weights=score, minlength=shard.classes).to(torch.float64),
        total=torch.bincount(y, minlength=shard.classes),
        domain_right=torch.bincount(domain, weights=in_domain, minlength=kinds).to(torch.float64),
        domain_total=torch.bincount(domain, minlength=kinds),
    )


def cross_entropy(logits_BC: Tensor, y_B: Tensor) -> Tensor:
    """The default loss: mean cross-entropy of a batch."""
    return F.cross_entropy(logits_BC, y_B)
