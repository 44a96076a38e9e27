"""twoconv: two convolutions, a pool and a dense layer."""

from __future__ import annotations

from torch import nn

from potluck.nets.net import Net, by_shape


def make_two_conv(shape: tuple[int, ...], classes: int, norm: str = "none") -> nn.Module:
    """For images of ``shape`` (C, H, W), 8x8 or larger; ``norm`` is of no effect, as it has none."""
    return nn.Sequential(
        nn.Conv2d(shape[0], 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, classes),
    )


TWO_CONV = Net(line="two convolutions of 8 and 16 channels, pooled to 2x2; no norms", make=by_shape(make_two_conv))
