"""What a leaf may be: scalars of a kind and range, shapes with free dimensions."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from potluck.core.spec import (
    Array,
    Exactly,
    Free,
    Integers,
    Leaf,
    Number,
    OneOf,
    optional,
    scalar_fault,
    shape_fault,
    spec_of,
)

COUNT = Number(kind=int, low=1, high=10)
SHARE = Number(kind=float, low=0.0, high=1.0)
IDS = Integers(low=0, high=9, most=3)


@pytest.mark.parametrize(
    ("leaf", "value"),
    [
        (COUNT, 1),
        (COUNT, 10),
        (SHARE, 0.0),
        (SHARE, 1),
        (Number(kind=float), -1e300),
        (Number(kind=bool), True),
        (IDS, []),
        (IDS, [0, 9, 9]),
        (Exactly(value="a"), "a"),
        (Exactly(value=[1, 2]), [1, 2]),
    ],
)
def test_what_fits(leaf: Leaf, value: Any) -> None:
    assert scalar_fault(leaf, value) is None


@pytest.mark.parametrize(
    ("leaf", "value", "message"),
    [
        (COUNT, 0, "got 0, expected int in [1, 10]"),
        (COUNT, 11, "got 11, expected int in [1, 10]"),
        (COUNT, True, "got True, expected int in [1, 10]"),
        (COUNT, 1.0, "got 1.0, expected int in [1, 10]"),
        (COUNT, "1", "got '1', expected int in [1, 10]"),
        (COUNT, [1], "got [1], expected int in [1, 10]"),
        (COUNT, {}, "got {}, expected int in [1, 10]"),
        (SHARE, 1.5, "got 1.5, expected float in [0, 1]"),
        (SHARE, False, "got False, expected float in [0, 1]"),
        (Number(kind=bool), 1, "got 1, expected bool in [-inf, inf]"),
        (IDS, [0, 1, 2, 3], "expected a list of at most 3 integers in [0, 9]"),
        (IDS, [10], "expected a list of at most 3 integers in [0, 9]"),
        (IDS, [1.0], "expected a list of at most 3 integers in [0, 9]"),
        (IDS, [True], "expected a list of at most 3 integers in [0, 9]"),
        (IDS, "12", "expected a list of at most 3 integers in [0, 9]"),
        (Exactly(value=1), True, "got True, expected 1"),
        (Exactly(value=1), 1.0, "got 1.0, expected 1"),
        (Exactly(value=[1]), [True], "got [True], expected [1]"),
        (Exactly(value="a"), "b" * 500, "got 'bbbbbbbbbbbb...bbbbbbbbbbbbb', expected 'a'"),
        (Array(dtype=torch.float32, shape=(1,)), 1.0, "expected a tensor, got a scalar"),
    ],
)
def test_what_does_not_fit(leaf: Leaf, value: Any, message: str) -> None:
    assert scalar_fault(leaf, value) == message


RANK = Free("rank", 1, 4)
LEFT, RIGHT = Array(dtype=torch.float32, shape=(8, RANK)), Array(dtype=torch.float32, shape=(RANK, 5))


def test_a_free_dimension_is_the_same_everywhere() -> None:
    free: dict[str, int] = {}
    assert shape_fault(LEFT, (8, 3), free) is None
    assert shape_fault(RIGHT, (3, 5), free) is None
    assert shape_fault(RIGHT, (2, 5), free) == "got shape (2, 5), expected (1..4, 5) with 'rank' the same everywhere"
    assert free == {"rank": 3}


@pytest.mark.parametrize("shape", [(8, 0), (8, 5), (7, 3), (8,), (8, 3, 1), ()])
def test_shapes_that_do_not_fit(shape: tuple[int, ...]) -> None:
    assert "expected (8, 1..4)" in str(shape_fault(LEFT, shape, {}))


def test_sizes_of_a_spec() -> None:
    assert (LEFT.fewest_values(), LEFT.most_values(), LEFT.most_bytes()) == (8, 32, 128)
    assert Array(dtype=torch.float64, shape=()).most_bytes() == 8


def test_the_spec_of_a_tree_and_its_optional_form() -> None:
    found = spec_of({"w": torch.zeros(2, 3, dtype=torch.int8), "n": 3, "inner": {"e": {}}})
    assert found == {
        "w": Array(dtype=torch.int8, shape=(2, 3)),
        "n": Exactly(value=3),
        "inner": {"e": {}},
    }
    form = OneOf(({"u": LEFT, "v": RIGHT}, {"w": LEFT}))
    loose = optional({**found, "f": form})
    assert loose["w"].optional
    assert loose["n"].optional
    assert loose["f"] == OneOf(form.choices, optional=True)
    assert not found["w"].optional
