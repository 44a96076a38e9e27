"""How the gradient of a solution is found: four frozen values, and the autograd node of the implicit one.

With v = ∂L/∂z at the output and J, ∂f/∂θ at the last evaluation, the gradient in the weights θ is

    Unroll          that of the K-step computation, exactly
    JFB             (∂f/∂θ)ᵀ v                                            (Fung et al., arXiv 2103.12803)
    Phantom(k, τ)   back-propagation through the last k steps, damped by τ (Geng et al., arXiv 2111.05177)
    IFT(B)          (∂f/∂θ)ᵀ u_B,  u_0 = v,  u_{j+1} = v + Jᵀ u_j         (Bai et al., arXiv 1909.01377)

Only ``Unroll`` sends a gradient to the starting point: for the others it is a constant.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from potluck.solvers.fixed_point import FixedPoint, Solver
from potluck.solvers.options import MOST_STEPS, demand, require_integer


@dataclass(frozen=True, slots=True, kw_only=True)
class Unroll:
    """Back-propagation through all K steps; needs the solver ``FixedPoint``, whose damping it uses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JFB:
    """Jacobian-free back-propagation: through the last step alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Phantom:
    """Back-propagation through the last ``steps`` evaluations, which are damped plain steps.

    More steps than the budget K are clipped to K; ``Solution.grad_steps`` records what was used.
    """

    steps: int = 5
    damping: float = 1.0

    def __post_init__(self) -> None:
        require_integer("steps", self.steps, 1)
        demand(0 < self.damping <= 1, "damping", self.damping, "0 < damping <= 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class IFT:
    """The implicit gradient by ``steps`` vector-Jacobian products at the last evaluation, without evaluating anew.

    ``tol`` stops a sample early, relative to the norm of its incoming gradient (None: never). ``solver`` works on
    u → v + Jᵀu. First order only.
    """

    steps: int = 8
    tol: float | None = None
    solver: Solver = field(default_factory=FixedPoint)

    def __post_init__(self) -> None:
        require_integer("steps", self.steps, 0, MOST_STEPS)
        demand(self.tol is None or 0 < self.tol < 1, "tol", self.tol, "0 < tol < 1, or None for exactly `steps`")


Gradient = Unroll | JFB | Phantom | IFT


def tail_of(gradient: Gradient, solver: Solver, steps: int) -> tuple[int, float]:
    """How many of the ``steps`` evaluations are recorded, and their damping.

    It does not depend on whether gradients are enabled, so training and evaluation return the same value. Raises
    ValueError for ``Unroll`` with another solver than ``FixedPoint``.
    """
    match gradient:
        case Unroll():
            if not isinstance(solver, FixedPoint):
                raise ValueError(
                    f"gradient = Unroll() with solver = {solver!r}: expected FixedPoint, since differentiating an "
                    "accelerated solver is fragile; choose FixedPoint, or one of Phantom, JFB, IFT."
                )
            return steps, solver.damping
        case Phantom():
            return min(gradient.steps, steps), gradient.damping
        case JFB() | IFT():
            return 1, 1.0
    raise ValueError(f"gradient = {gradient!r}: expected one of Unroll(), JFB(), Phantom(...), IFT(...).")


Adjoint = Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]
"""(u → Jᵀu, v) → u."""


def implicit(y: Tensor, z_in: Tensor, adjoint: Adjoint) -> Tensor:
    """y = f(z_in) unchanged, whose gradient v becomes ``adjoint(u → Jᵀu, v)`` before it goes on into f.

    ``z_in`` is a leaf that requires gradients. The graph of that one evaluation serves all products, so memory does
    not grow with their number.
    """
    attached: Tensor = _Implicit.apply(y, z_in, adjoint)  # type: ignore[no-untyped-call]  # torch leaves it so
    return attached


class _Implicit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, z_in: Tensor, adjoint: Adjoint) -> Tensor:
        # An input that is saved keeps its own history, so y brings the graph of f with it; no reference cycle, since
        # the output is not saved.
        ctx.save_for_backward(y, z_in)
        ctx.adjoint = adjoint
        return y.view_as(y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, None, None]:
        y, z_in = ctx.saved_tensors

        def transposed(u: Tensor) -> Tensor:
            product: Tensor = torch.autograd.grad(y, z_in, u, retain_graph=True)[0]
            return product

        u: Tensor = ctx.adjoint(transposed, v)
        return u, None, None
