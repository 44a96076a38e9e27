"""Where data come from: ``load("idx:$POTLUCK_DATA/fashion-mnist")``.

A file a source, which says its name, the word before the colon, in a table ``SOURCES``. A source of one's own is
``package.module:object``, or ``package.module:object:WHERE``.
"""

from __future__ import annotations

import difflib
import inspect
import re
from importlib.util import find_spec
from typing import Any

from potluck.core.errors import DataError
from potluck.core.plugins import OBJECT, Catalogue, loaded
from potluck.data.dataset import Dataset
from potluck.data.source import Reading, Source

__all__ = ["SOURCES", "Dataset", "Reading", "Source", "kind_of", "load"]
OWN = re.compile(rf"({OBJECT.pattern})(?::(.*))?", re.DOTALL)


def _source(name: str, found: Any) -> Source:
    if isinstance(found, Source):
        return found
    if not callable(found):
        raise ValueError(f"got {found!r}, expected a function that returns a Dataset, or a Source")
    takes = bool(inspect.signature(found).parameters)
    line = next(iter((found.__doc__ or "").strip().splitlines()), "a source of your own")
    return Source(
        form=f"{name}:WHERE" if takes else name,
        summary=line,
        read=lambda where, reading: found(where) if takes else found(),
    )


SOURCES: Catalogue[Source] = Catalogue(
    kind="source",
    key="data.source",
    package=__name__,
    table="SOURCES",
    group="potluck.sources",
    made=_source,
    error=DataError,
)


def kind_of(source: str) -> tuple[str, str]:
    """(the name of the source, what stands behind it): of ``npz:my.npz`` and of one's own ``package.module:object``."""
    kind, _, where = source.partition(":")
    own = OWN.fullmatch(source)
    if kind in list(SOURCES) or own is None or find_spec(kind.partition(".")[0]) is None:
        return kind, where
    return own[1], own[3] or ""


def load(source: str, reading: Reading | None = None) -> Dataset:
    """The data of ``source``, such as ``digits`` or ``npz:my.npz``; a path may hold ``~`` and ``$VARIABLES``.

    ``reading.column`` names the natural ids (a user, a writer) that become ``owner_train``; an npz file's ``id_train``
    is taken unasked. Raises DataError for whatever is missing or damaged, MissingExtraError for an optional package.
    """
    how = reading or Reading()
    kind, where = kind_of(source)
    if kind not in list(SOURCES) and ":" not in kind:
        raise _unknown(source, kind)
    known = SOURCES[kind]
    if how.column is not None and not known.columns:
        raise DataError(
            f"The source {source!r} has no columns, so no column {how.column!r} of natural ids: choose another "
            "partition, or bring the data as npz:FILE."
        )
    if where and not known.needs_place:
        raise DataError(f"{kind} takes no path, given {source!r}: write {known.form!r}.")
    if not where and known.needs_place:
        raise DataError(f"The source {source!r} says not where: write {known.form}.")
    found = loaded(f"The source {source!r}", lambda: known.read(where, how), "reading it", DataError)
    if not isinstance(found, Dataset):
        raise DataError(
            f"The source {source!r} returned {type(found).__name__}: expected a potluck.data.dataset.Dataset."
        )
    if how.kind and found.inputs.kind != how.kind:
        raise DataError(
            f'data.kind = "{how.kind}": the source {source!r} holds {found.inputs}; leave kind out, or convert them.'
        )
    return found


def _unknown(source: str, kind: str) -> DataError:
    close = difflib.get_close_matches(kind, list(SOURCES), n=1)
    forms = [SOURCES[name].form for name in SOURCES]
    if source.endswith(".npz"):
        hint = f"did you mean 'npz:{source}'?"
    else:
        hint = f"did you mean {SOURCES[close[0]].form!r}?" if close else f"choose one of {', '.join(forms)}."
    return DataError(f"Unknown source {source!r}: {hint}")
