"""What a net says of itself, for experiments that name it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from potluck.core.types import Inputs, Kind

Shape = tuple[int, ...]
Maker = Callable[[Inputs, int, str], nn.Module]
"""(what it is given, numbers it says, norm) -> a fresh net, drawn from torch's global generator."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Net:
    """A net that an experiment can name: one line about it, and its maker."""

    line: str
    make: Maker
    kind: Literal["any", "ode", "deq"] = "any"
    inputs: Sequence[Kind] = ("images",)
    """What it takes."""
    per_step: bool = False
    """Whether it says something of each step, (n, steps, outputs), instead of (n, outputs)."""
    set_depth: Callable[[nn.Module, int], None] | None = None
    """Sets so many solver steps, or evaluations, on a net that was made; None: it has no depth to set."""
    own: bool = False
    """A function (shape, outputs), of tokens (shape, outputs, vocabulary), of somebody's own, which chooses its norms
    and knows itself what it takes."""


def by_shape(make: Callable[[Shape, int, str], nn.Module]) -> Maker:
    """A maker that knows its input by its shape alone."""
    return lambda inputs, outputs, norm: make(inputs.shape, outputs, norm)
