"""What a person sees on a terminal: a run as it goes, lists, and the final table."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.live import Live
from rich.markdown import Markdown
from rich.markup import escape
from rich.table import Table

from potluck.core.errors import PotluckError

PLAIN_WIDTH = 140
"""Columns where the output is no terminal."""

out = Console(highlight=False, width=None if sys.stdout.isatty() else PLAIN_WIDTH)
err = Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else PLAIN_WIDTH)


class Progress:
    """Shows a run as it goes: a live line a round on a terminal, plain lines elsewhere."""

    def __init__(self, title: str = "") -> None:
        self._title = title
        self._live: Live | None = None
        self._rounds = self._first = 0
        self._bytes = [0, 0]
        self._start = time.monotonic()

    def begins(self, experiment: Any, folder: Path, first_round: int, warnings: Sequence[str]) -> None:
        """Says what is about to run."""
        for warning in warnings:
            err.print(f"[yellow]warning:[/] {escape(warning)}")
        self._rounds, self._first, self._start = experiment.rounds, first_round, time.monotonic()
        tiers = ", ".join(f"{tier.devices} {tier.name}" for tier in experiment.fleet.tier)
        what = f"{experiment.method['name']} · {experiment.model.name} · {experiment.data.source} · {tiers}"
        gone_on = f", from round {first_round + 1}" if first_round else ""
        out.print(
            f"[bold]{escape(self._title or experiment.name)}[/]  {escape(what)}  → {folder}{gone_on}", soft_wrap=True
        )
        if out.is_terminal:
            self._live = Live(console=out, refresh_per_second=4, transient=True)
            self._live.start()
            self._live.update("  first round under way …")

    def round_done(self, line: dict[str, Any]) -> None:
        """Shows the line of a round."""
        self._bytes[0] += line["bytes"]["up"]
        self._bytes[1] += line["bytes"]["down"]
        text = self._text(line)
        if self._live is None:
            out.print(text, soft_wrap=True)
        else:
            self._live.update(text)

    def ends(self) -> None:
        """Takes the live line away."""
        if self._live is not None:
            self._live.stop()

    def _text(self, line: dict[str, Any]) -> str:
        done = line["round"] - self._first
        left = (time.monotonic() - self._start) / done * (self._rounds - line["round"])
        parts = [f"  round {line['round']}/{self._rounds}"]
        if "metric" in line:
            metric = line["metric"]
            tiers = " ".join(f"{name} {figure(value)}" for name, value in metric["tiers"].items())
            parts.append(f"{escape(metric['name'])} {figure(metric['mean'])} ({escape(tiers)})")
        parts.append(f"up {size(self._bytes[0])}, down {size(self._bytes[1])}")
        parts.append(f"simulated {duration(line['simulated_seconds'])}")
        parts += [f"[yellow]{status} {len(found)}[/]" for status, found in line["status"].items()]
        parts.append(f"{duration(left)} left" if left >= 1 else "")
        return "  ".join(part for part in parts if part)


def show_list(catalogue: Any, line: Callable[[Any], str], name: Callable[[Any], str] | None = None) -> None:
    """The members of a catalogue: name, a line about it, and where it comes from. One that does not load says why."""
    table = Table.grid(padding=(0, 2))
    for key in catalogue:
        try:
            member = catalogue[key]
        except PotluckError as error:
            table.add_row(f"[bold]{escape(key)}[/]", f"[red]{escape(str(error))}[/]", escape(catalogue.origin(key)))
            continue
        shown = key if name is None else name(member)
        table.add_row(f"[bold]{escape(shown)}[/]", escape(line(member)), f"[dim]{escape(catalogue.origin(key))}[/]")
    out.print(table)


def show_page(text: str) -> None:
    """A page of Markdown: laid out on a terminal, as it is in a pipe."""
    if out.is_terminal:
        out.print(Markdown(text))
    else:
        out.print(text, markup=False, highlight=False, soft_wrap=True, end="")


WHOLE_FRAMES = "up, down: whole frames, headers included; those of local are headers alone."


def show_summaries(rows: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """One row a run: the metric per tier, bytes, seconds, parameters.

    *as messages*: up and down once more, as the engine's own messages (Flower's), where it has some.
    """
    if not rows:
        return
    tiers = list(rows[0][1]["parameters"])
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    engine = any("engine_bytes" in summary for _, summary in rows)
    costs = ("up", "down", *(["as messages"] if engine else []), "simulated", "wall", "memory")
    for heading in ("method", "seed", "rounds", "mean", "worst", *tiers, *costs):
        table.add_column(heading, justify="left" if heading == "method" else "right", no_wrap=True)
    for _, summary in rows:
        metric = summary.get("metric") or summary["accuracy"]
        table.add_row(
            summary["method"],
            str(summary["seed"]),
            str(summary["rounds"]),
            _known(metric["mean"]),
            _known(metric["worst"]),
            *(_known((metric["tiers"] or {}).get(tier)) for tier in tiers),
            size(summary["bytes"]["up"]),
            size(summary["bytes"]["down"]),
            *([size(summary["engine_bytes"]["total"]) if "engine_bytes" in summary else "-"] if engine else []),
            duration(summary["simulated_seconds"]),
            duration(summary["wall_seconds"]),
            size(summary["peak_rss_bytes"]),
        )
    out.print(table)
    names = dict.fromkeys((summary.get("metric") or {}).get("name", "accuracy") for _, summary in rows)
    if list(names) != ["accuracy"]:
        out.print(f"[dim]mean, worst: {escape(', '.join(names))} over devices.[/]")
    out.print(f"[dim]{WHOLE_FRAMES}[/]")


def _known(value: float | None) -> str:
    return "-" if value is None else figure(value)


def figure(value: float) -> str:
    """A metric: three decimals, or four digits of a large one."""
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.4g}"


def size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, hours = seconds / 60, seconds / 3600
    return f"{minutes:.0f} min" if minutes < 100 else f"{hours:.1f} h"
