"""``synthetic``: images made up from a seed, which need no file."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from potluck.core import seeds
from potluck.core.errors import DataError
from potluck.data.dataset import SPLIT_SEED, Dataset, dataset
from potluck.data.source import Source

CLASSES = 10
LARGEST_ELEMENTS = 2**33


def synthetic(spec: str) -> Dataset:
    """``N,C,H,W``: N training and N/4 test images, uint8, of ten classes: a smooth pattern each, plus noise."""
    count, channels, height, width = _shape(spec)
    draw = seeds.generator(SPLIT_SEED, 0, seeds.SERVER, "synthetic")
    coarse = torch.randn(CLASSES, channels, min(4, height), min(4, width), generator=draw)
    # Smooth patterns: a convolutional net can learn them, and augmentation does not destroy them.
    patterns = F.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)
    x_train, y_train = _noisy(patterns, count, draw)
    x_test, y_test = _noisy(patterns, max(CLASSES, count // 4), draw)
    return dataset(f"synthetic:{spec}", x_train, y_train, x_test, y_test, classes=CLASSES)


def _shape(spec: str) -> tuple[int, int, int, int]:
    try:
        count, channels, height, width = (int(part) for part in spec.split(","))
    except ValueError:
        raise DataError(
            f"synthetic:{spec} is not four whole numbers: write synthetic:N,C,H,W, such as synthetic:1000,3,32,32."
        ) from None
    if count < CLASSES or min(channels, height, width) < 1:
        raise DataError(
            f"synthetic:{spec} is out of range: expected N >= {CLASSES} images, one at least of each class, and C, H, "
            "W >= 1."
        )
    if count * channels * height * width > LARGEST_ELEMENTS:
        raise DataError(f"synthetic:{spec} would take more than 8 GiB: ask for fewer or smaller images.")
    return count, channels, height, width


def _noisy(patterns: Tensor, count: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images and labels; every class equally often, in a shuffled order."""
    y = (torch.arange(count, dtype=torch.int64) % CLASSES)[torch.randperm(count, generator=draw)]
    x = torch.empty((count, *patterns.shape[1:]), dtype=torch.uint8)
    for start in range(0, count, 4096):  # in slices: the float32 images would take four times the memory
        part = y[start : start + 4096]
        noise = torch.randn((len(part), *patterns.shape[1:]), generator=draw)
        x[start : start + 4096] = (128 + 40 * (patterns[part] + noise)).clamp_(0, 255).to(torch.uint8)
    return x, y


SOURCES = {
    "synthetic": Source(
        form="synthetic:N,C,H,W",
        summary="N generated, learnable training images of ten classes",
        read=lambda where, reading: synthetic(where),
    )
}
