"""The weights of a net, taken out and put in by name."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from potluck.core.errors import ModelError

Weights = Mapping[str, Tensor]


def weights_of(net: nn.Module) -> dict[str, Tensor]:
    """A copy of all parameters and persistent buffers by name, on the CPU, row-major."""
    return {
        name: value.to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, value in net.state_dict().items()
    }


def load(net: nn.Module, weights: Weights) -> None:
    """Copies ``weights`` into the net. Raises ModelError unless names and shapes are the net's own."""
    held: dict[str, Tensor] = net.state_dict()
    if held.keys() == weights.keys() and all(value.shape == weights[name].shape for name, value in held.items()):
        for name, value in held.items():
            value.copy_(weights[name])
        return
    try:
        net.load_state_dict(dict(weights), strict=True)
    except RuntimeError as error:
        lines = str(error).splitlines()
        raise ModelError(f"weights do not fit the net: {lines[1].strip() if len(lines) > 1 else lines[0]}") from None
