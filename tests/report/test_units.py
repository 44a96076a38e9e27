"""Numbers as a person reads them."""

from __future__ import annotations

import math

import pytest

from potluck.report import units


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (64_418_016, "64.4 MB"),
        (999_700, "1.00 MB"),
        (5e15, "5000 TB"),
        (None, "–"),
        (math.nan, "–"),
    ],
)
def test_size(given: float | None, shown: str) -> None:
    assert units.size(given) == shown


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (0, "0 s"),
        (0.0123, "12.3 ms"),
        (5.507, "5.51 s"),
        (99.96, "1 min 40 s"),
        (3599.6, "1 h 00 min"),
        (7500, "2 h 05 min"),
        (273_600, "3 d 4 h"),
        (None, "–"),
    ],
)
def test_duration(given: float | None, shown: str) -> None:
    assert units.duration(given) == shown


def test_score_is_percent_for_accuracy_alone() -> None:
    assert units.score(0.9554) == "95.5%"
    assert units.score(2.345678, "perplexity") == "2.346"
    assert units.score(None) == "–"


def test_ranges() -> None:
    assert units.ranges([5, 1, 2, 3, 3]) == "1–3, 5"
    assert units.ranges([]) == ""
    assert units.ranges(range(0, 100, 2), most=3) == "0, 2, 4, …"


def test_esc_leaves_markup_alone_and_escapes_all_else() -> None:
    assert units.esc("<b>&'\"") == "&lt;b&gt;&amp;&#x27;&quot;"
    assert units.esc(units.Html("<b>")) == "<b>"
    assert units.plain("<a href='x'>") == "&lt;a href='x'&gt;"
