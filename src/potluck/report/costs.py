"""The figures of one run: what it cost, what its devices noted, and who did not make it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from potluck.report import ledger, shapes
from potluck.report.ledger import Traffic
from potluck.report.runs import Round, Run
from potluck.report.shapes import Entry, Figure, Panel, axis, layout, line, round_axis
from potluck.report.units import duration, plain, size

NAMES = {"up": "up", "down": "down", "setup": "set-up", "evaluate": "evaluation"}
WHOLE_FRAMES = "Bytes are those of whole frames, headers included: a method that shares nothing still sends headers."
COLUMNS = 300
STATES = ("not asked", "aggregated", "late", "lost", "rejected")


def traffic_legend(parts: Sequence[Traffic]) -> list[Entry]:
    """The directions in which any byte went."""
    shown = [kind for kind in NAMES if kind in ("up", "down") or any(part.of(kind) for part in parts)]
    return [Entry(name=NAMES[kind], colour=f"var(--{kind})", mark="box") for kind in shown]


def traffic_bars(x: Any, parts: Sequence[Traffic], words: Sequence[str]) -> list[dict[str, Any]]:
    """Stacked bars at ``x``, a trace for each direction in which any byte went."""
    kinds = {name: kind for kind, name in NAMES.items()}
    return [
        {
            "type": "bar",
            "name": entry.name,
            "x": x,
            "y": [part.of(kinds[entry.name]) for part in parts],
            "customdata": [
                f"{word}: {size(part.of(kinds[entry.name]))}" for word, part in zip(words, parts, strict=True)
            ],
            "hovertemplate": "%{customdata}",
            "marker": {"color": entry.colour},
        }
        for entry in traffic_legend(parts)
    ]


def bytes_panels(run: Run) -> Panel | None:
    """Bytes by device and by round, by direction."""
    if not run.rounds:
        return None
    legend = traffic_legend([*run.ledger.traffic.values(), *(found.traffic for found in run.rounds)])
    apart = " Evaluation is the report's own cost and no part of the total." if run.traffic.evaluate else ""
    return Panel(
        title="Bytes",
        text="Encoded frames, as they crossed the link, measured and not estimated." + apart,
        figures=[_bytes_by_device(run), _bytes_by_round(run)],
        legend=legend,
        columns=2,
    )


def _bytes_by_device(run: Run) -> Figure:
    found, tier_of = run.ledger.traffic, {**run.ledger.tiers, **run.tier_of}
    y = axis("", "~s", "B")
    if len(found) > shapes.MOST_DEVICES:
        names = [tier.name for tier in run.tiers]
        parts = [_mean([found[d] for d in tier.devices if d in found]) for tier in run.tiers]
        data = traffic_bars([plain(name) for name in names], parts, [f"mean {name}" for name in map(plain, names)])
        title = "per device, mean of each tier"
        return Figure(title=title, data=data, layout=layout(axis() | {"type": "category"}, y, mode="stack"))
    devices = sorted(found)
    words = [f"device {device} ({plain(tier_of.get(device, '?'))})" for device in devices]
    # Two rows of labels: the tier below its devices.
    x = [[plain(tier_of.get(device, "?")) for device in devices], [str(device) for device in devices]]
    made = axis() | {"type": "multicategory", "dividercolor": "var(--line)", "tickangle": 0}
    made["showticklabels"] = len(devices) <= 40
    return Figure(
        title="by device",
        data=traffic_bars(x, [found[d] for d in devices], words),
        layout=layout(made, y, mode="stack"),
    )


def _mean(parts: Sequence[Traffic]) -> Traffic:
    whole, many = ledger.add(parts), max(1, len(parts))
    return Traffic(**{kind: whole.of(kind) // many for kind in ledger.KINDS})


def _bytes_by_round(run: Run) -> Figure:
    bins = shapes.binned(run.rounds, COLUMNS)
    parts = [_mean([found.traffic for found in rounds]) for rounds in bins]
    each = len(bins[0])
    x = [rounds[0].number if each == 1 else (rounds[0].number + rounds[-1].number) / 2 for rounds in bins]
    data = traffic_bars(x, parts, [_rounds_word(rounds) for rounds in bins])
    title = "by round" if each == 1 else f"by round, mean of every {each}"
    return Figure(title=title, data=data, layout=layout(round_axis(run.done), axis("", "~s", "B"), mode="stack"))


def _rounds_word(rounds: Sequence[Round]) -> str:
    first, last = rounds[0].number, rounds[-1].number
    return f"round {first}" if first == last else f"rounds {first}–{last}, each"


def notes(run: Run) -> tuple[Panel | None, Mapping[str, Mapping[str, float]]]:
    """A figure for each note that varies over the rounds, and the constant ones: note -> tier -> value."""
    found: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for round in run.rounds:
        for tier, values in round.notes.items():
            for name, value in values.items():
                found.setdefault(name, {}).setdefault(tier, []).append((round.number, value))
    constant = {
        name: {tier: points[-1][1] for tier, points in tiers.items()}
        for name, tiers in found.items()
        if all(shapes.same([value for _, value in points], 0.0) for points in tiers.values())
    }
    legend = [
        entry for entry in shapes.series([t.name for t in run.tiers]) if any(entry.name in t for t in found.values())
    ]
    figures = [_note(name, tiers, legend, run.done) for name, tiers in sorted(found.items()) if name not in constant]
    if not figures:
        return None, constant
    text = "What devices noted beside their replies, as the mean over the devices of a tier that were aggregated."
    return Panel(title="Notes by tier", text=text, figures=figures, legend=legend, columns=3), constant


def _note(name: str, tiers: Mapping[str, Sequence[tuple[int, float]]], legend: Sequence[Entry], last: int) -> Figure:
    data = []
    for entry in legend:
        points = shapes.thin(tiers.get(entry.name, ()))
        if points:
            x, y = [float(round) for round, _ in points], [value for _, value in points]
            data.append(line(entry.name, x, y, entry, "%{y:.4~g} · round %{x}"))
    return Figure(title=name, data=data, layout=layout(round_axis(last), axis("", ".4~g")), height=240)


def wall(run: Run) -> Panel | None:
    """Where the wall time went, summed over rounds."""
    sums: dict[str, float] = {}
    for round in run.rounds:
        for part, seconds in round.parts.items():
            sums[part] = sums.get(part, 0.0) + seconds
    if not sums:
        return None
    ordered = sorted(sums, key=lambda part: sums[part])
    legend = [
        Entry(name="the round loop", colour="var(--up)", mark="box"),
        Entry(name="on devices, summed over them", colour="var(--down)", mark="box"),
    ]
    data = []
    for entry, on_devices in zip(legend, (False, True), strict=True):
        mine = [part for part in ordered if part.startswith("device ") == on_devices]
        data.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": entry.name,
                "x": [sums[part] for part in mine],
                "y": [plain(part) for part in mine],
                "text": [duration(sums[part]) for part in mine],
                "textposition": "auto",
                "marker": {"color": entry.colour},
                "hovertemplate": "%{y}: %{text}<extra></extra>",
            }
        )
    y = axis() | {"type": "category", "categoryorder": "array", "categoryarray": [plain(part) for part in ordered]}
    figure = Figure(
        title="", data=data, layout=layout(axis("seconds"), y, mode="overlay"), height=80 + 30 * len(ordered)
    )
    text = (
        "Wall seconds over all rounds, on the machine that ran them. Parts overlap: what devices do, encoding and "
        "decoding lie within “exchange and merge”, and devices of a pool work side by side."
    )
    return Panel(title="Where the wall time went", text=text, figures=[figure], legend=legend)


def status_map(run: Run) -> Panel | None:
    """Devices by rounds, or tiers by rounds where devices are many; none where all replies were aggregated."""
    if not run.ledger.troubles:
        return None
    bins = shapes.binned(run.rounds, COLUMNS)
    if sum(len(tier.devices) for tier in run.tiers) > shapes.MOST_DEVICES:
        return _tier_map(run, bins)
    codes = _codes(run, bins)
    labels = [f"{device} {plain(tier.name)}" for tier in run.tiers for device in tier.devices]
    data = {
        "type": "heatmap",
        "x": [rounds[0].number for rounds in bins],
        "y": labels,
        "z": codes,
        "zmin": -0.5,
        "zmax": len(STATES) - 0.5,
        "text": [[STATES[code] for code in row] for row in codes],
        "colorscale": _state_colours(),
        "showscale": False,
        "xgap": 1 if len(bins) <= 100 else 0,
        "ygap": 1 if len(labels) <= 60 else 0,
        "hovertemplate": "device %{y}, round %{x}: %{text}<extra></extra>",
    }
    y = axis("device") | {"type": "category", "autorange": "reversed", "showgrid": False}
    made = layout(round_axis(run.done) | {"showgrid": False}, y)
    height = 80 + (22 if len(labels) <= 40 else 6) * len(labels)
    legend = [Entry(name=state, colour=f"var(--{state.replace(' ', '-')})", mark="box") for state in STATES]
    each = len(bins[0])
    several = f" A column is {each} rounds and shows the worst of them." if each > 1 else ""
    return Panel(
        title="Who was there, by round",
        text="Late, lost and rejected replies are paid for in bytes and are not aggregated." + several,
        figures=[Figure(title="", data=[data], layout=made, height=height)],
        legend=legend,
    )


def _state_colours() -> list[list[Any]]:
    """A colour scale of steps, one a state."""
    names = [f"var(--{state.replace(' ', '-')})" for state in STATES]
    return [[edge / len(names), name] for place, name in enumerate(names) for edge in (place, place + 1)]


def _codes(run: Run, bins: Sequence[Sequence[Round]]) -> list[list[int]]:
    """For each device and bin of rounds the place in STATES; of several rounds, the highest."""
    column = {found.number: place for place, rounds in enumerate(bins) for found in rounds}
    devices = [device for tier in run.tiers for device in tier.devices]
    codes = {device: [0] * len(bins) for device in devices}
    for found in run.rounds:
        for device in found.cohort:
            if device in codes:
                codes[device][column[found.number]] = max(codes[device][column[found.number]], 1)
    for trouble in run.ledger.troubles:
        for number in trouble.rounds:
            if trouble.device in codes and number in column:
                place = column[number]
                codes[trouble.device][place] = max(codes[trouble.device][place], STATES.index(trouble.status))
    return [codes[device] for device in devices]


def _tier_map(run: Run, bins: Sequence[Sequence[Round]]) -> Panel:
    column = {found.number: place for place, rounds in enumerate(bins) for found in rounds}
    tier_of = run.tier_of
    asked = {tier.name: [0] * len(bins) for tier in run.tiers}
    missed = {tier.name: [0] * len(bins) for tier in run.tiers}
    for found in run.rounds:
        for device in found.cohort:
            if device in tier_of:
                asked[tier_of[device]][column[found.number]] += 1
    for trouble in run.ledger.troubles:
        for number in trouble.rounds:
            if trouble.tier in missed and number in column:
                missed[trouble.tier][column[number]] += 1
    data = {
        "type": "heatmap",
        "x": [rounds[0].number for rounds in bins],
        "y": [plain(tier) for tier in asked],
        "z": [[m / a if a else None for m, a in zip(missed[t], asked[t], strict=True)] for t in asked],
        "zmin": 0,
        "zmax": 1,
        "colorscale": [[0, "var(--aggregated)"], [1, "var(--lost)"]],
        "colorbar": {"thickness": 10, "outlinewidth": 0, "tickformat": ".0%"},
        "hovertemplate": "%{y}, round %{x}: %{z:.0%} not aggregated<extra></extra>",
    }
    y = axis() | {"type": "category", "autorange": "reversed", "showgrid": False}
    made = layout(round_axis(run.done) | {"showgrid": False}, y)
    return Panel(
        title="Who was missing, by round",
        text="The share of a tier's devices that were asked and whose reply was late, lost or rejected.",
        figures=[Figure(title="", data=[data], layout=made, height=120 + 34 * len(asked))],
    )
