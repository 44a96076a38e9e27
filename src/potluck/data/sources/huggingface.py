"""Hugging Face data sets, from the hub (or its cache) and from a local folder. The only source that uses a network.

``HF_HUB_OFFLINE=1`` is obeyed: then only the cache and local folders serve.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from potluck.core.errors import DataError, MissingExtraError
from potluck.data import pictures
from potluck.data.dataset import Array, Dataset, dataset, fixed_order, ids, labels, samples, split_dataset
from potluck.data.source import Reading, Source, existing
from potluck.data.sources import npz

TRAIN, TEST = ("train",), ("test", "validation", "valid")
LABEL_NAMES = ("label", "labels", "fine_label", "target", "y", "class")
IMAGE_NAMES = ("image", "img", "x", "pixels", "features")


def read(repo: str, column: str | None = None) -> Dataset:
    """The repository's images (or rows of numbers) and labels.

    The splits are ``train`` and ``test`` (or ``validation``); where there is one split, a fixed fifth of it is held
    out. Training samples come in a constant shuffled order. ``column`` holds natural ids.
    """
    parts = _splits(repo)
    train = next((parts[name] for name in TRAIN if name in parts), None)
    test = next((parts[name] for name in TEST if name in parts), None)
    if train is None or test is None:
        train, test = train or test or next(iter(parts.values())), None
    name = f"hf:{repo}"
    x, y, class_names = _read_part(train, name)
    order = fixed_order(len(x))
    owner = None if column is None else _ids(train, name, column)[order]
    classes = None if class_names is None else len(class_names)
    if test is None:
        return split_dataset(name, x[order], y[order], classes=classes, class_names=class_names, owner=owner)
    x_test, y_test, _ = _read_part(test, name)
    return dataset(
        name, x[order], y[order], x_test, y_test, classes=classes, class_names=class_names, owner_train=owner
    )


def _splits(repo: str) -> Mapping[str, Any]:
    """The data set's splits by name, from a saved or plain local folder, a parquet file, or the hub."""
    try:
        import datasets  # noqa: PLC0415 - an optional package, loaded where it is needed
    except ImportError as error:
        raise MissingExtraError("the source 'hf'", "lab") from error
    place = Path(repo)
    try:
        if (place / "dataset_dict.json").is_file() or (place / "state.json").is_file():
            loaded = datasets.load_from_disk(repo)
        elif place.is_file():
            loaded = datasets.load_dataset(place.suffix.lstrip("."), data_files=repo)
        else:
            loaded = datasets.load_dataset(repo)
    except Exception as error:  # the library raises whatever its builders, its file systems and its network raise
        reason = " ".join(str(error).split())
        raise DataError(
            f"hf:{repo} cannot be loaded ({type(error).__name__}: {reason}): check the name, the network, or that "
            "HF_HUB_OFFLINE finds it in the cache."
        ) from error
    return {"train": loaded} if isinstance(loaded, datasets.Dataset) else loaded


def _read_part(part: Any, name: str) -> tuple[Tensor, Tensor, tuple[str, ...] | None]:
    """Samples, labels and class names of one split."""
    image, label = _image_column(part, name), _label_column(part, name)
    if type(part.features[image]).__name__ == "Image":
        x = pictures.stack(((f"sample {i}", picture) for i, picture in enumerate(part[image])), name)
    else:
        x = samples(npz.images(_array(part, image, name), f"{name}, {image}"), f"{name}, {image}")
    # A column without a single label has no type; the hub writes -1 for labels that are kept secret.
    names = part.features[label].names if type(part.features[label]).__name__ == "ClassLabel" else None
    return x, labels(_array(part, label, name), f"{name}, {label}"), None if names is None else tuple(names)


def _array(part: Any, column: str, name: str) -> Array:
    found = np.array(part.select_columns([column]).with_format("numpy")[:][column])
    if found.dtype.kind == "O":
        raise DataError(f"{name}, {column}: rows differ in length, expected one shape for all: pad them.")
    return found


def _image_column(part: Any, name: str) -> str:
    pictured = [key for key, feature in part.features.items() if type(feature).__name__ == "Image"]
    named = [key for key in IMAGE_NAMES if key in part.features]
    if not pictured and not named:
        raise DataError(
            f"{name} has no column of images (columns: {', '.join(part.features)}), expected one, or rows of numbers "
            f"named {', '.join(IMAGE_NAMES)}: rename it."
        )
    return (pictured or named)[0]


def _label_column(part: Any, name: str) -> str:
    classed = [key for key, feature in part.features.items() if type(feature).__name__ == "ClassLabel"]
    named = [key for key in LABEL_NAMES if key in part.features]
    if not classed and not named:
        raise DataError(
            f"{name} has no column of labels (columns: {', '.join(part.features)}), expected one named "
            f"{', '.join(LABEL_NAMES)}: rename it."
        )
    return (named or classed)[0]


def _ids(part: Any, name: str, column: str) -> Tensor:
    if column not in part.features:
        raise DataError(
            f"{name} has no column {column!r} of natural ids (columns: {', '.join(part.features)}): name one of them."
        )
    return ids(np.array(part[column][:]), f"{name}, {column}")


FORM = "hf:REPO"


def _named(where: str, reading: Reading) -> Dataset:
    """A repository's name is not a path; only what looks like one is expanded."""
    return read(str(existing(FORM, where)) if where.startswith(("~", "$", "/", ".")) else where, reading.column)


SOURCES = {
    "hf": Source(
        form=FORM, summary="a Hugging Face data set, from the hub or a local folder", read=_named, columns=True
    )
}
