"""A folder of images per class."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from potluck.core.errors import DataError, MissingExtraError
from potluck.data import pictures
from potluck.data.dataset import Dataset, dataset, fixed_order, split_dataset
from potluck.data.source import Source, existing

if TYPE_CHECKING:
    from PIL.Image import Image

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


def read(directory: Path) -> Dataset:
    """DIR/train/CLASS/* and DIR/test/CLASS/*, or DIR/CLASS/* of which a fixed fifth is held out.

    Classes are numbered in the order of their names; images come in a constant shuffled order.
    """
    train, test = directory / "train", directory / "test"
    if train.is_dir() != test.is_dir():
        missing = "test" if train.is_dir() else "train"
        raise DataError(
            f"folder:{directory}: there is no folder {missing}/, expected train/ and test/ or neither: add it, or move "
            "the class folders up."
        )
    if not train.is_dir():
        classes = _classes(directory)
        return split_dataset(
            f"folder:{directory}", *_part(directory, classes), classes=len(classes), class_names=classes
        )
    classes, others = _classes(train), _classes(test)
    odd = sorted(set(classes) ^ set(others))
    if odd:
        raise DataError(
            f"folder:{directory}: the classes {', '.join(odd)} are only in one of train/ and test/, expected the same "
            "folders in both."
        )
    return dataset(
        f"folder:{directory}", *_part(train, classes), *_part(test, classes), classes=len(classes), class_names=classes
    )


def _classes(directory: Path) -> tuple[str, ...]:
    names = tuple(sorted(p.name for p in directory.iterdir() if p.is_dir() and not p.name.startswith(".")))
    if len(names) < 2:
        raise DataError(
            f"folder:{directory}: {len(names)} class folders, expected at least two: a folder of images for each class."
        )
    return names


def _part(directory: Path, classes: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """Images (N, C, H, W) and labels (N,) of the class folders, in the constant order."""
    paths: list[Path] = []
    marks: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(p for p in (directory / name).iterdir() if p.suffix.lower() in ENDINGS)
        if not found:
            raise DataError(
                f"folder:{directory}: the class folder {name}/ holds no images, expected {', '.join(ENDINGS[:3])} and "
                "the like: fill it, or remove it."
            )
        paths += found
        marks += [label] * len(found)
    order = fixed_order(len(paths))
    x = pictures.stack(_opened([paths[i] for i in order.tolist()], directory), f"folder:{directory}")
    return x, torch.tensor(marks, dtype=torch.int64)[order]


def _opened(paths: list[Path], directory: Path) -> Iterator[tuple[str, Image]]:
    try:
        from PIL import Image as pil  # noqa: N813, PLC0415 - an optional package, loaded where it is needed
    except ImportError as error:
        raise MissingExtraError("the source 'folder'", "lab") from error
    for path in paths:
        name = str(path.relative_to(directory))
        try:
            with pil.open(path) as picture:
                picture.load()
                yield name, picture
        except (OSError, ValueError, SyntaxError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"folder:{directory}: {name} is not a readable image ({error}): replace it.") from error


FORM = "folder:DIR"
SOURCES = {
    "folder": Source(
        form=FORM,
        summary="a folder of images per class, in train/ and test/ or split 80/20",
        read=lambda where, reading: read(existing(FORM, where, folder=True)),
    )
}
