"""Augmentation of a batch of images, drawn from a generator of the device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

PAD_SHARE = 8
"""Images are padded by height / 8 before the crop: 4 pixels at 32x32."""


def crop_flip(x_BCHW: Tensor, rng: torch.Generator) -> Tensor:
    """The batch with each image shifted by a random offset (zero padding) and flipped left-right half of the time."""
    batch, _, height, width = x_BCHW.shape
    pad = max(1, height // PAD_SHARE)
    padded = F.pad(x_BCHW, (pad, pad, pad, pad))
    top = torch.randint(0, 2 * pad + 1, (batch, 1), generator=rng)
    left = torch.randint(0, 2 * pad + 1, (batch, 1), generator=rng)
    mirrored = torch.rand(batch, 1, generator=rng) < 0.5
    rows = top + torch.arange(height)
    columns = torch.arange(width).expand(batch, width)
    columns = left + torch.where(mirrored, columns.flip(1), columns)
    picked = padded.permute(0, 2, 3, 1)[torch.arange(batch)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2).contiguous()
