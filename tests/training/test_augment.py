"""Crop and flip: every image is a shifted, perhaps mirrored, zero-padded copy of itself."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from potluck.training.augment import crop_flip


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def all_variants(image_CHW: Tensor) -> list[tuple[int, int, bool, Tensor]]:
    """(down, right, mirrored, picture) of every crop that there may be."""
    _, height, width = image_CHW.shape
    pad = max(1, height // 8)
    padded = F.pad(image_CHW, (pad, pad, pad, pad))
    found = []
    for top in range(2 * pad + 1):
        for left in range(2 * pad + 1):
            window = padded[:, top : top + height, left : left + width]
            found += [(top, left, False, window), (top, left, True, window.flip(2))]
    return found


@settings(max_examples=25)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(8, 17), st.integers(8, 17), st.integers(0, 2**31))
def test_each_image_is_one_of_its_crops(batch: int, channels: int, height: int, width: int, seed: int) -> None:
    x_BCHW = 1 + torch.rand(batch, channels, height, width, generator=rng(seed))
    before = x_BCHW.clone()
    got = crop_flip(x_BCHW, rng(seed))
    assert got.shape == x_BCHW.shape
    assert got.dtype == torch.float32
    assert got.is_contiguous()
    assert torch.equal(x_BCHW, before)
    for image, made in zip(x_BCHW, got, strict=True):
        assert any(torch.equal(made, window) for *_, window in all_variants(image))


def test_every_crop_is_equally_likely() -> None:
    image = 1 + torch.rand(1, 8, 8, generator=rng())
    variants, draws = all_variants(image), 3_600
    made = crop_flip(image.expand(draws, 1, 8, 8), rng())
    counts = [sum(bool(hit) for hit in (made == window).flatten(1).all(dim=1)) for *_, window in variants]
    assert sum(counts) == draws
    assert len(variants) == 18
    deviation = math.sqrt(draws * (1 / 18) * (17 / 18))
    assert max(abs(count - draws / 18) for count in counts) < 4 * deviation
    mirrored = sum(count for count, (_, _, flipped, _) in zip(counts, variants, strict=True) if flipped)
    assert abs(mirrored - draws / 2) < 4 * math.sqrt(draws) / 2


def test_images_of_a_batch_are_drawn_apart_and_the_generator_decides() -> None:
    x = (1 + torch.rand(1, 3, 32, 32, generator=rng())).expand(16, 3, 32, 32)
    first = crop_flip(x, rng(1))
    assert torch.equal(crop_flip(x, rng(1)), first)
    assert not torch.equal(crop_flip(x, rng(2)), first)
    assert len({tuple(image.flatten()[:200].tolist()) for image in first}) > 12


@pytest.mark.parametrize(("height", "pad"), [(8, 1), (15, 1), (16, 2), (32, 4), (96, 12)])
def test_the_shift_is_an_eighth_of_the_height_at_most(height: int, pad: int) -> None:
    x = torch.ones(200, 1, height, height)
    made = crop_flip(x, rng())
    lost_rows = (made.sum(dim=3) == 0).sum(dim=2).max()
    lost_columns = (made.sum(dim=2) == 0).sum(dim=2).max()
    assert int(lost_rows) == pad
    assert int(lost_columns) == pad


def test_channels_move_together() -> None:
    x = torch.rand(8, 1, 12, 12, generator=rng()).expand(8, 3, 12, 12)
    made = crop_flip(x, rng())
    assert torch.equal(made[:, 0], made[:, 1])
    assert torch.equal(made[:, 0], made[:, 2])
