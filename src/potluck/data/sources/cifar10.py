"""CIFAR-10 in its official binary form: records of one label byte and 3,072 pixel bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from potluck.core.errors import DataError
from potluck.data.dataset import Dataset, dataset, labels
from potluck.data.source import Source, existing

RECORD_BYTES = 1 + 3 * 32 * 32
CLASSES = 10
TRAIN = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST = "test_batch.bin"


def read(directory: Path) -> Dataset:
    """All five training batches and the test batch, 3x32x32 uint8, from the folder or its cifar-10-batches-bin."""
    inner = directory / "cifar-10-batches-bin"
    place = inner if inner.is_dir() else directory
    missing = [name for name in (*TRAIN, TEST) if not (place / name).is_file()]
    if missing:
        raise DataError(
            f"cifar10:{directory}: {', '.join(missing)} missing, expected {TRAIN[0]} to {TRAIN[-1]} and {TEST}: unpack "
            "the official binary version (not the Python one) there."
        )
    train = [_batch(place / name) for name in TRAIN]
    x_test, y_test = _batch(place / TEST)
    x_train, y_train = (torch.cat(parts) for parts in zip(*train, strict=True))
    meta = place / "batches.meta.txt"
    names = tuple(meta.read_text(encoding="utf-8").split()) if meta.is_file() else ()
    return dataset(
        f"cifar10:{directory}",
        x_train,
        y_train,
        x_test,
        y_test,
        classes=CLASSES,
        class_names=names if len(names) == CLASSES else None,
    )


def _batch(path: Path) -> tuple[Tensor, Tensor]:
    """Images (n, 3, 32, 32) and labels (n,) of one file."""
    raw = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    if raw.size == 0 or raw.size % RECORD_BYTES:
        raise DataError(
            f"{path}: {raw.size} bytes, expected a multiple of {RECORD_BYTES} (a label and 3x32x32 pixels): the file "
            "is truncated or damaged, download it again."
        )
    records = raw.reshape(-1, RECORD_BYTES)
    y = labels(records[:, 0], str(path))
    if int(y.max()) >= CLASSES:
        raise DataError(f"{path}: label {int(y.max())} is out of range, expected 0..9: download the file again.")
    return torch.from_numpy(records[:, 1:].reshape(-1, 3, 32, 32).copy()), y


FORM = "cifar10:DIR"
SOURCES = {
    "cifar10": Source(
        form=FORM,
        summary="CIFAR-10's official binary batches, 3x32x32",
        read=lambda where, reading: read(existing(FORM, where, folder=True)),
    )
}
