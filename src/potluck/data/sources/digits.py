"""``digits``: scikit-learn's handwritten digits, which need no file."""

from __future__ import annotations

import numpy as np
import torch

from potluck.core.errors import MissingExtraError
from potluck.data.dataset import Dataset, split_dataset
from potluck.data.source import Source

CLASSES = 10


def digits() -> Dataset:
    """1,437 training and 360 test images, 1x8x8, float32 in 0..1; the split is constant and stratified."""
    try:
        from sklearn.datasets import load_digits  # noqa: PLC0415 - an optional package, loaded where it is needed
    except ImportError as error:
        raise MissingExtraError("the source 'digits'", "lab") from error
    x, y = load_digits(return_X_y=True)
    images = torch.from_numpy(np.asarray(x, dtype=np.float32) / 16.0).reshape(-1, 1, 8, 8)
    names = tuple(str(digit) for digit in range(CLASSES))
    return split_dataset(
        "digits", images, torch.from_numpy(np.asarray(y, dtype=np.int64)), classes=CLASSES, class_names=names
    )


SOURCES = {
    "digits": Source(
        form="digits",
        summary="1,797 handwritten digits, 1x8x8, bundled with scikit-learn",
        read=lambda where, reading: digits(),
    )
}
