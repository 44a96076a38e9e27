"""A net of one's own for a tier, as an experiment file names it: models = { laptop = "peer_nets:strided" }."""

from __future__ import annotations

import itertools

from torch import nn


def strided(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Three strided convolutions with group norms and a global mean: no pooling, no dense layer but the last."""
    widths = [shape[0], 16, 32, 64]
    layers: list[nn.Module] = []
    for entering, leaving in itertools.pairwise(widths):
        layers += [nn.Conv2d(entering, leaving, 3, stride=2, padding=1), nn.GroupNorm(4, leaving), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], classes))
