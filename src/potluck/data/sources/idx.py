"""The idx files of the MNIST family: a magic number, the dimensions, then bytes."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from potluck.core.errors import DataError
from potluck.data.dataset import Array, Dataset, dataset, labels, split_dataset
from potluck.data.source import Source, existing

IMAGES, LABELS = 0x0803, 0x0801
"""The magic numbers: unsigned bytes in three dimensions, and in one."""


def read(directory: Path) -> Dataset:
    """The folder's four files; where only one pair is there, it is all the data, and a fifth of it is held out."""
    train, test = _pair(directory, "train"), _pair(directory, "t10k")
    name = f"idx:{directory}"
    if train is not None and test is not None:
        return dataset(name, *train, *test, classes=max(int(train[1].max()), int(test[1].max())) + 1)
    alone = train or test
    if alone is None:
        raise DataError(
            f"{name}: found no idx files, expected train-images-idx3-ubyte, train-labels-idx1-ubyte and the same of "
            "t10k, gzipped or not: check the folder."
        )
    return split_dataset(name, *alone)


def _pair(directory: Path, part: str) -> tuple[Tensor, Tensor] | None:
    """The images (N, 1, H, W) and labels (N,) of a part, or None if it has neither."""
    images, marks = _find(directory, f"{part}-images", 3), _find(directory, f"{part}-labels", 1)
    if images is None and marks is None:
        return None
    if images is None or marks is None:
        missing = f"{part}-labels-idx1-ubyte" if marks is None else f"{part}-images-idx3-ubyte"
        raise DataError(f"idx:{directory}: {missing} is missing beside its partner: download it too.")
    pixels = parse(images, IMAGES)
    return torch.from_numpy(pixels[:, None]), labels(parse(marks, LABELS), str(marks))


def _find(directory: Path, stem: str, dimensions: int) -> Path | None:
    for separator in ("-", "."):
        for end in ("", ".gz"):
            path = directory / f"{stem}{separator}idx{dimensions}-ubyte{end}"
            if path.is_file():
                return path
    return None


def parse(path: Path, magic: int) -> Array:
    """The file's array, uint8; the header must say exactly what follows it."""
    raw = _bytes(path)
    dimensions = magic & 0xFF
    start = 4 + 4 * dimensions
    if len(raw) < start:
        raise DataError(f"{path}: {len(raw)} bytes, too short for an idx file: download it again.")
    found, *shape = struct.unpack(f">{1 + dimensions}I", raw[:start])
    if found != magic:
        raise DataError(
            f"{path}: begins with the number {found:#010x}, expected {magic:#010x} for an idx file of unsigned bytes "
            f"in {dimensions} dimensions: check that it is the right file."
        )
    expected = math.prod(shape)
    if len(raw) - start != expected or expected == 0:
        raise DataError(
            f"{path}: {len(raw) - start} bytes after the header, expected {expected} for {shape}: the file is "
            "truncated or damaged, download it again."
        )
    return np.frombuffer(raw, dtype=np.uint8, offset=start).reshape(shape).copy()


def _bytes(path: Path) -> bytes:
    try:
        if path.suffix == ".gz":
            with gzip.open(path) as stream:
                return stream.read()
        return path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}): download it again.") from error


FORM = "idx:DIR"
SOURCES = {
    "idx": Source(
        form=FORM,
        summary="the MNIST family: train-images-idx3-ubyte and the like, gzipped or not",
        read=lambda where, reading: read(existing(FORM, where, folder=True)),
    )
}
