"""The commands. No logic here: each reads its arguments, calls the library and shows what came back."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from potluck import __version__, cli_fleet, cli_plan
from potluck.attend import attended, interrupted, report_on, silence
from potluck.cli_fleet import File, Overrides, Quiet
from potluck.core.errors import ConfigError, PotluckError
from potluck.display import Progress, err, out, show_list, show_page
from potluck.display_compare import show_comparison

app = typer.Typer(
    help="Train one model together on a fleet of unequal devices over thin links.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)

WRONG_INPUT, SOME_FAILED = 2, 1
RunDir = Annotated[Path, typer.Argument(metavar="RUN_DIR", help="A run folder.")]


@app.command()
def run(
    experiment: File,
    overrides: Overrides = None,
    folder: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="The run folder.")] = None,
    quiet: Quiet = False,
) -> None:
    """Runs an experiment and prints a table.

    Example: potluck run recipes/digits.toml --set rounds=5 --set method.name=fedprox --out runs/first
    """
    from potluck.experiment.config import Experiment

    loaded = Experiment.load(experiment, overrides or ())
    from potluck.experiment import run as runs  # after a wrong file is told: torch takes seconds

    place = folder or runs.default_folder(loaded)
    attended(lambda listener: runs.run(loaded, place, listener), place, quiet)


@app.command()
def resume(
    folder: RunDir,
    rounds: Annotated[int, typer.Option(min=0, help="So many rounds more than the run was to have.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Goes on after a crash or Ctrl-C, or adds rounds: bitwise the same as an unbroken run.

    Example: potluck resume runs/first --rounds 10
    """
    from potluck.experiment import run as runs
    from potluck.experiment import store

    if not quiet:
        done, wanted = store.read_manifest(folder)["round"], store.read_experiment(folder).rounds + rounds
        out.print(f"{done} rounds done, {wanted - done} more, {wanted} in all")
    if store.read_experiment(folder).engine.kind == "flower":
        from potluck.experiment.serve import serve_again

        attended(lambda listener: serve_again(folder, rounds, listener, cli_fleet.told(quiet)), folder, quiet)
        return
    attended(lambda listener: runs.resume(folder, rounds, listener), folder, quiet)


