"""Arguments that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

File = Annotated[Path, typer.Argument(metavar="EXPERIMENT.toml", help="The experiment file.")]
RunDir = Annotated[Path, typer.Argument(metavar="RUN_DIR", help="A run folder.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no table: only the run folder's path.")]
