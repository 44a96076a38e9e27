"""A net by the name that ``[model] name`` gives: of the catalogue, of a plug-in, or of a function of one's own.

Every net of the zoo takes any image of at least 8x8 with any number of channels and classes.
"""

from __future__ import annotations

from torch import nn

from potluck.core.errors import ModelError
from potluck.core.plugins import loaded
from potluck.nets import NETS
from potluck.nets.net import Net, Shape
from potluck.nets.norms import NORMS

SMALLEST_SIDE = 8


def make(name: str, shape: Shape, classes: int, norm: str) -> nn.Module:
    """A fresh net for samples of ``shape`` (C, H, W) or (features,), drawn from torch's global generator.

    ModelError if there is no such net, the norm is unknown, or the shape does not suit the net. A net of one's own
    chooses its own norms; what it raises is told with its file and line.
    """
    net = NETS[name]
    if not net.own:
        if norm not in NORMS:
            raise ModelError(f'model.norm = "{norm}": expected one of {", ".join(NORMS)}')
        _require_fit(name, net, shape, classes)
    called = f"{name.rpartition(':')[2]}({shape}, {classes})"
    made = loaded(f'model.name = "{name}"', lambda: net.make(shape, classes, norm), called, ModelError)
    if not isinstance(made, nn.Module):
        raise ModelError(f'model.name = "{name}" returned {type(made).__name__}: expected a torch.nn.Module')
    return made


def make_at_depth(name: str, shape: Shape, classes: int, norm: str, steps: int) -> nn.Module:
    """``make``, with ``steps`` steps of an ODE net or evaluations of an equilibrium net; 0: the net's own."""
    made = make(name, shape, classes, norm)
    if steps:
        set_depth = NETS[name].set_depth
        if set_depth is None:
            raise ModelError(
                f'model.steps = {steps}: "{name}" has no depth to set; leave it out, or choose an ODE or DEQ net'
            )
        set_depth(made, steps)
    return made


def _require_fit(name: str, net: Net, shape: Shape, classes: int) -> None:
    if classes < 1:
        raise ModelError(f'model.name = "{name}": {classes} classes; expected at least one')
    if min(shape, default=0) < 1 or len(shape) not in (1, 3):
        raise ModelError(f"samples of shape {shape}: expected (channels, height, width) or (features,)")
    if len(shape) == 1 and not net.rows:
        takers = ", ".join(other for other in NETS if NETS[other].rows)
        raise ModelError(f'model.name = "{name}" takes images, and the samples are rows of {shape[0]}: choose {takers}')
    if len(shape) == 3 and min(shape[1:]) < SMALLEST_SIDE:
        least = f"{SMALLEST_SIDE}x{SMALLEST_SIDE}"
        raise ModelError(f'model.name = "{name}": images are {shape[1]}x{shape[2]}; expected at least {least}')


def count_parameters(net: nn.Module) -> int:
    """How many numbers the parameters hold (buffers not counted)."""
    return sum(weight.numel() for weight in net.parameters())
