"""A net by the name that ``[model] name`` gives: of the catalogue, of a plug-in, or of a function of one's own.

Nets of images take any of at least 8x8, with any number of channels.
"""

from __future__ import annotations

from torch import nn

from potluck.core.errors import ModelError
from potluck.core.plugins import loaded
from potluck.core.types import Inputs
from potluck.nets import NETS
from potluck.nets.net import Net
from potluck.nets.norms import NORMS

SMALLEST_SIDE = 8


def make(name: str, inputs: Inputs, outputs: int, norm: str) -> nn.Module:
    """A fresh net for such samples, which says so many numbers of each, drawn from torch's global generator.

    ModelError if there is no such net, the norm is unknown, or the shape does not suit the net. A net of one's own
    chooses its own norms; what it raises is told with its file and line.
    """
    net = NETS[name]
    if not net.own:
        if norm not in NORMS:
            raise ModelError(f'model.norm = "{norm}": expected one of {", ".join(NORMS)}')
        _require_fit(name, net, inputs, outputs)
    called = (
        f"{name.rpartition(':')[2]}({inputs.shape}, {outputs}{f', {inputs.vocabulary}' if inputs.vocabulary else ''})"
    )
    made = loaded(f'model.name = "{name}"', lambda: net.make(inputs, outputs, norm), called, ModelError)
    if not isinstance(made, nn.Module):
        raise ModelError(f'model.name = "{name}" returned {type(made).__name__}: expected a torch.nn.Module')
    return made


def make_at_depth(name: str, inputs: Inputs, outputs: int, norm: str, steps: int) -> nn.Module:
    """``make``, with ``steps`` steps of an ODE net or evaluations of an equilibrium net; 0: the net's own."""
    made = make(name, inputs, outputs, norm)
    if steps:
        set_depth = NETS[name].set_depth
        if set_depth is None:
            raise ModelError(
                f'model.steps = {steps}: "{name}" has no depth to set; leave it out, or choose an ODE or DEQ net'
            )
        set_depth(made, steps)
    return made


def _require_fit(name: str, net: Net, inputs: Inputs, outputs: int) -> None:
    shape = inputs.shape
    if outputs < 1:
        raise ModelError(f'model.name = "{name}": {outputs} outputs; expected at least one')
    if min(shape, default=0) < 1 or not 1 <= len(shape) <= 3:
        raise ModelError(
            f"samples of shape {shape}: expected (channels, height, width), (features,), (steps, channels) or (length,)"
        )
    if inputs.kind not in net.inputs:
        like = [other for other in NETS if inputs.kind in NETS[other].inputs and net.kind in ("any", NETS[other].kind)]
        hint = f"choose {', '.join(like)}" if like else f"no net of kind {net.kind!r} does: choose another method"
        raise ModelError(f'model.name = "{name}" takes {" or ".join(net.inputs)}, and the samples are {inputs}: {hint}')
    if inputs.kind == "images" and min(shape[1:]) < SMALLEST_SIDE:
        least = f"{SMALLEST_SIDE}x{SMALLEST_SIDE}"
        raise ModelError(f'model.name = "{name}": images are {shape[1]}x{shape[2]}; expected at least {least}')


def count_parameters(net: nn.Module) -> int:
    """How many numbers the parameters hold (buffers not counted)."""
    return sum(weight.numel() for weight in net.parameters())
