"""The figures of one run: what it learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from potluck.report import shapes
from potluck.report.runs import Round, Run, Scores
from potluck.report.shapes import Entry, Figure, Panel, axis, layout, line, round_axis
from potluck.report.units import SHARES, duration, plain, score, size, title, words

BINS = 20
MOST_TEXT = 120
"""Cells of a heat map that carry their number."""


def metric_lines(run: Run) -> Panel | None:
    """Accuracy by round, by bytes and by simulated seconds; none where nothing was evaluated yet."""
    rounds = shapes.thin(run.evaluated)
    if not rounds:
        return None
    names, one = _curves(run, rounds)
    entries = [Entry(name="mean", colour=shapes.INK), Entry(name="worst", colour=shapes.MUTED, dash="dot")]
    entries += shapes.series([tier.name for tier in run.tiers])
    legend = [entry for entry in entries if entry.name in names]
    text = (
        "Every tier deploys the same model here, so mean, worst and all tiers are one line."
        if one
        else "Of the model that a device would deploy after that round, on the held-out test set: the mean over "
        "devices, the worst device, and the mean of each tier."
    )
    figures = [_against(run, rounds, legend, x) for x in progress_axes([run])]
    return Panel(title=title(run.metric), text=text, figures=figures, legend=() if one else legend, columns=3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """An x axis along which a run makes progress. ``scale`` is in seconds."""

    kind: Literal["round", "bytes", "seconds"]
    title: str
    scale: float = 1.0
    tick_format: str = ""
    suffix: str = ""
    last: int = 0
    """The last round of the longest run."""

    def axis(self, title: str) -> dict[str, Any]:
        """The axis of a figure."""
        return round_axis(self.last) if self.kind == "round" else axis(title, self.tick_format, self.suffix)

    @property
    def heading(self) -> str:
        """What stands above a figure with this axis."""
        return {"round": "by round", "bytes": "by bytes sent", "seconds": "by simulated time"}[self.kind]

    def places(self, run: Run, rounds: Sequence[Round]) -> list[float]:
        """The places of the rounds."""
        if self.kind == "round":
            return [float(found.number) for found in rounds]
        if self.kind == "seconds":
            return [found.simulated_seconds / self.scale for found in rounds]
        sent, by_round = 0, {}
        for found in run.rounds:
            sent += found.traffic.total
            by_round[found.number] = sent
        return [float(by_round[found.number]) for found in rounds]

    def words(self, places: Sequence[float]) -> list[str]:
        """The places as a person reads them."""
        if self.kind == "round":
            return [f"round {place:.0f}" for place in places]
        return [duration(p * self.scale) if self.kind == "seconds" else size(p) for p in places]


def progress_axes(runs: Sequence[Run]) -> list[Progress]:
    """By round, by bytes sent, by simulated time."""
    scale, unit = shapes.time_unit(max((run.rounds[-1].simulated_seconds for run in runs if run.rounds), default=0))
    return [
        Progress(kind="round", title="round", last=max((run.done for run in runs), default=0)),
        Progress(kind="bytes", title="bytes sent, up and down", tick_format="~s", suffix="B"),
        Progress(kind="seconds", title=f"simulated time ({unit})", scale=scale),
    ]


def _curves(run: Run, rounds: Sequence[Round]) -> tuple[set[str], bool]:
    """The names of the curves worth drawing, and whether they are all one."""
    found = [line.scores for line in rounds if line.scores is not None]
    if all(shapes.same([a.mean, a.worst, *a.tiers.values()]) for a in found):
        return {"mean"}, True
    return {"mean", "worst", *(name for a in found for name in a.tiers)}, False


def value_of(scores: Scores | None, name: str) -> float | None:
    """The mean, the worst, or a tier's accuracy."""
    if scores is None:
        return None
    return {"mean": scores.mean, "worst": scores.worst}.get(name, scores.tiers.get(name))


