"""z = f(z) with a budget of exactly K evaluations: problem, solver and gradient are three arguments, the loop is one.

The K evaluations split into a solver part (no graph) and a recorded tail of plain steps:

    gradient         solver part   tail   in backward
    Unroll           0             K      one pass through K
    JFB              K - 1         1      one pass through 1
    Phantom(k, τ)    K - k'        k'     one pass through k' = min(k, K)
    IFT(B)           K - 1         1      B vector-Jacobian products, then one pass through 1
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from potluck.core.errors import SolveError
from potluck.solvers.fixed_point import FixedPoint, Solver
from potluck.solvers.gradient import IFT, Gradient, Unroll, implicit, tail_of
from potluck.solvers.options import demand, require_integer, require_one_of

Map = Callable[[Tensor], Tensor]
"""z → f(z), of equal shape, sample by sample; the injection and the weights are closed over."""
TINY = 1e-9


class Result(IntEnum):
    """How a sample ended."""

    OK = 0
    CONVERGED = 1
    STEP_LIMIT = 2
    NOT_FINITE = 3


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Solution:
    """Where the iteration ended, and what it cost.

    ``value`` has the shape of z0. ``result`` (B,) holds ``Result`` values: without a tolerance OK, with one CONVERGED
    (it stopped below, or ended below) or STEP_LIMIT; NOT_FINITE where f was not, or its norm overflowed, and the value
    is the last finite iterate. ``steps_B`` counts the evaluations spent on each sample, the tail included;
    ``evaluations`` those of the batch. ``residual_B`` is ‖f(z) - z‖ / ‖f(z)‖ at the last point where f was evaluated,
    one step before ``value``. ``grad_steps`` is the length of the recorded tail; ``tail`` holds its iterates before
    ``value``, oldest first, with their graph, and is empty while gradients are off.
    """

    value: Tensor
    result: Tensor
    steps_B: Tensor
    evaluations: int
    residual_B: Tensor
    grad_steps: int
    tail: tuple[Tensor, ...]

    def ok(self) -> Solution:
        """Itself, or SolveError with one sentence for each kind of failure."""
        said = []
        size = self.result.numel()
        broken = int((self.result == Result.NOT_FINITE).sum())
        if broken:
            said.append(f"f was not finite for {broken} of {size} samples: lower the damping, or normalise f's output.")
        late_B = self.result == Result.STEP_LIMIT
        if bool(late_B.any()):
            worst = float(self.residual_B[late_B].max())
            said.append(
                f"{int(late_B.sum())} of {size} samples did not converge within {self.evaluations} evaluations "
                f"(worst residual {worst:.3g}): raise steps or tol."
            )
        if said:
            raise SolveError(" ".join(said))
        return self


def solve(
    f: Map,
    z0: Tensor,
    *,
    solver: Solver,
    gradient: Gradient,
    steps: int,
    tol: float | None = None,
    stop: Literal["per_sample", "never"] = "per_sample",
) -> Solution:
    """The iterate after exactly ``steps`` evaluations of ``f`` from ``z0`` (B, ...), in training and evaluation alike.

    With ``tol`` a sample leaves the solver part once its residual is at most ``tol``, so at most ``steps`` evaluations
    are made; under ``stop="never"`` the tolerance is only reported. A stopped sample is held, not dropped: ``f`` closes
    over the whole batch. Nothing is raised for a failed solve unless ``.ok()`` is called. Bad options raise ValueError.
    """
    require_integer("steps", steps, 1)
    demand(tol is None or 0 < tol < 1, "tol", tol, "0 < tol < 1, or None for exactly `steps` evaluations")
    require_one_of("stop", stop, ("per_sample", "never"))
    length, damping = tail_of(gradient, solver, steps)
    with torch.no_grad():
        stop_tol = tol if stop == "per_sample" else None
        part = iterate(f, z0, solver=solver, steps=steps - length, tol=stop_tol, last_residual=False)
    recording = torch.is_grad_enabled()
    start = z0 if isinstance(gradient, Unroll) else part.z.detach()
    adjoint = gradient if isinstance(gradient, IFT) and recording else None
    if adjoint is not None:
        start.requires_grad_()
    tail = iterate(f, start, solver=FixedPoint(damping=damping), steps=length, record=recording)
    value = tail.z if adjoint is None else implicit(tail.z, start, partial(_solve_adjoint, adjoint))
    return Solution(
        value=value,
        result=_results(part.samples, tail.samples, tol),
        steps_B=part.samples.steps_B + length,
        evaluations=part.evaluations + length,
        residual_B=tail.samples.residual_B,
        grad_steps=length,
        tail=tail.states,
    )


def _results(part: Samples, tail: Samples, tol: float | None) -> Tensor:
    result_B = torch.full_like(tail.steps_B, Result.OK, dtype=torch.int8)
    if tol is not None:
        met_B = part.met_B | (tail.residual_B <= tol)
        result_B = torch.where(met_B, result_B.new_tensor(Result.CONVERGED), result_B.new_tensor(Result.STEP_LIMIT))
    return result_B.masked_fill(~(part.finite_B & tail.finite_B), Result.NOT_FINITE)


def _solve_adjoint(ift: IFT, transposed: Map, v: Tensor) -> Tensor:
    """u with u = v + Jᵀu, by the solver of ``ift``; its tolerance is relative to ‖v‖, sample by sample."""
    return iterate(
        lambda u: v + transposed(u),
        v,
        solver=ift.solver,
        steps=ift.steps,
        tol=ift.tol,
        scale_B=_norm(v),
        last_residual=False,
    ).z


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Samples:
    """What became of each sample so far: evaluations, the last residual, whether it met the tolerance, was finite."""

    steps_B: Tensor
    residual_B: Tensor
    met_B: Tensor
    finite_B: Tensor

    def active(self) -> Tensor:
        """Which samples still move (B,)."""
        return self.finite_B & ~self.met_B

    def after(self, residual_B: Tensor, sound_B: Tensor, tol: float | None) -> Samples:
        """The tally after one more evaluation. A sample that rests gives the same f, hence the same findings, again."""
        return Samples(
            steps_B=self.steps_B + self.active(),
            residual_B=residual_B,
            met_B=self.met_B if tol is None else self.met_B | (residual_B <= tol),
            finite_B=self.finite_B & sound_B,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Iteration:
    """What the loop returns: the iterate, those between the start and it (if recorded), and the samples' tally."""

    z: Tensor
    states: tuple[Tensor, ...]
    evaluations: int
    samples: Samples


