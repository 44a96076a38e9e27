"""What a forward pass costs, or a step of training: FLOPs, counted by running the net once."""

from __future__ import annotations

import copy
from contextlib import nullcontext

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
    return _counted(net, shape, train=False)


def training_flops(net: nn.Module, shape: tuple[int, ...]) -> float:
    """FLOPs of the forward and the backward pass of one sample, counted likewise.

    The backward pass of a net is about two forward ones; that of an equilibrium net is whatever its gradient does.
    """
    return _counted(net, shape, train=True)


class _Whole(nullcontext[None]):
    """In place of torch's tracker of modules: all that is counted belongs to the whole."""

    parents = frozenset({"Global"})


def _counted(net: nn.Module, shape: tuple[int, ...], *, train: bool) -> float:
    probe = copy.deepcopy(net).eval()  # eval: running statistics stay as they are
    x_B = torch.randn((SAMPLES, *shape), generator=torch.Generator().manual_seed(0))
    for weight in probe.parameters():
        x_B = x_B.to(weight.device, weight.dtype)
        break
    mode = FlopCounterMode(display=False)
    mode.mod_tracker = _Whole()  # type: ignore[assignment]  # its own hooks do not stand an implicit gradient's inner one
    # A net that counts its own work must not add this pass to the round that is under way.
    with torch.set_grad_enabled(train), meter.metering(), mode as counter:
        out = probe(x_B)
        if train and out.requires_grad:
            out.sum().backward()
    return float(counter.get_total_flops()) / SAMPLES
