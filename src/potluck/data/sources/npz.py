"""One's own arrays in numpy's npz: x_train, y_train, x_test, y_test, and columns beside them. Never a pickle."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from potluck.core.errors import DataError
from potluck.data.dataset import Array, Dataset, dataset, ids, labels, samples, split_dataset, targets
from potluck.data.source import Reading, Source, existing

TRAIN, TEST = ("x_train", "y_train"), ("x_test", "y_test")


def read(path: Path, reading: Reading | None = None) -> Dataset:
    """The file's data set; without x_test and y_test, a fixed fifth is held out.

    Images are (N, H, W), (N, H, W, C) or (N, C, H, W), rows (N, features). ``reading.kind`` says ``series`` of
    (N, steps, channels) or (N, steps), and ``tokens`` of (N, length), which an array ``vocabulary`` says too: a number,
    or the names of the tokens. Targets are whole numbers or text (classes), 0 and 1 (N, labels), numbers (N,) or
    (N, targets), or tokens (N, length). ``reading.column``, or else ``id_train``, holds natural ids; ``domain_train``
    and ``domain_test`` whole numbers; ``class_names`` text.
    """
    return from_arrays(arrays(path), f"npz:{path}", reading or Reading())


def arrays(path: Path) -> dict[str, Array]:
    """All arrays of an npz file, by name."""
    try:
        with path.open("rb") as stream:  # numpy leaves a file open that it opened itself and cannot read
            archive = np.load(stream, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise DataError(f"{path} holds a single array, expected an npz file: write it with numpy.savez.")
            with archive:
                return {name: archive[name] for name in archive.files}
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        if isinstance(error, DataError):
            raise
        reason = "it holds Python objects, not numbers" if "allow_pickle" in str(error) else str(error)
        raise DataError(f"{path} cannot be read as npz ({reason}): write it again with numpy.savez.") from error


def from_arrays(found: Mapping[str, Array], name: str, reading: Reading) -> Dataset:
    """The data set of these arrays, checked; ``name`` begins the error messages."""
    found = canonical(found)
    _require(found, name, TRAIN)
    whole = not any(key in found for key in TEST)
    if not whole:
        _require(found, name, TEST)
    kind = "tokens" if "vocabulary" in found and not reading.kind else reading.kind
    parts = (TRAIN,) if whole else (TRAIN, TEST)
    x = [samples_of(found, f"{name}, {keys[0]}", keys[0], kind) for keys in parts]
    columns = {f"{name}, {keys[1]}": found[keys[1]] for keys in parts}
    y, names = targets(columns, task=reading.task, names=_text(found, "class_names"))
    classes = None if names is None or y[0].ndim > 1 else len(names)
    vocabulary, tokens = _vocabulary(found, kind, x)
    if names is None and tokens is not None and y[0].ndim == 2 and y[0].dtype == torch.int64:
        names = tokens
    domain, owner = domains(found, name, "domain_train"), _owner(found, name, reading.column)
    if whole:
        return split_dataset(
            name,
            x[0],
            y[0],
            classes=classes,
            class_names=names,
            vocabulary=vocabulary,
            domain=domain,
            owner=owner,
        )
    return dataset(
        name,
        x[0],
        y[0],
        x[1],
        y[1],
        classes=classes,
        class_names=names,
        vocabulary=vocabulary,
        domain_train=domain,
        domain_test=domains(found, name, "domain_test"),
        owner_train=owner,
    )


def canonical(found: Mapping[str, Array]) -> dict[str, Array]:
    """The arrays with x, y and domain, as a device's share has them, called x_train, y_train and domain_train."""
    short = {"x": "x_train", "y": "y_train", "domain": "domain_train"}
    return {short.get(key, key) if "x_train" not in found else key: value for key, value in found.items()}


