"""The commands that help to choose: plan and probe."""

from __future__ import annotations

import dataclasses
import json
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from potluck.cli.arguments import File, Overrides
from potluck.cli.display import err, out
from potluck.cli.display_plan import show_plans
from potluck.core.errors import ConfigError

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
    from potluck.experiment.config import Experiment

    loaded = Experiment.load(experiment, overrides or ())
    from potluck.experiment.compare import variants
    from potluck.planning import fit as fitting
    from potluck.planning import plan as planning  # after a wrong file is told: torch takes seconds

    wanted = planning.methods_of(loaded, methods)
    new_file = place or Path(f"{experiment.stem}-fit.toml")
    found: list[fitting.Fitted] = []
    if fit:
        fitting.require_place(new_file, overwrite=overwrite)
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


def probe(
    connect: Annotated[str, typer.Option(metavar="HOST:PORT", help="Measure the link to a probe that listens.")] = "",
    listen: Annotated[str, typer.Option(metavar="HOST:PORT", help="Be the other end of a link, until Ctrl-C.")] = "",
    name: Annotated[str, typer.Option(help="The tier's name.")] = "device",
    model: Annotated[str, typer.Option(help="The net whose training is timed.")] = "resnet20",
    threads: Annotated[int, typer.Option(min=1, max=1024, help="Torch threads, as in [engine] threads.")] = 1,
) -> None:
    """Measures this device's speed, memory and perhaps link, and prints its tier table for an experiment file.

    Example: potluck probe --listen 0.0.0.0:7450 on the server, then potluck probe --connect server:7450 on the device
    """
    from potluck.planning import probe as probing
    from potluck.planning import probe_link

    if connect and listen:
        raise ConfigError("--connect and --listen: the two ends of a link; give one of them")
    if listen:
        with probe_link.server(*probe_link.address("--listen", listen)) as serving, suppress(KeyboardInterrupt):
            host, port = serving.server_address[:2]
            out.print(f"listening on {host!s}:{port}; Ctrl-C ends it", soft_wrap=True)
            serving.serve_forever()
        return
    found = probe_link.address("--connect", connect) if connect else None
    with err.status("timing training steps") as status:
        fast = probing.speed(model, threads)
        link = None
        if found:
            link = probe_link.measure(*found, lambda what: status.update(f"timing the link: {what}"))
    typer.echo(probing.tier_table(name, fast, probing.free_bytes(), link, connect), nl=False)
