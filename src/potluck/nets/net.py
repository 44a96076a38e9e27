"""What a net says of itself, for experiments that name it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import nn

Shape = tuple[int, ...]
Maker = Callable[[Shape, int, str], nn.Module]
"""(shape of a sample, classes, norm) -> a fresh net, drawn from torch's global generator."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Net:
    """A net that an experiment can name: one line about it, and its maker."""

    line: str
    make: Maker
    kind: Literal["any", "ode", "deq"] = "any"
    rows: bool = False
    """Whether it also takes feature rows, of shape (features,)."""
    set_depth: Callable[[nn.Module, int], None] | None = None
    """Sets so many solver steps, or evaluations, on a net that was made; None: it has no depth to set."""
    own: bool = False
    """A function (shape, classes) of somebody's own, which chooses its norms and knows itself what it takes."""