@app.command()
def compare(
    experiment: File,
    methods: Annotated[str, typer.Option(help="Names, joined by commas.")],
    seeds: Annotated[str, typer.Option(help="Numbers, joined by commas.")] = "0",
    overrides: Overrides = None,
    folder: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Where the runs go.")] = None,
    target: Annotated[
        float | None, typer.Option(help="Count bytes and seconds to this mean accuracy; else 90 % of the best.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Runs several methods on the same data and fleet; prints one table and writes one report.

    Exit code 1 where some failed, 2 where all did.

    Example: potluck compare recipes/digits.toml --methods local,fedavg,fedprox --seeds 0,1 --out runs/three
    """
    from potluck.experiment.config import Experiment

    loaded = Experiment.load(experiment, overrides or ())
    from potluck.experiment import compare as comparing  # after a wrong file is told: torch takes seconds
    from potluck.experiment import run as runs

    place = folder or runs.default_folder(loaded)
    wanted = comparing.variants(loaded, _names(methods), _numbers(seeds))
    shown: list[Progress] = []

    def listener(number: int, variant: Experiment) -> Any:
        for progress in shown:
            progress.ends()
        shown[:] = [Progress(f"{number + 1}/{len(wanted)} {variant.name}")]
        return shown[0] if not quiet else silence()

    for note in dict.fromkeys(note for _, note in wanted if note):
        err.print(f"[yellow]note:[/] {escape(note)}", soft_wrap=True)
    outcomes: list[comparing.Outcome] = []
    try:
        for outcome in comparing.compare(wanted, place, listener):
            outcomes.append(outcome)
            if outcome.reason:
                err.print(f"[yellow]{outcome.path.name}:[/] {escape(outcome.reason)}")
    except KeyboardInterrupt:
        raise SystemExit(interrupted("the same command goes on where this one stopped")) from None
    finally:
        for progress in shown:
            progress.ends()
    _comparison(outcomes, place, target)
    failed = [bool(outcome.reason) for outcome in outcomes]
    if any(failed):
        raise SystemExit(WRONG_INPUT if all(failed) else SOME_FAILED)


app.command()(cli_plan.plan)
app.command()(cli_plan.probe)


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN_DIR...", help="Run folders, or folders of them.")],
    page: Annotated[Path | None, typer.Option("--out", metavar="FILE.html", help="Where the page goes.")] = None,
) -> None:
    """Writes one self-contained page with plots: of a finished or an interrupted run, or of several side by side.

    Example: potluck report runs/three/fedavg-0 runs/three/local-0 --out both.html
    """
    from potluck.report import write_report

    out.print(str(write_report(folders, page or folders[0] / "report.html")), soft_wrap=True)


@app.command()
def export(
    folder: RunDir,
    tier: Annotated[str, typer.Option(metavar="NAME", help="A tier of the fleet.")],
    to: Annotated[Path, typer.Option(metavar="FILE", help="Ends in .safetensors, .pt2 or .onnx.")],
) -> None:
    """Writes the model that a device of a tier deploys.

    Example: potluck export runs/first --tier phone --to phone.onnx
    """
    from potluck.experiment.export import export as exporting

    out.print(exporting(folder, tier, to).line(), soft_wrap=True)


@app.command()
def split(
    experiment: File,
    folder: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the npz files go; must be empty.")],
    overrides: Overrides = None,
) -> None:
    """Writes each device's train, public and test share as npz, for a real fleet.

    Example: potluck split recipes/digits.toml --out shares
    """
    from potluck.experiment.config import Experiment

    loaded = Experiment.load(experiment, overrides or ())
    from potluck.data.split import write_split  # after a wrong file is told: torch takes seconds
    from potluck.experiment import build
    from potluck.experiment.resolve import resolved

    manifest = write_split(build.make_shares(resolved(loaded)), folder)
    out.print(f"{len(manifest['shares'])} files in {folder}", soft_wrap=True)


app.command()(cli_fleet.peer)
app.command()(cli_fleet.certificates)
app.command()(cli_fleet.serve)
app.command()(cli_fleet.join)
app.command("flower-app")(cli_fleet.flower_app)


@app.command()
def methods(
    name: Annotated[
        str, typer.Argument(help="One of them: its manual page, with options, profiles and messages.")
    ] = "",
) -> None:
    """Lists the methods, a line each; or shows the page of one.

    Example: potluck methods fedhm
    """
    from potluck.methods import METHODS

    if name:
        from potluck.experiment.explain import unknown
        from potluck.experiment.manual import page

        if name not in METHODS:
            raise ConfigError(unknown(name, list(METHODS), "method"))
        show_page(page(name))
        return
    show_list((name, (method.__doc__ or "").strip().splitlines()[0]) for name, method in METHODS.items())


@app.command()
def sources() -> None:
    """Lists where data can come from, a line each.

    Example: potluck sources
    """
    from potluck.data.sources import SOURCES

    show_list((source.form, source.summary) for source in SOURCES.values())


@app.command()
def models() -> None:
    """Lists the nets of the zoo, a line each.

    Example: potluck models
    """
    from potluck.models.zoo import describe

    show_list(describe())


def _comparison(outcomes: Sequence[Any], place: Path, target: float | None) -> None:
    show_comparison(outcomes, target)
    sound = [outcome.path for outcome in outcomes if not outcome.reason]
    out.print(f"run folders {place}", soft_wrap=True)
    if sound:
        report_on(sound, place / "report.html", place)


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in _names(text)] or [0]
    except ValueError:
        raise ConfigError(f"--seeds {text}: expected whole numbers joined by commas, such as 0,1,2") from None


def _version(value: bool) -> None:
    if value:
        out.print(f"potluck {__version__}")
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
        raise SystemExit(WRONG_INPUT) from None


if __name__ == "__main__":
    main()
