"""One's own arrays in numpy's npz: x_train, y_train, x_test, y_test, and columns beside them. Never a pickle."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from potluck.core.errors import DataError
from potluck.data.dataset import Array, Dataset, dataset, ids, labels, samples, split_dataset
from potluck.data.source import Source, existing

TRAIN, TEST = ("x_train", "y_train"), ("x_test", "y_test")


def read(path: Path, column: str | None = None) -> Dataset:
    """The file's data set; without x_test and y_test, a fixed fifth is held out.

    Images are (N, H, W), (N, H, W, C) or (N, C, H, W), rows (N, features). ``column``, or else ``id_train``, holds
    natural ids; ``domain_train`` and ``domain_test`` whole numbers; ``class_names`` text.
    """
    return from_arrays(arrays(path), f"npz:{path}", column)


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


def from_arrays(found: Mapping[str, Array], name: str, column: str | None) -> Dataset:
    """The data set of these arrays, checked; ``name`` begins the error messages."""
    found = canonical(found)
    _require(found, name, TRAIN)
    whole = not any(key in found for key in TEST)
    if not whole:
        _require(found, name, TEST)
    x_train, y_train = pair(found, name, TRAIN)
    class_names = _names(found)
    classes = None if class_names is None else len(class_names)
    domain, owner = domains(found, name, "domain_train"), _owner(found, name, column)
    if whole:
        return split_dataset(
            name, x_train, y_train, classes=classes, class_names=class_names, domain=domain, owner=owner
        )
    return dataset(
        name,
        x_train,
        y_train,
        *pair(found, name, TEST),
        classes=classes,
        class_names=class_names,
        domain_train=domain,
        domain_test=domains(found, name, "domain_test"),
        owner_train=owner,
    )


def canonical(found: Mapping[str, Array]) -> dict[str, Array]:
    """The arrays with x, y and domain, as a device's share has them, called x_train, y_train and domain_train."""
    short = {"x": "x_train", "y": "y_train", "domain": "domain_train"}
    return {short.get(key, key) if "x_train" not in found else key: value for key, value in found.items()}


def pair(found: Mapping[str, Array], name: str, keys: tuple[str, str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples and labels under these two names."""
    x, y = (f"{name}, {key}" for key in keys)
    # A file that holds a mean was written by ``write_split``, channels first: nothing is to be guessed.
    return samples(found[keys[0]] if "mean" in found else images(found[keys[0]], x), x), labels(found[keys[1]], y)


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


def _names(found: Mapping[str, Array]) -> tuple[str, ...] | None:
    names = found.get("class_names")
    return None if names is None else tuple(str(name) for name in names.reshape(-1))


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
        read=lambda where, column: read(existing(FORM, where, folder=False), column),
        columns=True,
    )
}
