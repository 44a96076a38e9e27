"""The solver and the gradient of an equilibrium net, from the tables ``[method.solver]`` and ``[method.gradient]``.

    [method.solver]     kind = fixed_point (damping) | anderson (damping, history, ridge);  tol = 0: exactly the steps
    [method.gradient]   kind = unroll | jfb | phantom (steps, damping) | ift (steps)

Whatever is unknown, out of range, or does not belong to the kind is an error that names the key; nothing is ignored.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from potluck.core.errors import ConfigError
from potluck.solvers import IFT, JFB, Anderson, FixedPoint, Gradient, Phantom, Solver, Unroll
from potluck.solvers.anderson import WARM_UP
from potluck.solvers.gradient import tail_of

Table = Mapping[str, Any]
SOLVERS: Mapping[str, tuple[Callable[..., Solver], Collection[str]]] = {
    "fixed_point": (FixedPoint, ("damping",)),
    "anderson": (Anderson, ("damping", "history", "ridge")),
}
GRADIENTS: Mapping[str, tuple[Callable[..., Gradient], Collection[str]]] = {
    "unroll": (Unroll, ()),
    "jfb": (JFB, ()),
    "phantom": (Phantom, ("steps", "damping")),
    "ift": (IFT, ("steps",)),
}
LEAST_FOR_ANDERSON, LEAST_FOR_IFT = 5, 5
"""Below so many evaluations an accelerated solver gains nothing, and an implicit gradient is that of nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Equation:
    """How a cell is solved: solver, gradient, and the tolerance (None: exactly as many evaluations as steps)."""

    solver: Solver
    gradient: Gradient
    tol: float | None


def equation_of(solver: Table, gradient: Table) -> Equation:
    """The equation of the two tables. Raises ConfigError."""
    tol = solver.get("tol", 0)
    _require_number("method.solver.tol", tol)
    if not 0 <= tol < 1:
        raise ConfigError(f"method.solver.tol = {tol!r}: expected 0 (exactly the steps), or 0 < tol < 1.")
    rest = {key: value for key, value in solver.items() if key != "tol"}
    made = _made("method.solver", rest, SOLVERS)
    chosen = _made("method.gradient", gradient, GRADIENTS)
    if isinstance(chosen, Unroll) and not isinstance(made, FixedPoint):
        raise ConfigError(
            f'method.gradient.kind = "unroll" with method.solver.kind = "{solver["kind"]}": expected "fixed_point", '
            "since differentiating an accelerated solver is fragile; or choose phantom, jfb or ift."
        )
    return Equation(solver=made, gradient=chosen, tol=float(tol) or None)


def doubts(equation: Equation, steps: Mapping[str, int], *, correction: float) -> list[str]:
    """Warnings about an equation with these steps by tier, and the weight of a fixed-point correction.

    Raises ConfigError for a tolerance without effect.
    """
    free = {tier: count - tail_of(equation.gradient, equation.solver, count)[0] for tier, count in steps.items()}
    if equation.tol is not None and not any(free.values()):
        raise ConfigError(
            f"method.solver.tol = {equation.tol:g} has no effect: all evaluations of every tier belong to the recorded "
            "tail, which is exact; set tol = 0, take more steps, or a gradient with a shorter tail."
        )
    said = []
    if correction and isinstance(equation.gradient, (JFB, IFT)):
        said.append(
            f"fixed_point_loss = {correction:g} adds nothing: the gradient records the last evaluation only; set it to "
            "0, or choose phantom or unroll."
        )
    few = [tier for tier, count in steps.items() if count < LEAST_FOR_IFT]
    if isinstance(equation.gradient, IFT) and few:
        said.append(
            f'gradient.kind = "ift" with at most {LEAST_FOR_IFT - 1} steps (tiers {", ".join(few)}): the implicit '
            "gradient at a point that has not converged is that of nothing; choose phantom."
        )
    # The first WARM_UP steps are plain, and so is the tail: with fewer free steps the solver is never asked to mix.
    plain = [tier for tier, count in steps.items() if count < LEAST_FOR_ANDERSON or free[tier] <= WARM_UP]
    if isinstance(equation.solver, Anderson) and plain:
        tail = tail_of(equation.gradient, equation.solver, max(steps.values()))[0]
        said.append(
            f'solver.kind = "anderson" gains nothing for tiers {", ".join(plain)}: with a recorded tail of {tail} it '
            f"first differs from fixed_point at {tail + WARM_UP + 1} steps, and pays from {LEAST_FOR_ANDERSON} upwards."
        )
    return said


def _made(key: str, table: Table, kinds: Mapping[str, tuple[Callable[..., Any], Collection[str]]]) -> Any:
    kind = str(table.get("kind", ""))
    if kind not in kinds:
        given = f'{key}.kind = "{kind}"' if kind else f"{key}.kind: missing"
        raise ConfigError(f"{given}: expected one of {', '.join(kinds)}.{_hint(kind, kinds)}")
    make, known = kinds[kind]
    options = {name: value for name, value in table.items() if name != "kind"}
    for name, value in options.items():
        if name not in known:
            owners = [other for other, (_, names) in kinds.items() if name in names]
            if owners:
                raise ConfigError(f"{key}.{name}: an option of {', '.join(owners)}, not of {kind}; remove it.")
            raise ConfigError(
                f"{key}.{name}: unknown; expected some of {', '.join(['kind', *known])}.{_hint(name, known)}"
            )
        _require_number(f"{key}.{name}", value)
    try:
        return make(**options)
    except ValueError as error:
        raise ConfigError(f"{key}.{error}") from None


def _require_number(key: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(f"{key} = {value!r}: expected a number.")


def _hint(given: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(given, list(known), n=1)
    return f' Did you mean "{near[0]}"?' if near else ""
