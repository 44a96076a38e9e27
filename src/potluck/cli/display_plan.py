"""What a person sees of a plan: a table a method, then one of whole runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from potluck.cli.display import duration, out, size

HEADINGS = (
    "tier",
    "devices",
    "samples",
    "parameters",
    "memory",
    "GFLOPs",
    "bytes down",
    "bytes up",
    "work",
    "round",
    "fits",
)
LEGEND = (
    "A round of the tier's device with the most samples (work, round: of its slowest). memory: tensors at once while "
    "it trains, beyond the idle process; an allocator may hold up to twice as much. GFLOPs: of its training; a "
    "multiply-add is two. work: simulated time of training; round: with receiving and sending."
)


def show_plans(plans: Sequence[Any], experiment: Any) -> None:
    """A table a method with a row a tier, what to know about it, and a table of the runs in all."""
    fleet = {tier.name: tier for tier in experiment.fleet.tier}
    for plan in plans:
        if not plan.reason:
            _show_tiers(plan, fleet, experiment.fleet.deadline_s)
    _show_totals([plan for plan in plans if not plan.reason], experiment)
    for plan in plans:
        if plan.reason:
            out.print(f"[red]{escape(plan.method)}[/] cannot run: {escape(plan.reason)}", soft_wrap=True)


def _show_tiers(plan: Any, fleet: Any, deadline_s: float) -> None:
    out.print(f"[bold]{escape(plan.method)}[/]  {escape(plan.model)}")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading in ("tier", "fits") else "right", no_wrap=True)
    for tier in plan.tiers:
        table.add_row(
            tier.tier,
            str(tier.devices),
            f"{tier.samples:,}",
            f"{tier.parameters:,}",
            size(tier.memory_bytes),
            f"{tier.flops / 1e9:.3g}",
            f"{tier.down_bytes:,}",
            f"{tier.up_bytes:,}",
            duration(tier.work_seconds),
            duration(tier.seconds),
            _fits(tier, fleet[tier.tier].memory_mb, deadline_s),
        )
    out.print(table)
    for note in plan.notes:
        out.print(f"  [yellow]{escape(note)}[/]")


def _fits(tier: Any, memory_mb: float, deadline_s: float) -> str:
    said = [] if tier.fits_memory else [f"memory > {memory_mb:g} MB"]
    said += [] if tier.fits_deadline else [f"deadline {deadline_s:g} s"]
    return f"[red]no: {', '.join(said)}[/]" if said else "[green]yes[/]"


def _show_totals(plans: Sequence[Any], experiment: Any) -> None:
    if not plans:
        return
    out.print(f"[bold]whole run[/]  {experiment.rounds} rounds")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for heading in ("method", "up", "down", "GFLOPs", "simulated", "late replies", "fits"):
        table.add_column(heading, justify="left" if heading in ("method", "fits") else "right", no_wrap=True)
    for plan in plans:
        total = plan.total
        table.add_row(
            plan.method,
            size(total.up_bytes),
            size(total.down_bytes),
            f"{total.flops / 1e9:,.0f}",
            duration(total.simulated_seconds),
            f"{total.late:,}" if total.late else "-",
            "[green]yes[/]" if plan.fits else "[red]no[/]",
        )
    out.print(table)
    out.print(f"[dim]{LEGEND}[/]")
