"""z' = f(z, t) from t = 0 by a fixed number of explicit steps.

    method     evaluations a step   order
    euler      1                    1
    midpoint   2                    2
    heun       2                    2
    rk4        4                    4       (the classical one)

The gradient is ordinary back-propagation through the steps: it belongs to the discrete map that is evaluated. The
continuous adjoint is another gradient on a coarse grid, and is not offered.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recompute

from potluck.solvers.options import demand, require_integer, require_one_of

Number = float | Tensor
"""A float, or a tensor of no axes."""
Field = Callable[[Tensor, Number], Tensor]
"""(z, t) → z'."""


def odeint(f: Field, z0: Tensor, *, steps: int, method: str, h: Number, checkpoint: bool = False) -> Tensor:
    """z after ``steps`` steps, in the shape of ``z0``.

    ``h`` is the step length, or a tensor of ``steps`` lengths, in which the result is differentiable. The j-th step
    starts at t = j·h, or at the sum of the lengths before it. ``checkpoint`` keeps one state a step and evaluates f
    again in the backward pass: same value, same gradient, less memory. Bad options raise ValueError.
    """
    require_integer("steps", steps, 1)
    require_one_of("method", method, METHODS)
    step = METHODS[method]
    save = checkpoint and torch.is_grad_enabled()
    z = z0
    for t, length in _grid(steps, h):
        z = recompute(step, f, z, t, length, use_reentrant=False) if save else step(f, z, t, length)
    return z


def _grid(steps: int, h: Number) -> list[tuple[Number, Number]]:
    """(t_j, h_j). Times are products, not running sums: adding up 1/C in floats ends beyond 1 for some C."""
    if not isinstance(h, Tensor):
        demand(math.isfinite(h), "h", h, "a finite number")
        return [(j * h, h) for j in range(steps)]
    demand(h.shape == (steps,), "shape of h", tuple(h.shape), f"({steps},), one length for each step")
    return list(zip((torch.cumsum(h, 0) - h).unbind(), h.unbind(), strict=True))


def _euler(f: Field, z: Tensor, t: Number, h: Number) -> Tensor:
    return z + h * f(z, t)


def _midpoint(f: Field, z: Tensor, t: Number, h: Number) -> Tensor:
    return z + h * f(z + h / 2 * f(z, t), t + h / 2)


def _heun(f: Field, z: Tensor, t: Number, h: Number) -> Tensor:
    a = f(z, t)
    b = f(z + h * a, t + h)
    return z + h / 2 * (a + b)


def _rk4(f: Field, z: Tensor, t: Number, h: Number) -> Tensor:
    a = f(z, t)
    b = f(z + h / 2 * a, t + h / 2)
    c = f(z + h / 2 * b, t + h / 2)
    d = f(z + h * c, t + h)
    return z + h / 6 * (a + 2 * b + 2 * c + d)


METHODS: dict[str, Callable[[Field, Tensor, Number, Number], Tensor]] = {
    "euler": _euler,
    "midpoint": _midpoint,
    "heun": _heun,
    "rk4": _rk4,
}
EVALUATIONS = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4}
"""Evaluations of f in one step."""
