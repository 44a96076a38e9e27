"""Training at random depths, for nets that are to work at fewer steps than they were trained for, too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from potluck.training.fit import Objective

Steps = int | list[int]
"""A number of steps, or one for each stage of a net."""
SHORTENED = 0.5
"""With ``random_steps``, the share of batches that train at a depth drawn from 1 to the device's own."""


def at_depths(
    objective: Objective,
    set_depth: Callable[[nn.Module, Any], None],
    steps: Steps,
    rng: torch.Generator | None,
) -> Objective:
    """The objective, in half of the batches at a depth drawn from 1 to ``steps``; the same where ``rng`` is None.

    The first batch is at full depth, so that a device of one batch says how good it is there.
    """
    if rng is None:
        return objective
    first = iter([True])

    def varied(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        if next(first, False) or float(torch.rand((), generator=rng)) >= SHORTENED:
            return objective(net, x, y)
        set_depth(net, _drawn(steps, rng))
        try:
            return objective(net, x, y)
        finally:  # the net stays in this process, and its FLOPs are counted at its own depth
            set_depth(net, steps)

    return varied


def _drawn(steps: Steps, rng: torch.Generator) -> Steps:
    if isinstance(steps, int):
        return int(torch.randint(1, steps + 1, (), generator=rng))
    return [int(torch.randint(1, most + 1, (), generator=rng)) for most in steps]
