"""The loss of an equilibrium net in training, and what its solutions were like: residuals, evaluations, finiteness."""

from __future__ import annotations

import math
from collections import deque

import torch
from torch import Tensor, nn

from potluck.nets.deqnet import DeqNet, Loss, equilibrium_loss
from potluck.solvers import Result, Solution
from potluck.training.fit import Objective

P95 = 0.95
PENALISED = 0.25
"""The share of batches that bear the Jacobian penalty."""


class Watch:
    """The residuals of the newest ``batches`` solutions of ``steps`` evaluations, and counts over all solutions."""

    def __init__(self, batches: int, steps: int) -> None:
        self.steps = steps
        self.evaluations = 0
        """Of the cell, over all batches."""
        self.grad_steps = 0
        """The longest recorded tail: a phantom of more steps than the budget is clipped to it."""
        self._residuals: deque[Tensor] = deque(maxlen=max(1, batches))
        self._broken = torch.zeros(())

    def objective(self, loss: Loss, fixed_point_loss: float, jacobian_weight: float, rng: torch.Generator) -> Objective:
        """The loss with its correction and, in a quarter of the batches, its penalty (see ``equilibrium_loss``)."""

        def watched(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            assert isinstance(net, DeqNet), "checked before the run"
            penalised = jacobian_weight > 0 and float(torch.rand((), generator=rng)) < PENALISED
            value, solution = equilibrium_loss(
                net,
                x,
                y,
                loss=loss,
                fixed_point_loss=fixed_point_loss,
                jacobian_weight=jacobian_weight if penalised else 0.0,
                rng=rng,
            )
            self.see(solution, full=net.depth.steps == self.steps)
            return value

        return watched

    def see(self, solution: Solution, *, full: bool = True) -> None:
        """Takes in the solution of one batch; ``full`` unless it was solved at a smaller depth."""
        self.evaluations += solution.evaluations
        self.grad_steps = max(self.grad_steps, solution.grad_steps)
        self._broken = self._broken + (solution.result == Result.NOT_FINITE).sum().cpu()
        if full:
            self._residuals.append(solution.residual_B.detach())

    @property
    def finite(self) -> bool:
        """Whether every solution was."""
        return not bool(self._broken)

    def residuals(self) -> tuple[float, float]:
        """(mean, 95th percentile) over the samples; infinite where nothing was seen, or something was not finite."""
        if not self._residuals:
            return math.inf, math.inf
        found_B = torch.cat(list(self._residuals)).double()
        return float(found_B.mean()), float(found_B.sort().values[math.ceil(P95 * len(found_B)) - 1])
