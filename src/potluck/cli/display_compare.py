"""What a person sees of a comparison: one row a method, the failed ones named below."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from potluck.cli.display import WHOLE_FRAMES, duration, err, figure, out, size
from potluck.core.errors import RunFolderError

NOTHING = "-"


def show_comparison(outcomes: Sequence[Any], wanted: float | None) -> None:
    """The table over seeds of all that finished, then what failed and why."""
    from potluck.report import runs, target
    from potluck.report.units import words

    read = []
    for outcome in outcomes:
        if outcome.reason:
            continue
        try:
            read.append(runs.read(outcome.path))
        except RunFolderError as error:
            err.print(f"[yellow]left out:[/] {escape(str(error))}", soft_wrap=True)
    goal = target.target_of(read, wanted)
    if read:
        several = any(one.seed != read[0].seed for one in read)
        metric = ", ".join(dict.fromkeys(words(one.metric) for one in read))
        _table(target.sides(read, goal), goal, metric, several=several)
    for outcome in outcomes:
        if outcome.reason:
            out.print(f"[red]{escape(outcome.path.name)}[/] failed: {escape(outcome.reason)}", soft_wrap=True)


def _table(sides: Sequence[Any], goal: float | None, metric: str, *, several: bool) -> None:
    """What they learned, and what it cost: two tables, since one would be wider than a terminal."""
    tiers = list(dict.fromkeys(tier for side in sides for tier in side.tiers))
    seeds = ["seeds"] if several else []
    nets = ["net"] if len({side.net for side in sides}) > 1 else []
    learned = _empty("method", *seeds, *nets, "rounds", "mean", "worst", *tiers, "parameters")
    for side in sides:
        ends = dict.fromkeys([*side.parameters[:1], *side.parameters[-1:]])
        learned.add_row(
            escape(side.method),
            *([str(side.seeds)] if several else []),
            *([escape(side.net)] if nets else []),
            str(side.rounds),
            *(_share(one) for one in (side.mean, side.worst, *(side.tiers.get(tier) for tier in tiers))),
            " - ".join(f"{number:,}" for number in ends) or NOTHING,
        )
    out.print(learned)
    if metric != "accuracy":
        out.print(f"[dim]mean, worst: {escape(metric)} over devices.[/]")
    setup = ["set-up"] if any(side.setup for side in sides) else []
    told = "" if goal is None else f"{goal:.2f}" if goal < 10 else f"{goal:g}"
    to = [f"bytes to {told}", f"time to {told}"] if told else []
    cost = _empty("method", "up", "down", *setup, *to, "simulated", "wall", "memory")
    for side in sides:
        cost.add_row(
            escape(side.method),
            size(side.up),
            size(side.down),
            *([size(side.setup)] if setup else []),
            *(_reached(side) if to else []),
            duration(side.simulated_seconds),
            duration(side.wall_seconds),
            size(side.peak_bytes),
        )
    out.print(cost)
    out.print(f"[dim]{WHOLE_FRAMES}[/]")
    if to:
        out.print(f"[dim]to {told}: bytes both ways, and simulated time, until the mean {escape(metric)} was there.[/]")


def _empty(*headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "method" else "right", no_wrap=True)
    return table


def _reached(side: Any) -> list[str]:
    """Bytes and seconds to the target, and how many of the seeds got there where not all did."""
    if not side.reached:
        return [NOTHING, NOTHING]
    some = f" ({side.reached}/{side.seeds})" if side.reached < side.seeds else ""
    return [size(side.bytes_to_target.mean) + some, duration(side.seconds_to_target.mean) + some]


def _share(found: Any) -> str:
    if found is None:
        return NOTHING
    return figure(found.mean) + ("" if found.deviation is None else f" ± {figure(found.deviation)}")
