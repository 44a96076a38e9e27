"""The exceptions: one root, the built-in kinds a caller may catch, and messages that name who and what."""

from __future__ import annotations

import inspect
import re

import pytest

from potluck.core import errors
from potluck.core.errors import MissingExtraError, PotluckError, WireError

FOUND = {
    name: value
    for name, value in vars(errors).items()
    if inspect.isclass(value) and issubclass(value, PotluckError) and value is not PotluckError
}


def test_the_drawing_shows_the_tree() -> None:
    drawn = dict(re.findall(r"[├└]── (\w+) \((\w+)\)", errors.__doc__ or ""))
    assert drawn == {name: value.__bases__[1].__name__ for name, value in FOUND.items()}
    assert len(drawn) == 9


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (WireError("too long"), "too long"),
        (WireError("too long", device=3), "device 3: too long"),
        (WireError("too long", tensor="a/b"), "tensor 'a/b': too long"),
        (WireError("too long", device=0, tensor="a"), "device 0: tensor 'a': too long"),
    ],
)
def test_a_wire_error_says_who_what_and_why(error: WireError, text: str) -> None:
    assert str(error) == text
    assert error.reason == "too long"


def test_a_missing_extra_says_how_to_install_it() -> None:
    assert (
        str(MissingExtraError("plotting", "lab")) == 'plotting needs an optional dependency: pip install "potluck[lab]"'
    )
