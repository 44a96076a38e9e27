"""A run that somebody watches: progress while it goes, a table and a report at the end, advice when it is stopped."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape

from potluck.cli.display import Progress, err, out, show_summaries
from potluck.core.errors import MissingExtraError

INTERRUPTED = 130


def watched(work: Callable[[Any], Any], folder: Path, quiet: bool, remedy: str = "") -> None:
    """Runs ``work`` with a progress display, then shows the table. ``remedy`` says how to go on after Ctrl-C."""
    progress = Progress()
    try:
        done = work(silence() if quiet else progress)
    except KeyboardInterrupt:
        raise SystemExit(interrupted(remedy or f"go on with: potluck resume {folder}")) from None
    finally:
        progress.ends()
    if quiet:
        out.print(str(folder), soft_wrap=True)
        return
    show_summaries([("", done.summary)])
    report_on([folder], folder / "report.html")
    out.print(f"run folder  {folder}", soft_wrap=True)


def silence() -> Any:
    """A listener that says nothing."""
    from potluck.experiment.listener import SILENCE

    return SILENCE


def report_on(folders: Sequence[Path], page: Path, comparison: Path | None = None) -> None:
    """Writes the report, where what it needs is installed."""
    from potluck.report import write_report

    try:
        out.print(f"report      {write_report(folders, page, comparison)}", soft_wrap=True)
    except MissingExtraError as error:
        err.print(f"[yellow]no report:[/] {escape(str(error))}", soft_wrap=True)


def interrupted(remedy: str) -> int:
    """Says that Ctrl-C was heard and what to do; the exit code."""
    err.print(f"interrupted; the last checkpoint is whole. {remedy[:1].upper()}{remedy[1:]}", soft_wrap=True)
    return INTERRUPTED


def told(quiet: bool) -> Any:
    """Shows who joins, who is refused, and who sits out."""

    def tell(event: Mapping[str, Any]) -> None:
        if event["event"] == "joined" and not quiet:
            out.print(f"  device {event['device']} ({escape(event['tier'])}) joined, torch {escape(event['torch'])}")
        elif event["event"] == "refused":
            err.print(f"[yellow]refused:[/] {escape(event['reason'])}", soft_wrap=True)
        elif event["event"] == "rests":
            err.print(f"[yellow]device {event['device']} failed three times in a row and sits out {event['rounds']}[/]")

    return tell
