"""The figures of several runs: side by side, and accuracy against bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from potluck.report import costs, plots, shapes
from potluck.report.runs import Run
from potluck.report.shapes import DASHES, Entry, Figure, Panel, axis, layout, line
from potluck.report.units import plain, score, size, title, words

Box = tuple[float, float, float, float]
"""Left, right, low, high."""
DRAWN = (600, 330)
"""Pixels of the drawing area of the narrowest figure that shows all names, and of its height."""
SIDES = ("top left", "top right", "bottom right", "bottom left")
LETTER, HIGH, GAP = 7, 16, 9
"""Pixels: a letter's width, a name's height, and how far from the middle of its point a name begins."""
LOG_FROM = 20
"""The ratio of the most to the least bytes from which on their axis is logarithmic."""


def labels(runs: Sequence[Run]) -> list[str]:
    """A name for each run: method, and seed where they differ; where that is not enough, the run folder's name too."""
    seeds = len({run.seed for run in runs}) > 1
    short = [f"{run.method}, seed {run.seed}" if seeds else run.method for run in runs]
    made = [
        f"{name} ({run.path.name})" if short.count(name) > 1 else name for name, run in zip(short, runs, strict=True)
    ]
    return [f"{name} [{place}]" if made.count(name) > 1 else name for place, name in enumerate(made, start=1)]


def groups(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs that differ in their seed, name and folder alone, by method."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        table = {
            key: value for key, value in run.experiment.items() if key not in ("name", "seed", "engine", "methods")
        }
        found.setdefault(repr(table), []).append(run)
    methods = [members[0].method for members in found.values()]
    names = [
        f"{method} ({members[0].path.name}, …)" if methods.count(method) > 1 else method
        for method, members in zip(methods, found.values(), strict=True)
    ]
    return dict(zip(names, found.values(), strict=True))