def samples_of(found: Mapping[str, Array], what: str, key: str, kind: str) -> torch.Tensor:
    """The samples under this name, as ``kind`` says, or else as their shape does."""
    x = found[key]
    if "mean" in found:  # it was written by ``write_split``: nothing is to be guessed
        whole = {(2, "i"): "tokens", (3, "f"): "series", (3, "u"): "series"}
        return samples(x, what, whole.get((x.ndim, x.dtype.kind), ""))
    if kind == "tokens":
        return samples(x, what, kind)
    if kind == "series":
        wide = x[:, :, None] if x.ndim == 2 else x
        if wide.ndim != 3:
            raise DataError(f"{what} has shape {x.shape}, expected (N, steps, channels) or (N, steps) for series.")
        return samples(wide, what, kind)
    return samples(images(x, what), what)


def pair_like(
    found: Mapping[str, Array], name: str, keys: tuple[str, str], like: Dataset
) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples and targets under these two names, read as those of ``like`` were."""
    x = samples_of(found, f"{name}, {keys[0]}", keys[0], like.inputs.kind)
    (y,), _ = targets(
        {f"{name}, {keys[1]}": found[keys[1]]}, task=like.task, names=like.facts.names or None, numbered=True
    )
    return x, y[:, None] if y.is_floating_point() and y.ndim == 1 else y


def images(x: Array, what: str) -> Array:
    """The array as (N, C, H, W) or (N, features).

    With four dimensions, the channels are the axis that differs from two equal ones, or else the smaller of the first
    and the last; in doubt the first.
    """
    if x.ndim == 2:
        return x
    if x.ndim == 3:
        return x[:, None]
    if x.ndim != 4:
        raise DataError(
            f"{what} has shape {x.shape}, expected (N, H, W), (N, H, W, C), (N, C, H, W) or (N, features): reshape it."
        )
    first, middle, last = x.shape[1:]
    channels_last = first == middle if (first == middle) != (middle == last) else last < first
    return np.moveaxis(x, 3, 1) if channels_last else x


def domains(found: Mapping[str, Array], name: str, key: str) -> torch.Tensor | None:
    """The domain column, int64, (n,), or None."""
    return labels(found[key], f"{name}, {key}") if key in found else None


def _require(found: Mapping[str, Array], name: str, keys: tuple[str, str]) -> None:
    for key in keys:
        if key not in found:
            raise DataError(
                f"{name} holds no array {key!r}, only {', '.join(sorted(found)) or 'nothing'}: expected x_train, "
                "y_train, x_test and y_test."
            )


def _text(found: Mapping[str, Array], key: str) -> tuple[str, ...] | None:
    names = found.get(key)
    return None if names is None else tuple(str(name) for name in names.reshape(-1))


def _vocabulary(found: Mapping[str, Array], kind: str, x: list[torch.Tensor]) -> tuple[int, tuple[str, ...] | None]:
    """How many tokens there are, 0 where there are none, and their names."""
    if kind != "tokens":
        return 0, None
    said = found.get("vocabulary")
    if said is not None and said.dtype.kind == "U":
        return said.size, _text(found, "vocabulary")
    return (1 + max(int(part.max()) for part in x) if said is None else int(said.reshape(-1)[0])), None


def _owner(found: Mapping[str, Array], name: str, column: str | None) -> torch.Tensor | None:
    """The natural ids: of ``column`` (or ``column``_train) where it is given, else of id_train where it is there."""
    for key in ("id_train",) if column is None else (column, f"{column}_train"):
        if key in found:
            return ids(found[key], f"{name}, {key}")
    if column is None:
        return None
    others = sorted(set(found) - {*TRAIN, *TEST, "x", "y"})
    raise DataError(
        f"{name} has no column {column!r} of natural ids (columns: {', '.join(others) or 'none'}): add an array of "
        "that name, one id for each training sample."
    )


FORM = "npz:FILE"
SOURCES = {
    "npz": Source(
        form=FORM,
        summary="your own arrays: x_train, y_train, x_test, y_test; optionally ids and domains",
        read=lambda where, reading: read(existing(FORM, where, folder=False), reading),
        columns=True,
    )
}
