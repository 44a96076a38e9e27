"""The command that plans a run. No logic here, as in cli.py, which adds it to its own."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from potluck.cli_fleet import File, Overrides
from potluck.display import err, out
from potluck.display_plan import show_plans

WRONG_INPUT = 2


def plan(
    experiment: File,
    methods: Annotated[str, typer.Option(help="Names joined by commas, or all; else those of the file.")] = "",
    fit: Annotated[bool, typer.Option("--fit", help="Propose what fits, and write it as a new file.")] = False,
    place: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="The new file, with --fit.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="--out may replace a file.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of tables.")] = False,
    overrides: Overrides = None,
) -> None:
    """Says what each method costs on each tier, before any training: bytes, memory, seconds, and whether it fits.

    Example: potluck plan recipes/digits.toml --methods fedavg,fedhm,fedode --fit --out fits.toml
    """
    from potluck.experiment import plan as planning
    from potluck.experiment import plan_fit as fitting
    from potluck.experiment.compare import variants
    from potluck.experiment.config import Experiment

    loaded = Experiment.load(experiment, overrides or ())
    wanted = planning.methods_of(loaded, methods)
    new_file = place or Path(f"{experiment.stem}-fit.toml")
    found: list[fitting.Fitted] = []
    if fit:
        fitting.demand_place(new_file, overwrite=overwrite)
    with err.status("planning") as status:
        told = variants(loaded, wanted, [loaded.seed])
        if fit:
            loaded, found = fitting.fit_all(loaded, wanted, status.update)
            told = variants(loaded, wanted, [loaded.seed])
        plans = list(planning.plan(told, lambda name: status.update(f"planning {name}")))
    if fit:
        fitting.write_fitted(loaded, experiment, new_file, overwrite=overwrite)
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(one) for one in plans], indent=1))
    else:
        show_plans(plans, loaded)
    for one in found:
        for line in one.changes:
            err.print(f"[green]fitted[/] {escape(line)}", soft_wrap=True)
        for line in one.misfits:
            err.print(f"[yellow]does not fit[/] {escape(line)}", soft_wrap=True)
    if fit and not as_json:
        out.print(str(new_file), soft_wrap=True)
    if all(one.reason for one in plans):
        raise SystemExit(WRONG_INPUT)