def legend(runs: Sequence[Run], names: Sequence[str]) -> list[Entry]:
    """A colour for each method as it was set, a dash for each of its seeds; other dashes where colours come again."""
    made: dict[int, tuple[int, int]] = {}
    for place, members in enumerate(groups(runs).values()):
        for turn, run in enumerate(members):
            made[id(run)] = (place, turn)
    return [
        Entry(
            name=name,
            colour=shapes.colour(made[id(run)][0]),
            dash=DASHES[(made[id(run)][0] // shapes.COLOURS + made[id(run)][1]) % len(DASHES)],
        )
        for name, run in zip(names, runs, strict=True)
    ]


def curves(runs: Sequence[Run], entries: Sequence[Entry], name: str) -> Panel | None:
    """The mean, or the worst, of each run, by round, by bytes and by simulated time."""
    shown = [(run, entry) for run, entry in zip(runs, entries, strict=True) if run.evaluated]
    if not shown:
        return None
    figures = []
    for x in plots.progress_axes([run for run, _ in shown]):
        data = [_curve(run, entry, name, x) for run, entry in shown]
        ends = [x.places(run, run.evaluated[-1:])[0] for run, _ in shown]
        stretch = {} if x.kind == "round" else _spread(ends)
        title = f"{x.title}, log scale" if stretch else x.title
        made = layout(x.axis(title) | stretch, plots.score_axis(runs[0].metric))
        figures.append(Figure(title=x.heading, data=data, layout=made))
    title = {"mean": f"Mean {words(runs[0].metric)}", "worst": "Worst device"}.get(name, f"Tier {name}")
    return Panel(title=title, text="", figures=figures, legend=[entry for _, entry in shown], columns=3)


def _curve(run: Run, entry: Entry, name: str, x: plots.Progress) -> dict[str, Any]:
    rounds = shapes.thin(run.evaluated)
    places = x.places(run, rounds)
    hover = f"%{{y:{shapes.score_format(run.metric)}}} · %{{customdata}}"
    made = line(entry.name, places, [plots.value_of(found.scores, name) for found in rounds], entry, hover)
    return made | {"customdata": x.words(places)}


def tiers(runs: Sequence[Run], entries: Sequence[Entry]) -> Panel | None:
    """Each tier by round, a figure each; none where no run tells its tiers apart."""
    shown = [(run, entry) for run, entry in zip(runs, entries, strict=True) if run.evaluated]
    names = list(dict.fromkeys(name for run, _ in shown for name in (run.scores.tiers if run.scores else {})))
    apart = any(run.scores and not shapes.same(list(run.scores.tiers.values())) for run, _ in shown)
    if not apart:
        return None
    x = plots.progress_axes([run for run, _ in shown])[0]
    figures = [
        Figure(
            title=f"tier {name}",
            data=[_curve(run, entry, name, x) for run, entry in shown],
            layout=layout(x.axis(x.title), plots.score_axis(runs[0].metric)),
        )
        for name in names
    ]
    legend = [entry for _, entry in shown]
    return Panel(title=f"{title(runs[0].metric)} by tier", text="", figures=figures, legend=legend, columns=3)


def pareto(runs: Sequence[Run], entries: Sequence[Entry]) -> Panel | None:
    """The metric against bytes, and the front of those that no other run beats in both."""
    shown = [(run, entry, run.scores) for run, entry in zip(runs, entries, strict=True) if run.scores and run.rounds]
    if len(shown) < 2:
        return None
    points = [(run.traffic.total, scores.mean) for run, _, scores in shown if scores]
    best = front([(x, runs[0].gain(y)) for x, y in points])
    stretch = _spread([x for x, _ in points])
    x = axis("bytes sent, up and down" + (", log scale" if stretch else ""), "~s", "B") | stretch
    sides = _named(points, [entry.name for _, entry, _ in shown], best, log="type" in x)
    data: list[Mapping[str, Any]] = [_front_line([points[place] for place in best])]
    for place, (run, entry, _) in enumerate(shown):
        data.append(_point(run, entry, points[place], place in best, sides.get(place)))
    names = ", ".join(shown[place][1].name for place in best)
    up = "Up" if runs[0].better == "higher" else "Down"
    return Panel(
        title=f"{title(runs[0].metric)} against bytes",
        text=f"{up} and to the left is better. Ringed and joined is the Pareto front, the runs that no other beats in "
        f"both: {names}. An open mark is a run that is not finished.",
        figures=[Figure(title="", data=data, layout=layout(x, plots.score_axis(runs[0].metric)), height=400)],
        legend=[Entry(name=entry.name, colour=entry.colour, mark="box") for _, entry, _ in shown],
    )


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """The places of the points that none other beats with as few bytes or fewer, as accurate or more, by bytes."""
    kept = [
        place
        for place, (x, y) in enumerate(points)
        if not any(a <= x and b >= y and (a, b) != (x, y) for a, b in points)
    ]
    return sorted(kept, key=lambda place: points[place])


def _front_line(points: Sequence[tuple[float, float]]) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "Pareto front",
        "x": [x for x, _ in points],
        "y": [y for _, y in points],
        "line": {"color": shapes.MUTED, "width": 1.5, "dash": "dot", "shape": "hv"},
        "hoverinfo": "skip",
    }


def _spread(values: Sequence[float]) -> dict[str, Any]:
    """What makes an axis logarithmic, where the values are far enough apart."""
    low, high = min(values), max(values)
    return {"type": "log", "dtick": 1} if low > 0 and high / low >= LOG_FROM else {}


def _named(
    points: Sequence[tuple[float, float]], names: Sequence[str], best: Sequence[int], log: bool
) -> dict[int, str]:
    """Which points carry their name, and on which side: the front first, as far as no name meets a name or a point."""
    at = [(math.log(x) if log else x, y) for x, y in points]
    lows, highs = ([pick(value[i] for value in at) for i in (0, 1)] for pick in (min, max))
    widths = [(high - low) or 1.0 for low, high in zip(lows, highs, strict=True)]
    placed = [[DRAWN[i] * (value[i] - lows[i]) / widths[i] for i in (0, 1)] for value in at]
    taken: dict[int, list[Box]] = {place: [(x - GAP, x + GAP, y - GAP, y + GAP)] for place, (x, y) in enumerate(placed)}
    sides: dict[int, str] = {}
    for place in [*reversed(best), *(other for other in range(len(points)) if other not in best)]:
        others = [box for other, boxes in taken.items() if other != place for box in boxes]
        x, y = placed[place]
        for side in SIDES:
            box = _beside(x, y, side, LETTER * len(names[place]))
            if box[0] > -GAP and box[1] < DRAWN[0] + GAP and not any(_meet(box, other) for other in others):
                sides[place] = side
                taken[place].append(box)
                break
    return sides


def _beside(x: float, y: float, side: str, wide: int) -> Box:
    left = x - wide if side.endswith("left") else x
    low = y + GAP if side.startswith("top") else y - GAP - HIGH
    return left, left + wide, low, low + HIGH


def _meet(a: Box, b: Box) -> bool:
    return a[0] < b[1] and b[0] < a[1] and a[2] < b[3] and b[2] < a[3]


def _point(run: Run, entry: Entry, point: tuple[float, float], on_front: bool, side: str | None) -> dict[str, Any]:
    x, y = point
    return {
        "type": "scatter",
        "mode": "markers+text" if side else "markers",
        "name": plain(entry.name),
        "x": [x],
        "y": [y],
        "text": [plain(entry.name)],
        "textposition": side or "top center",
        "cliponaxis": False,
        "marker": {
            "size": 13 if on_front else 10,
            "symbol": "circle" if run.finished else "circle-open",
            "color": entry.colour,
            "line": {"color": shapes.INK, "width": 2 if on_front else 0},
        },
        "hovertemplate": f"{score(y, run.metric)} · {size(x)}",
    }


def bytes_bars(runs: Sequence[Run], names: Sequence[str]) -> Panel | None:
    """The bytes of each run by direction."""
    parts = [run.traffic for run in runs]
    if not any(part.total for part in parts):
        return None
    bars = costs.traffic_bars([plain(name) for name in names], parts, [plain(name) for name in names])
    flipped = [bar | {"orientation": "h", "x": bar["y"], "y": bar["x"]} for bar in bars]
    y = axis() | {"type": "category", "autorange": "reversed"}
    made = layout(axis("", "~s", "B"), y, mode="stack")
    figure = Figure(title="", data=flipped, layout=made, height=70 + 30 * len(runs))
    return Panel(
        title="Bytes of each run", text=costs.WHOLE_FRAMES, figures=[figure], legend=costs.traffic_legend(parts)
    )
