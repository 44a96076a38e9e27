"""Mean and deviation of samples, by which they are normalised."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel, (C, 1, 1), or of each feature, (features,), float32.

    Bytes count as value / 255. A channel that hardly varies gets the deviation 1, so that nothing is divided by zero.
    """
    mean, deviation = _of_bytes(x) if x.dtype == torch.uint8 else _of_floats(x)
    varies = deviation > 1e-6 * (1e-6 + mean.abs())
    return per_sample(mean, x), per_sample(torch.where(varies, deviation, torch.ones_like(deviation)), x)


def _over(x: Tensor) -> tuple[int, ...]:
    """All axes but that of the channels or features."""
    return (0, 2, 3) if x.ndim == 4 else (0,)


def _of_bytes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation in whole numbers up to the last step: the same on every machine, whatever its threads."""
    count = x.numel() // x.shape[1]
    total, squares = (torch.zeros(x.shape[1], dtype=torch.int64) for _ in range(2))
    for part in torch.split(x, 2048):  # in slices: never a wide copy of all the data
        wide = part.to(torch.int64)
        total += wide.sum(dim=_over(x))
        squares += wide.square_().sum(dim=_over(x))
    pairs = list(zip(total.tolist(), squares.tolist(), strict=True))
    mean = [s / (255 * count) for s, _ in pairs]
    deviation = [math.sqrt(count * q - s * s) / (255 * count) for s, q in pairs]
    return torch.tensor(mean, dtype=torch.float64), torch.tensor(deviation, dtype=torch.float64)


def _of_floats(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation in two passes, in float64."""
    count = x.numel() // x.shape[1]
    total, squares = (torch.zeros(x.shape[1], dtype=torch.float64) for _ in range(2))
    for part in torch.split(x, 2048):
        total += part.to(torch.float64).sum(dim=_over(x))
    mean = total / count
    for part in torch.split(x, 2048):
        squares += part.to(torch.float64).sub_(mean.reshape(-1, *[1] * (x.ndim - 2))).square_().sum(dim=_over(x))
    return mean, (squares / count).sqrt()


def per_sample(values: Tensor, x: Tensor) -> Tensor:
    """One value per channel or feature, float32, in a shape that broadcasts to a sample."""
    return values.to(torch.float32).reshape(-1, *[1] * (x.ndim - 2)).contiguous()


def neutral(x: Tensor) -> tuple[Tensor, Tensor]:
    return per_sample(torch.zeros(x.shape[1]), x), per_sample(torch.ones(x.shape[1]), x)
