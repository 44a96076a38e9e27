"""The command that looks at data and writes an experiment for them: init."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from potluck.cli.display import out
from potluck.core.errors import ConfigError


def init(
    data: Annotated[
        str,
        typer.Option("--data", metavar="FILE", help="Your data: csv, parquet, jsonl, npz, txt, a folder, a source."),
    ] = "digits",
    file: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="The file to write.")] = None,
    target: Annotated[str, typer.Option(help="The column of a table to be learned; else a guess.")] = "",
    id: Annotated[list[str] | None, typer.Option("--id", help="A column that names the device of a row.")] = None,
    kind: Annotated[str, typer.Option(help="What arrays are: images, rows, series or tokens.")] = "",
) -> None:
    """Looks at data, says what it understood, and writes a commented experiment that runs as it is.

    Example: potluck init --data rides.csv --target rides --id station --out rides.toml
    """
    if file is not None and file.exists():
        raise ConfigError(f"--out {file}: is there already; remove it, or name another file")
    from potluck.experiment.suggest import suggest

    found = suggest(data, target=target, ids=id or (), kind=kind)
    place = file or _free(Path(f"{_stem(found.text)}.toml"))
    try:
        place.write_text(found.text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--out {place}: cannot be written ({error.strerror})") from None
    for line in found.understood:
        out.print(f"[bold]{escape(line[:9])}[/]{escape(line[9:])}", soft_wrap=True)
    out.print(f"\nwritten  {escape(str(place))}; run it: potluck run {escape(str(place))}", soft_wrap=True)


def _stem(text: str) -> str:
    return next(line.split('"')[1] for line in text.splitlines() if line.startswith("name = "))


def _free(path: Path) -> Path:
    """The path, or the next one with a number that is not taken."""
    number = 2
    free = path
    while free.exists():
        free = path.with_stem(f"{path.stem}-{number}")
        number += 1
    return free
