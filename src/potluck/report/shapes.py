"""What all figures share: panels, axes, colours, and how many points are enough.

A figure is plain plotly JSON. Its colours are names of CSS variables, ``var(--ink)``: the page's script puts in their
values, and does so anew when the reader's colour scheme changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from potluck.report.units import SHARES, plain

Point = TypeVar("Point")
MOST_POINTS = 500
"""Points of a line, and columns of bars: beyond, they are thinned out or summed up."""
MOST_DEVICES = 200
"""Devices that get a bar or a row of their own: beyond, a figure shows tiers."""
COLOURS = 12
TICKS = 8
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
INK, MUTED, GRID = "var(--ink)", "var(--ink-2)", "var(--grid)"
FONT = "ui-sans-serif, system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A line of a legend: the name of its traces, its colour and its dash; ``mark`` is line or box."""

    name: str
    colour: str
    dash: str = "solid"
    mark: str = "line"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """Plotly data and layout, a heading, and a height in pixels."""

    title: str
    data: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any]
    height: int = 280


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """Figures that share a heading, a sentence that says what they show, and a legend. ``columns`` is at most."""

    title: str
    text: str
    figures: Sequence[Figure]
    legend: Sequence[Entry] = field(default=())
    columns: int = 1


def colour(place: int) -> str:
    """The colour of the n-th series."""
    return f"var(--s{place % COLOURS})"


def axis(title: str = "", tick_format: str = "", suffix: str = "") -> dict[str, Any]:
    """An axis in the page's colours."""
    return {
        "title": {"text": plain(title), "font": {"size": 12}, "standoff": 8},
        "tickformat": tick_format,
        "ticksuffix": suffix,
        "gridcolor": GRID,
        "linecolor": GRID,
        "zerolinecolor": GRID,
        "automargin": True,
        "fixedrange": False,
    }


def round_axis(last: int) -> dict[str, Any]:
    """The axis of rounds, ``last`` of them at most: its ticks are whole numbers, about eight of them."""
    nice = (step * 10**power for power in range(12) for step in (1, 2, 5))
    return axis("round", "d") | {"tick0": 0, "dtick": next(step for step in nice if step * TICKS >= last)}


def layout(x: Mapping[str, Any], y: Mapping[str, Any], hover: str = "closest", mode: str = "group") -> dict[str, Any]:
    """A transparent layout with these axes."""
    return {
        "xaxis": x,
        "yaxis": y,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": FONT, "size": 12, "color": MUTED},
        "margin": {"l": 8, "r": 12, "t": 10, "b": 8},
        "showlegend": False,
        "hovermode": hover,
        "hoverlabel": {
            "bgcolor": "var(--surface)",
            "bordercolor": "var(--line)",
            "font": {"color": INK, "family": FONT, "size": 12},
            "namelength": -1,
        },
        "barmode": mode,
        "bargap": 0.25,
    }


def line(name: str, x: Sequence[float], y: Sequence[float | None], entry: Entry, hover: str) -> dict[str, Any]:
    """A line through the points, with markers where they are few. ``hover`` is a plotly template."""
    return {
        "type": "scatter",
        "mode": "lines+markers" if len(x) <= 30 else "lines",
        "name": plain(name),
        "x": x,
        "y": y,
        "line": {"color": entry.colour, "dash": entry.dash, "width": 2},
        "marker": {"size": 5, "color": entry.colour},
        "hovertemplate": hover,
    }


def thin(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most about ``most`` of the points, evenly apart, the first and the last among them."""
    if len(points) <= most:
        return list(points)
    step = -(-(len(points) - 1) // (most - 1))
    kept = list(points[:-1:step])
    return [*kept, points[-1]]


def binned(points: Sequence[Point], most: int = MOST_POINTS) -> list[Sequence[Point]]:
    """The points in runs of equal length, at most ``most`` of them."""
    step = max(1, -(-len(points) // most))
    return [points[start : start + step] for start in range(0, len(points), step)]


def time_unit(longest: float) -> tuple[float, str]:
    """Seconds in the unit of an axis that reaches ``longest`` seconds, and its name."""
    for seconds, name in ((86400.0, "days"), (3600.0, "h"), (60.0, "min")):
        if longest >= 3 * seconds:
            return seconds, name
    return 1.0, "s"


def score_format(metric: str) -> str:
    """The d3 format of a metric."""
    return ".1%" if metric in SHARES else ".4~g"


def same(values: Sequence[float], tolerance: float = 1e-9) -> bool:
    """Whether the values differ by rounding alone."""
    return max(values) - min(values) <= tolerance if values else True


def series(names: Sequence[str], start: int = 0) -> list[Entry]:
    """A legend with a colour for each name, and other dashes when colours come again."""
    return [
        Entry(name=name, colour=colour(place), dash=DASHES[place // COLOURS % len(DASHES)])
        for place, name in enumerate(names, start)
    ]


Read = Callable[[Any], float]
"""A number read off a round."""