def _against(run: Run, rounds: Sequence[Round], legend: Sequence[Entry], x: Progress) -> Figure:
    places = x.places(run, rounds)
    words = x.words(places)
    data = []
    for entry in legend:
        y = [value_of(found.scores, entry.name) for found in rounds]
        made = line(entry.name, places, y, entry, f"%{{y:{shapes.score_format(run.metric)}}}")
        made["line"]["width"] = 3 if entry.name == "mean" else 1.75
        made["customdata"] = words
        made["hovertemplate"] = f"%{{y:{shapes.score_format(run.metric)}}} · %{{customdata}}"
        data.append(made)
    return Figure(
        title=x.heading,
        data=data,
        layout=layout(x.axis(x.title), score_axis(run.metric)),
    )


def score_axis(metric: str, title: str = "") -> dict[str, object]:
    """The axis of a metric."""
    return axis(title, ".0%" if metric in SHARES else "")


def on_own_data(run: Run) -> Panel | None:
    """The last evaluated round on each device's own test data, by device."""
    last = next(iter(run.evaluated[-1:]), None)
    if last is None or last.own is None:
        return None
    made = _histogram(run, last.own) if len(last.own.devices) > shapes.MOST_DEVICES else _by_device(run, last.own)
    worst, mean = score(last.own.worst, run.metric), score(last.own.mean, run.metric)
    return replace(
        made,
        title=f"Final {words(run.metric)} on each device's own data",
        text=f"What each device would deploy, on what it held out of its own data: mean {mean}, worst {worst}.",
    )


def final(run: Run) -> Panel | None:
    """The last evaluated round by device, where devices own their models; else by tier."""
    scores = run.scores
    if scores is None:
        return None
    if not scores.devices:
        return _by_tier(run, scores)
    if len(scores.devices) > shapes.MOST_DEVICES:
        return _histogram(run, scores)
    return _by_device(run, scores)


def _by_tier(run: Run, scores: Scores) -> Panel | None:
    if shapes.same(list(scores.tiers.values())) or not scores.tiers:
        return None
    ordered = sorted(scores.tiers, key=lambda tier: run.gain(scores.tiers[tier]))
    worst = ordered[0]
    colours = {entry.name: entry.colour for entry in shapes.series([tier.name for tier in run.tiers])}
    data = {
        "type": "bar",
        "orientation": "h",
        "x": [scores.tiers[tier] for tier in ordered],
        "y": [plain(tier) for tier in ordered],
        "text": [score(scores.tiers[t], run.metric) + (" · worst" if t == worst else "") for t in ordered],
        "textposition": "auto",
        "marker": {
            "color": [colours.get(tier, shapes.MUTED) for tier in ordered],
            "pattern": {"shape": ["/" if tier == worst else "" for tier in ordered]},
        },
        "hovertemplate": f"%{{y}}: %{{x:{shapes.score_format(run.metric)}}}<extra></extra>",
    }
    y = axis() | {"type": "category"}
    figure = Figure(title="", data=[data], layout=layout(score_axis(run.metric), y), height=70 + 38 * len(scores.tiers))
    return Panel(
        title=f"Final {words(run.metric)} by tier",
        text="One model a tier, so a bar is the figure of each of its devices. The hatched bar is the worst tier.",
        figures=[figure],
    )


def _by_device(run: Run, scores: Scores) -> Panel:
    tier_of = run.tier_of
    ordered = sorted(scores.devices, key=lambda device: (-run.gain(scores.devices[device]), device))
    worst = ordered[-1]
    legend = [Entry(name=e.name, colour=e.colour, mark="box") for e in shapes.series([tier.name for tier in run.tiers])]
    data = []
    for entry in legend:
        mine = [device for device in ordered if tier_of.get(device) == entry.name]
        data.append(
            {
                "type": "bar",
                "name": plain(entry.name),
                "x": [str(device) for device in mine],
                "y": [scores.devices[device] for device in mine],
                "marker": {
                    "color": entry.colour,
                    "pattern": {"shape": ["/" if device == worst else "" for device in mine]},
                },
                "hovertemplate": f"device %{{x}}: %{{y:{shapes.score_format(run.metric)}}}",
            }
        )
    x = axis("device, best to worst") | {"type": "category", "categoryarray": [str(device) for device in ordered]}
    made = layout(x | {"categoryorder": "array", "tickangle": 0}, score_axis(run.metric), mode="overlay")
    return Panel(
        title=f"Final {words(run.metric)} by device",
        text=f"Each device has a model of its own. The worst one, hatched, is device {worst} "
        f"({tier_of.get(worst, 'unknown tier')}) with {score(scores.devices[worst], run.metric)}.",
        figures=[Figure(title="", data=data, layout=made, height=300)],
        legend=legend,
    )


