"""What a forward pass costs, or a step of training: FLOPs, counted by running the net once."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.utils import flop_counter

from potluck.core import meter
from potluck.core.types import Inputs
from potluck.training.operations import SEES_BACKWARD, OperationWatcher

SAMPLES = 2
"""Two, because a norm without running statistics refuses one sample of one pixel; the count is per sample."""


def forward_flops(net: nn.Module, inputs: Inputs) -> float:
    """FLOPs of the forward pass of one sample in eval mode; a multiply-add counts as two.

    Convolutions, matrix products and attention are counted; norms, activations and pools are not. The net itself is
    untouched: a copy runs, on made-up samples of a fixed seed.
    """
    return _counted(net, inputs, train=False)


def training_flops(net: nn.Module, inputs: Inputs) -> float:
    """FLOPs of the forward and the backward pass of one sample, counted likewise.

    The backward pass of a net is about two forward ones; that of an equilibrium net is whatever its gradient does.
    """
    return _counted(net, inputs, train=True)


class _Counter(OperationWatcher):  # type: ignore[no-untyped-call, unused-ignore]
    """Adds up what torch's own formulas say of each operation.

    torch's ``FlopCounterMode`` does the same, by module, which an implicit gradient's inner one does not stand; and it
    imports torch's compiler, which takes a device longer than its training. It stands in where this sees no backward.
    """

    flops = 0

    def see(self, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        formula = flop_counter.flop_registry.get(operation.overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=out)


def _counted(net: nn.Module, inputs: Inputs, *, train: bool) -> float:
    probe = copy.deepcopy(net).eval()  # eval: running statistics stay as they are
    x_B = inputs.example(SAMPLES)
    for weight in probe.parameters():
        x_B = x_B.to(weight.device, weight.dtype if x_B.is_floating_point() else None)
        break
    # A net that counts its own work must not add this pass to the round that is under way.
    counter: Any = _Counter() if SEES_BACKWARD else flop_counter.FlopCounterMode(display=False)  # type: ignore[no-untyped-call, unused-ignore]
    with torch.set_grad_enabled(train), meter.metering(), counter:
        out = probe(x_B)
        if train and out.requires_grad:
            out.sum().backward()
    return float(counter.flops if SEES_BACKWARD else counter.get_total_flops()) / SAMPLES
