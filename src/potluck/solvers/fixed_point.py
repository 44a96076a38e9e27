"""What a forward solver is, and the plainest one.

A solver is a frozen value with two pure functions over an explicit state; the loop that calls them stands in
``solve.py``. It must treat each sample of the batch on its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from potluck.solvers.options import demand


class Solver(Protocol):
    """Chooses the next iterate. The first axis of every tensor is the batch B."""

    def init(self, z: Tensor) -> Any:
        """The state before the first step."""

    def step(self, state: Any, z: Tensor, f_z: Tensor, residual_B: Tensor) -> tuple[Tensor, Any]:
        """The iterate after ``z``, in z's shape, and the next state; ``residual_B`` is the residual at ``z``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedPointState:
    """Plain iteration remembers nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedPoint:
    """z_{k+1} = (1 - damping) z_k + damping f(z_k); below 1 it helps where the Jacobian has an eigenvalue near -1."""

    damping: float = 1.0

    def __post_init__(self) -> None:
        demand(0 < self.damping <= 1, "damping", self.damping, "0 < damping <= 1 (1 is the plain iteration)")

    def init(self, z: Tensor) -> FixedPointState:
        """The empty state."""
        return FixedPointState()

    def step(
        self, state: FixedPointState, z: Tensor, f_z: Tensor, residual_B: Tensor
    ) -> tuple[Tensor, FixedPointState]:
        """One damped step, differentiable; f(z) itself, bit by bit, at damping 1."""
        del residual_B
        return (f_z if self.damping == 1 else torch.lerp(z, f_z, self.damping)), state