def _histogram(run: Run, scores: Scores) -> Panel:
    values, tier_of = scores.devices, run.tier_of
    low, high = min(values.values()), max(values.values())
    width = (high - low) / BINS or 1.0
    middles = [low + (place + 0.5) * width for place in range(BINS)]
    legend = [Entry(name=e.name, colour=e.colour, mark="box") for e in shapes.series([tier.name for tier in run.tiers])]
    data = []
    for entry in legend:
        counts = [0] * BINS
        for device, value in values.items():
            if tier_of.get(device) == entry.name:
                counts[min(BINS - 1, int((value - low) / width))] += 1
        hover = f"%{{y}} devices at about %{{x:{shapes.score_format(run.metric)}}}"
        marker = {"color": entry.colour}
        name = plain(entry.name)
        data.append({"type": "bar", "name": name, "x": middles, "y": counts, "hovertemplate": hover, "marker": marker})
    worst = min(values, key=lambda device: (run.gain(values[device]), device))
    made = layout(score_axis(run.metric) | {"title": {"text": plain(words(run.metric))}}, axis("devices"))
    return Panel(
        title=f"Final {words(run.metric)} of the devices",
        text=f"How many of the {len(values):,} devices reached what. The worst is device {worst} "
        f"({tier_of.get(worst, 'unknown tier')}) with {score(values[worst], run.metric)}.",
        figures=[Figure(title="", data=data, layout=made | {"barmode": "stack", "bargap": 0.05}, height=300)],
        legend=legend,
    )


def domains(run: Run) -> Panel | None:
    """Accuracy by domain of the last evaluated round: rows are devices where each has its own model, else tiers."""
    scores = run.scores
    if scores is None or not scores.domains:
        return None
    rows = _domain_rows(run, scores)
    wide = max(len(values) for values in rows.values())
    cells = wide * len(rows)
    data = {
        "type": "heatmap",
        "x": [f"domain {place}" for place in range(wide)],
        "y": [plain(name) for name in rows],
        "z": list(rows.values()),
        "colorscale": [[0, "var(--heat-0)"], [1, "var(--heat-1)"]],
        "texttemplate": f"%{{z:{shapes.score_format(run.metric)}}}" if cells <= MOST_TEXT else "",
        "xgap": 2,
        "ygap": 2,
        "showscale": cells > MOST_TEXT,
        "colorbar": {"thickness": 10, "outlinewidth": 0, "tickformat": ".0%" if run.metric in SHARES else ""},
        "hovertemplate": f"%{{y}}, %{{x}}: %{{z:{shapes.score_format(run.metric)}}}<extra></extra>",
    }
    y = axis() | {"type": "category", "autorange": "reversed", "showgrid": False}
    made = layout(axis() | {"showgrid": False, "type": "category"}, y)
    return Panel(
        title=f"Final {words(run.metric)} by domain",
        text="The same models, on the test samples of each domain apart.",
        figures=[Figure(title="", data=[data], layout=made, height=max(130, 60 + min(40, 30) * len(rows)))],
    )


def _domain_rows(run: Run, scores: Scores) -> dict[str, list[float]]:
    tier_of = run.tier_of
    if scores.devices and len(scores.domains) <= 40:
        return {
            f"device {device} ({tier_of.get(device, '?')})": list(v) for device, v in sorted(scores.domains.items())
        }
    rows: dict[str, list[float]] = {}
    for tier in run.tiers:
        found = [scores.domains[device] for device in tier.devices if device in scores.domains]
        if found:
            rows[tier.name] = [sum(column) / len(column) for column in zip(*found, strict=False)]
    values = list(rows.values())
    if len(values) > 1 and all(shapes.same(list(column)) for column in zip(*values, strict=False)):
        return {"every tier": values[0]}
    return rows
