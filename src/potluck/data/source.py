"""What a source of data says of itself, and the path that it is given."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from potluck.core.errors import DataError
from potluck.data.dataset import Dataset, expanded
from potluck.data.table.columns import Columns


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How data are to be read, where an experiment says so."""

    column: str | None = None
    """The column of natural ids that the partition asks for."""
    kind: str = ""
    """What samples are: images, rows, series or tokens; empty: as the source sees them."""
    task: str = ""
    """What targets are for; empty: as the source sees them."""
    columns: Columns = field(default_factory=Columns)
    """Which column of a table is what."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One kind of source: how it is written, what it is, and what reads it.

    ``read`` is given what stands behind the colon, and how it is to be read.
    """

    form: str
    summary: str
    read: Callable[[str, Reading], Dataset]
    columns: bool = False
    """Whether it may hold columns of natural ids."""

    @property
    def needs_place(self) -> bool:
        """Whether something has to stand behind the colon."""
        return ":" in self.form


def existing(form: str, where: str, *, folder: bool | None = None) -> Path:
    """The path, expanded, which must be there: a folder or a file, as ``folder`` says. ``form``: as in ``npz:FILE``."""
    kind, path = form.partition(":")[0], Path(expanded(where))
    try:
        there = path.exists()
    except OSError as error:
        raise DataError(f"{kind}:{where} cannot be looked up ({error.strerror}), expected {form}.") from error
    unset = re.search(r"\$\{?(\w+)", str(path))
    if unset and not there:
        raise DataError(f"{kind}:{where} needs the environment variable {unset[1]}, which is not set: set it first.")
    if not there:
        raise DataError(f"{kind}:{where} is not there, expected {form}: check the path {path.absolute()}.")
    if folder is not None and path.is_dir() != folder:
        wanted = "a folder" if folder else "a file"
        raise DataError(f"{kind}:{where} is not {wanted}, expected {form}: check the path {path}.")
    return path
