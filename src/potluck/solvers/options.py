"""Checks of options: one sentence with the name, the value and what was expected."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

MOST_STEPS = 1000


def demand(fits: bool, name: str, value: object, expected: str) -> None:
    """Raises ValueError ``name = value: expected ...`` unless ``fits``."""
    if not fits:
        raise ValueError(f"{name} = {value!r}: expected {expected}.")


def require_integer(name: str, value: object, low: int, high: int | None = None) -> None:
    """Raises ValueError unless ``value`` is an integer from ``low`` to ``high`` (None: no upper end)."""
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    fits = is_integer and low <= value and (high is None or value <= high)  # type: ignore[operator]  # an int here
    expected = f"an integer >= {low}" if high is None else f"an integer from {low} to {high}"
    demand(fits, name, value, expected)


def require_one_of(name: str, value: object, choices: Iterable[str]) -> None:
    """Raises ValueError unless ``value`` is one of ``choices``; offers the nearest of them."""
    known = list(choices)
    if value not in known:
        near = get_close_matches(str(value), known, n=1)
        hint = f' Did you mean "{near[0]}"?' if near else ""
        raise ValueError(f"{name} = {value!r}: expected one of {', '.join(known)}.{hint}")
