"""Mean and deviation of samples, by which they are normalised."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from potluck.core.types import TargetFacts


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation, float32: of each channel of images (C, 1, 1) or series (1, C), of each feature (features,).

    Bytes count as value / 255; steps of NaN behind the end of a series do not count. A channel that hardly varies gets
    the deviation 1, so that nothing is divided by zero. Tokens are left as they are.
    """
    if x.dtype == torch.int64:
        return neutral(x)
    mean, deviation = _of_bytes(x) if x.dtype == torch.uint8 else _of_floats(x)
    varies = deviation > 1e-6 * (1e-6 + mean.abs())
    return per_sample(mean, x), per_sample(torch.where(varies, deviation, torch.ones_like(deviation)), x)


def _channels_first(x: Tensor) -> Tensor:
    """Values as (N, channels or features, places): a view."""
    return x.transpose(1, 2) if x.ndim == 3 else x.reshape(len(x), x.shape[1], -1)


def _of_bytes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation in whole numbers up to the last step: the same on every machine, whatever its threads."""
    channels = _channels_first(x).shape[1]
    count = x.numel() // channels
    total, squares = (torch.zeros(channels, dtype=torch.int64) for _ in range(2))
    for part in torch.split(_channels_first(x), 2048):  # in slices: never a wide copy of all the data
        wide = part.to(torch.int64)
        total += wide.sum(dim=(0, 2))
        squares += wide.square_().sum(dim=(0, 2))
    pairs = list(zip(total.tolist(), squares.tolist(), strict=True))
    mean = [s / (255 * count) for s, _ in pairs]
    deviation = [math.sqrt(count * q - s * s) / (255 * count) for s, q in pairs]
    return torch.tensor(mean, dtype=torch.float64), torch.tensor(deviation, dtype=torch.float64)


def _of_floats(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation in two passes, in float64."""
    parts = torch.split(_channels_first(x), 2048)
    channels = parts[0].shape[1]
    total, squares, count = (torch.zeros(channels, dtype=torch.float64) for _ in range(3))
    for part in parts:
        total += part.to(torch.float64).nansum(dim=(0, 2))
        count += (~part.isnan()).sum(dim=(0, 2))
    mean = total / count
    for part in parts:
        squares += part.to(torch.float64).sub_(mean[:, None]).square_().nansum(dim=(0, 2))
    return mean, (squares / count).sqrt()


def per_sample(values: Tensor, x: Tensor) -> Tensor:
    """One value per channel or feature, float32, in a shape that broadcasts to a sample."""
    wide = values.to(torch.float32)
    return (wide[None] if x.ndim == 3 else wide.reshape(-1, *[1] * (x.ndim - 2))).contiguous()


def neutral(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean 0 and deviation 1, which leave samples as they are."""
    channels = x.shape[2] if x.ndim == 3 else x.shape[1]
    return per_sample(torch.zeros(channels), x), per_sample(torch.ones(channels), x)


def scaled(facts: TargetFacts, y: Tensor) -> TargetFacts:
    """The facts with mean and deviation of these targets, where they are numbers."""
    if not y.is_floating_point():
        return facts
    mean, deviation = moments(y)
    return replace(facts, mean=tuple(mean.tolist()), deviation=tuple(deviation.tolist()))
