"""What one forward pass costs: FLOPs, counted by running the net once."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from potluck.core import meter

SAMPLES = 2
"""Two, because a norm without running statistics refuses one sample of one pixel; the count is per sample."""


def forward_flops(net: nn.Module, shape: tuple[int, ...]) -> float:
    """FLOPs of the forward pass of one sample of ``shape`` in eval mode; a multiply-add counts as two.

    Convolutions, matrix products and attention are counted; norms, activations and pools are not. The net itself is
    untouched: a copy runs, on standard normal samples of a fixed seed.
    """
    probe = copy.deepcopy(net).eval().requires_grad_(False)
    x_B = torch.randn((SAMPLES, *shape), generator=torch.Generator().manual_seed(0))
    for weight in probe.parameters():
        x_B = x_B.to(weight.device, weight.dtype)
        break
    # A net that counts its own work must not add this pass to the round that is under way.
    with torch.no_grad(), meter.metering(), FlopCounterMode(display=False) as counter:
        probe(x_B)
    return float(counter.get_total_flops()) / SAMPLES