def iterate(
    f: Map,
    z0: Tensor,
    *,
    solver: Solver,
    steps: int,
    tol: float | None = None,
    scale_B: Tensor | None = None,
    record: bool = False,
    last_residual: bool = True,
) -> Iteration:
    """The loop. ``steps`` evaluations (0 or more) with the solver's steps; fewer only if ``tol`` stops every sample.

    ``scale_B`` replaces ‖f(z)‖ in the residual. ``record`` keeps the iterates between ``z0`` and the last. Without
    ``last_residual`` the residual is measured only where a tolerance or the solver asks for it, else infinite.
    """
    z, state, states, done, plain_steps = z0, solver.init(z0), [], 0, 0
    samples, traced = _fresh(z0), torch.compiler.is_compiling()  # a traced net has no values to branch on
    plain = tol is None and isinstance(solver, FixedPoint) and not traced
    while done < steps and (tol is None or bool(samples.active().any())):
        f_z = f(z).to(z0.dtype)  # under autocast f may return fewer bits than the iterate has
        assert f_z.shape == z.shape, f"f: expected a result of shape {tuple(z.shape)}, got {tuple(f_z.shape)}"
        done += 1
        norm_B = _norm(f_z)
        plain = plain and (done < steps or not last_residual) and math.isfinite(norm_B.sum())
        if plain:  # every sample moves, and nobody would look at its residual
            plain_steps = done
            z, state = solver.step(state, z, f_z, samples.residual_B)
        else:
            sound_B = torch.isfinite(norm_B)
            residual_B = _residual(z, f_z, norm_B, scale_B).masked_fill(~sound_B, torch.inf)
            moving_B = samples.active() & sound_B
            stepped, state = solver.step(state, z, f_z, residual_B)
            # A sample that meets the tolerance here still takes the step it has paid for. where() gives the same z.
            z = stepped if not traced and bool(moving_B.all()) else torch.where(_like(moving_B, z), stepped, z)
            samples = samples.after(residual_B, sound_B, tol)
        if record and done < steps:
            states.append(z)
    samples = replace(samples, steps_B=samples.steps_B + plain_steps)
    return Iteration(z=z, states=tuple(states), evaluations=done, samples=samples)


def _fresh(z0: Tensor) -> Samples:
    steps_B = torch.zeros(z0.shape[0], dtype=torch.int64, device=z0.device)
    return Samples(
        steps_B=steps_B,
        residual_B=torch.full_like(steps_B, torch.inf, dtype=torch.float32),
        met_B=steps_B != 0,
        finite_B=steps_B == 0,
    )


def _residual(z: Tensor, f_z: Tensor, norm_B: Tensor, scale_B: Tensor | None) -> Tensor:
    # A scale that is given has no floor: gradients may be of any size.
    unit_B = norm_B + TINY if scale_B is None else scale_B.clamp(min=torch.finfo(scale_B.dtype).tiny)
    return _norm(f_z.detach() - z.detach()) / unit_B


def _norm(z: Tensor) -> Tensor:
    """The 2-norm over everything but the batch axis, in float32 at least; a constant to autograd."""
    dtype = torch.promote_types(z.dtype, torch.float32)
    others = tuple(range(1, z.dim()))  # not flattened, which would copy what lies channels last
    norm_B: Tensor = torch.linalg.vector_norm(z.detach(), dim=others, dtype=dtype)
    return norm_B


def _like(flag_B: Tensor, z: Tensor) -> Tensor:
    return flag_B.reshape(-1, *[1] * (z.ndim - 1))
