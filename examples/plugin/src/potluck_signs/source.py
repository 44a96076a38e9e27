"""stripes: images of stripes in one of four directions, which is their class; nothing is read from anywhere."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from potluck.core.errors import DataError
from potluck.data.dataset import Dataset, split_dataset
from potluck.data.source import Source

SIDE, CLASSES = 8, 4


def stripes(where: str) -> Dataset:
    """``stripes:N``: N grey images, 1x8x8, float32, a fifth of which is held out for the test."""
    if not where.isdigit() or int(where) < 5 * CLASSES:
        raise DataError(f"stripes:{where}: expected stripes:N with at least {5 * CLASSES} images, such as stripes:400.")
    draw = torch.Generator().manual_seed(1)
    y = torch.arange(int(where)) % CLASSES
    phase, noise = torch.rand(len(y), 1, 1, generator=draw), torch.randn(len(y), SIDE, SIDE, generator=draw)
    return split_dataset(f"stripes:{where}", (_waves(y, phase) + 0.3 * noise)[:, None], y, classes=CLASSES)


def _waves(y: Tensor, phase: Tensor) -> Tensor:
    """Waves across the direction of each class, (N, 8, 8)."""
    angle = (y * math.pi / CLASSES)[:, None, None]
    across = torch.arange(SIDE) * angle.cos() + torch.arange(SIDE)[:, None] * angle.sin()
    return torch.sin(2 * math.pi * (across / 4 + phase))


STRIPES = Source(
    form="stripes:N", summary="N made-up images of stripes, in four directions", read=lambda where, _: stripes(where)
)
