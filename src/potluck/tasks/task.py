"""The protocol of a learning task, and sums that add up exactly.

A metric is made of *totals*: a table of int64 tensors, sums over samples. Whole numbers add up to the same whatever the
order and the split, so the totals of devices add up to those of all their data, bit by bit. What is no count is a
fixed-point number of ``STEP``. (torchmetrics keeps float32 states, whose sums depend on the split, and is slow to
import: the metrics here are its, and tests compare them with it, but the sums are our own.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from potluck.core.types import TargetFacts

Totals = Mapping[str, Tensor]
Better = Literal["higher", "lower"]
STEP = 2.0**-20
"""A sum of real numbers is a whole number of these."""
MOST = 2.0**20
"""What one sample adds to a sum is at most so much; 2^23 samples of it fit into 64 bits."""
IGNORED = -100
"""A target that does not count, as torch's cross-entropy has it: what stands behind the end of a text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Soft:
    """What peers may tell each other of a sample: numbers in [low, high], which add up to one if ``distribution``."""

    low: float
    high: float
    distribution: bool
    tempered: bool = True
    """Whether a temperature makes them softer."""


class LearningTask(Protocol):
    """A frozen dataclass of ``facts`` and the settings of ``[task]``, checked by their annotations."""

    name: ClassVar[str]
    """What ``[task] kind`` calls it."""
    primary: ClassVar[str]
    """The metric that tables, targets and rules use."""
    better: ClassVar[Better]
    per_step: ClassVar[bool]
    """Whether a net says something of each step of a sample, (n, steps, outputs), instead of (n, outputs)."""
    soft: ClassVar[Soft | None]
    """What peers may tell each other; None: nothing."""

    def __init__(self, *, facts: TargetFacts) -> None: ...

    @property
    def facts(self) -> TargetFacts:
        """What is known of the targets."""

    @property
    def outputs(self) -> int:
        """How many numbers a net says of a sample, or of a step of it."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The scalar to be minimised: a mean over what counts."""

    def totals(self, outputs: Tensor, targets: Tensor) -> Totals:
        """Sums over samples, int64, of shapes that depend on ``facts`` alone, also where there is no sample."""

    def metrics(self, totals: Totals) -> dict[str, float]:
        """The metrics by name, ``primary`` among them, of sums that were added up."""

    def breakdown(self, totals: Totals) -> dict[str, float]:
        """The metric of each class, label or target by its name; empty where there is no such thing."""

    def fault(self, totals: Totals) -> str:
        """What cannot be true of such sums, in words, or nothing: they may come from somebody else's device."""

    def soften(self, outputs: Tensor, temperature: float) -> Tensor:
        """What peers may tell each other, (n, outputs), as ``soft`` says."""

    def agree(self, outputs: Tensor, soft: Tensor, temperature: float) -> Tensor:
        """How far outputs are from what others say of the same samples: a scalar, least where they say the same."""


def added(first: Totals, second: Totals) -> dict[str, Tensor]:
    """The totals of both."""
    return {name: value + second[name] for name, value in first.items()}


def fixed(values: Tensor) -> Tensor:
    """The sum over the first axis, int64 in steps of ``STEP``; what is not a number counts ``MOST``."""
    wide = values.detach().to(torch.float64).nan_to_num(nan=MOST, posinf=MOST, neginf=-MOST).clamp(-MOST, MOST)
    return (wide / STEP).round().to(torch.int64).sum(dim=0)


def real(total: Tensor) -> Tensor:
    """The real number that such a sum stands for, float64."""
    return total.to(torch.float64) * STEP


def ratio(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole, 0 where there is nothing, float64."""
    return part.to(torch.float64) / whole.to(torch.float64).clamp(min=1)


def mean_of(values: Tensor, there: Tensor) -> float:
    """The mean of those values that are there; 0 of none."""
    return float(values[there].mean()) if bool(there.any()) else 0.0


def negative(totals: Totals) -> str:
    """The fault of sums that are below zero or beyond reason."""
    for name, value in totals.items():
        if bool(((value < 0) | (value > 2**62)).any()):
            return f"{name} below zero or beyond reason"
    return ""


def told_by(targets: Tensor) -> str:
    """The task that targets are of, as their type says."""
    if targets.dtype == torch.uint8:
        return "multilabel"
    if targets.is_floating_point():
        return "regression"
    return "classification" if targets.ndim == 1 else "next_token"


def strata_of(targets: Tensor, facts: TargetFacts) -> tuple[Tensor, int]:
    """A number from 0 for each sample, (n,), by which samples are shared out, and how many such numbers there are.

    Classes are classes; numbers are tenths of their range by rank (of the first target); of marks the first one that is
    set; of texts there is one stratum.
    """
    kind = told_by(targets)
    if kind == "classification":
        return targets, facts.outputs
    if kind == "multilabel":
        marked = torch.cat([targets, torch.ones_like(targets[:, :1])], dim=1)
        return marked.argmax(dim=1), facts.outputs + 1
    if kind == "regression":
        rank = torch.argsort(torch.argsort(targets[:, 0], stable=True), stable=True)
        return rank * TENTHS // max(1, len(targets)), TENTHS
    return torch.zeros(len(targets), dtype=torch.int64), 1


TENTHS = 10
