"""``mlp``: the 2NN of McMahan et al. 2017 (arXiv 1602.05629), two hidden layers of 200; feature rows or images."""

from __future__ import annotations

import math

from torch import nn

from potluck.nets.net import Net, Shape, by_shape

HIDDEN = 200


def make_mlp(shape: Shape, classes: int, norm: str = "none") -> nn.Module:
    """The net for samples of ``shape``; ``norm`` is of no effect, as it has none."""
    net = nn.Sequential()
    net.add_module("flatten", nn.Flatten())
    net.add_module("dense1", nn.Linear(math.prod(shape), HIDDEN))
    net.add_module("relu1", nn.ReLU(inplace=True))
    net.add_module("dense2", nn.Linear(HIDDEN, HIDDEN))
    net.add_module("relu2", nn.ReLU(inplace=True))
    net.add_module("classifier", nn.Linear(HIDDEN, classes))
    return net


NETS = {
    "mlp": Net(
        line="two hidden layers of 200; images, rows or series; no norms",
        make=by_shape(make_mlp),
        inputs=("images", "rows", "series"),
    )
}
