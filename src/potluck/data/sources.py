"""Where data come from: ``load("idx:$POTLUCK_DATA/fashion-mnist")``. One line of SOURCES per kind of source."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from potluck.core.errors import DataError
from potluck.data import bundled, cifar, folder, hub, idx, npz
from potluck.data.dataset import Dataset, expanded

__all__ = ["SOURCES", "Dataset", "Source", "describe", "load"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One kind of source: how it is written, what it is, and what reads it."""

    form: str
    summary: str
    read: Callable[[str, str | None], Dataset]


def _digits(where: str, column: str | None) -> Dataset:
    if where:
        raise DataError(f"digits takes no path, given 'digits:{where}': write 'digits'.")
    return bundled.digits()


def _hub(where: str, column: str | None) -> Dataset:
    # A repository's name is not a path; only what looks like one is expanded.
    return hub.read(str(_path("hf", where)) if where.startswith(("~", "$", "/", ".")) else where, column)


SOURCES: dict[str, Source] = {
    "digits": Source(form="digits", summary="1,797 handwritten digits, 1x8x8, bundled with scikit-learn", read=_digits),
    "idx": Source(
        form="idx:DIR",
        summary="the MNIST family: train-images-idx3-ubyte and the like, gzipped or not",
        read=lambda where, _: idx.read(_path("idx", where)),
    ),
    "cifar10": Source(
        form="cifar10:DIR",
        summary="CIFAR-10's official binary batches, 3x32x32",
        read=lambda where, _: cifar.read(_path("cifar10", where)),
    ),
    "npz": Source(
        form="npz:FILE",
        summary="your own arrays: x_train, y_train, x_test, y_test; optionally ids and domains",
        read=lambda where, column: npz.read(_path("npz", where), column),
    ),
    "folder": Source(
        form="folder:DIR",
        summary="a folder of images per class, in train/ and test/ or split 80/20",
        read=lambda where, _: folder.read(_path("folder", where)),
    ),
    "hf": Source(
        form="hf:REPO",
        summary="a Hugging Face data set, from the hub or a local folder",
        read=_hub,
    ),
    "synthetic": Source(
        form="synthetic:N,C,H,W",
        summary="N generated, learnable training images of ten classes",
        read=lambda where, _: bundled.synthetic(where),
    ),
}
"""The kinds of source, by the word before the colon."""

WITH_COLUMNS = ("npz", "hf")


def load(source: str, *, column: str | None = None) -> Dataset:
    """The data of ``source``, such as ``digits`` or ``npz:my.npz``; a path may hold ``~`` and ``$VARIABLES``.

    ``column`` names the natural ids (a user, a writer) that become ``owner_train``; an npz file's ``id_train`` is
    taken unasked. Raises DataError for whatever is missing or damaged, MissingExtraError for an optional package.
    """
    kind, _, where = source.partition(":")
    known = SOURCES.get(kind)
    if known is None:
        close = difflib.get_close_matches(kind, SOURCES, n=1)
        if source.endswith(".npz"):
            hint = f"did you mean 'npz:{source}'?"
        else:
            hint = f"did you mean {SOURCES[close[0]].form!r}?" if close else f"choose one of {', '.join(_forms())}."
        raise DataError(f"Unknown source {source!r}: {hint}")
    if column is not None and kind not in WITH_COLUMNS:
        raise DataError(
            f"The source {source!r} has no columns, so no column {column!r} of natural ids: choose another partition, "
            "or bring the data as npz:FILE."
        )
    if not where and kind != "digits":
        raise DataError(f"The source {source!r} says not where: write {known.form}.")
    return known.read(where, column)


def describe() -> str:
    """One line per kind of source: how it is written, and what it is."""
    width = max(len(form) for form in _forms())
    return "\n".join(f"{source.form:<{width}}  {source.summary}" for source in SOURCES.values())


def _forms() -> list[str]:
    return [source.form for source in SOURCES.values()]


def _path(kind: str, where: str) -> Path:
    """The path, expanded, which must be there."""
    path, form = Path(expanded(where)), SOURCES[kind].form
    try:
        there = path.exists()
    except OSError as error:
        raise DataError(f"{kind}:{where} cannot be looked up ({error.strerror}), expected {form}.") from error
    unset = re.search(r"\$\{?(\w+)", str(path))
    if unset and not there:
        raise DataError(f"{kind}:{where} needs the environment variable {unset[1]}, which is not set: set it first.")
    if not there:
        raise DataError(f"{kind}:{where} is not there, expected {form}: check the path {path.absolute()}.")
    if kind != "hf" and path.is_dir() != (kind != "npz"):
        wanted = "a folder" if kind != "npz" else "a file"
        raise DataError(f"{kind}:{where} is not {wanted}, expected {form}: check the path {path}.")
    return path
