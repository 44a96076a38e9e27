"""The commands of a run and of several: run, resume, compare, report, export, split."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from potluck.cli.arguments import File, Overrides, Quiet, RunDir
from potluck.cli.display import Progress, err, out
from potluck.cli.display_compare import show_comparison
from potluck.cli.watching import interrupted, report_on, silence, told, watched
from potluck.core.errors import ConfigError

WRONG_INPUT, SOME_FAILED = 2, 1


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
    watched(lambda listener: runs.run(loaded, place, listener), place, quiet)


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
        from potluck.deploy.serve import serve_again

        watched(lambda listener: serve_again(folder, rounds, listener, told(quiet)), folder, quiet)
        return
    watched(lambda listener: runs.resume(folder, rounds, listener), folder, quiet)


def compare(
    experiment: File,
    methods: Annotated[str, typer.Option(help="Names, joined by commas.")],
    seeds: Annotated[str, typer.Option(help="Numbers, joined by commas.")] = "0",
    overrides: Overrides = None,
    folder: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Where the runs go.")] = None,
    target: Annotated[
        float | None, typer.Option(help="Count bytes and seconds to this mean; else what is 10 % worse than the best.")
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


def report(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN_DIR...", help="Run folders, or folders of them.")],
    page: Annotated[Path | None, typer.Option("--out", metavar="FILE.html", help="Where the page goes.")] = None,
) -> None:
    """Writes one self-contained page with plots: of a finished or an interrupted run, or of several side by side.

    Example: potluck report runs/three/fedavg-0 runs/three/local-0 --out both.html
    """
    from potluck.report import write_report

    out.print(str(write_report(folders, page or folders[0] / "report.html")), soft_wrap=True)


def export(
    folder: RunDir,
    tier: Annotated[str, typer.Option(metavar="NAME", help="A tier of the fleet.")],
    to: Annotated[Path, typer.Option(metavar="FILE", help="Ends in .safetensors, .pt2 or .onnx.")],
) -> None:
    """Writes the model that a device of a tier deploys.

    Example: potluck export runs/first --tier phone --to phone.onnx
    """
    from potluck.deploy.export import export as exporting

    out.print(exporting(folder, tier, to).line(), soft_wrap=True)


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
    from potluck.deploy.split import write_split  # after a wrong file is told: torch takes seconds
    from potluck.experiment import build
    from potluck.experiment.resolve import resolve

    manifest = write_split(build.make_shares(resolve(loaded)), folder)
    out.print(f"{len(manifest['shares'])} files in {folder}", soft_wrap=True)


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
