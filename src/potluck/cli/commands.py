"""The command line: all commands, and what becomes of errors. No logic here nor in the commands.

Each command reads its arguments, calls the library and shows what came back.
"""

from __future__ import annotations

import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from potluck.cli import catalogues, data, fleet, planning, runs
from potluck.cli.display import err, out
from potluck.core.errors import PotluckError
from potluck.core.version import VERSION

app = typer.Typer(
    help="Train one model together on a fleet of unequal devices over thin links.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
COMMANDS = (
    *(data.init, runs.run, runs.resume, runs.compare, planning.plan, planning.probe),
    *(runs.report, runs.export, runs.split),
    *(fleet.peer, fleet.certificates, fleet.serve, fleet.join, fleet.flower_app),
    *(catalogues.methods, catalogues.models, catalogues.sources, catalogues.tasks),
)
for command in COMMANDS:
    app.command(command.__name__.replace("_", "-"))(command)


def _version(value: bool) -> None:
    if value:
        out.print(f"potluck {VERSION}")
        raise typer.Exit


@app.callback()
def top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Train one model together on a fleet of unequal devices over thin links."""


def main() -> None:
    """The command line: errors of ours are a line and exit code 2."""
    with suppress(ValueError):  # not the main thread of the process
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.path.insert(0, str(Path.cwd()))  # one's own nets and losses are found from the folder of the experiment
    try:
        app()
    except PotluckError as error:
        err.print(f"[red]potluck:[/] {escape(str(error))}", soft_wrap=True)
        raise SystemExit(runs.WRONG_INPUT) from None
