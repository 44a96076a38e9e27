"""LeNet-5, and two CNNs of the federated literature. They have no normalisation layers.

- ``lenet``: LeNet-5 with rectifiers and max-pools, 44,426 parameters on 1x28x28; smaller images are padded to 28x28.
- ``cnn``: the CNN of McMahan et al. 2017, 1,663,370 parameters on 1x28x28.
- ``cnn-2m``: the CIFAR-10 CNN of the pfl-research benchmarks, 2,168,362 parameters on 3x32x32.

A larger image gets a wider last pool, so that the first dense layer stays near its reference size. Features are
flattened channel by channel: the first k channels are the first k·H·W features, which width slices rely on. Rectifiers
stand after the max-pools, where a quarter of the work gives the same bits.
"""

from __future__ import annotations

import math
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from potluck.nets.net import Net, Shape, by_shape

LENET_SIDE = 28


class PadTo(nn.Module):
    """Zeros round an image up to ``side`` pixels in height and width, evenly; larger images pass."""

    def __init__(self, side: int) -> None:
        nn.Module.__init__(self)
        self.side = side

    def forward(self, x_BCHW: Tensor) -> Tensor:
        missing_h = max(0, self.side - x_BCHW.shape[2])
        missing_w = max(0, self.side - x_BCHW.shape[3])
        left, top = missing_w // 2, missing_h // 2
        return F.pad(x_BCHW, (left, missing_w - left, top, missing_h - top))


def make_cnn(name: str, shape: Shape, classes: int, norm: str = "none") -> nn.Module:
    """The net ``name`` for images of ``shape``; ``norm`` is of no effect, as these nets have no norms."""
    channels, height, width = shape
    return {"lenet": _lenet, "cnn": _cnn, "cnn-2m": _cnn_2m}[name](channels, height, width, classes)


def _last_pool(height: int, width: int, most: int) -> tuple[nn.Module, int]:
    """A max-pool of at least 2x2 that leaves at most ``most`` rows and columns, and how many pixels it leaves."""
    kernel = (max(2, math.ceil(height / most)), max(2, math.ceil(width / most)))
    return nn.MaxPool2d(kernel), (height // kernel[0]) * (width // kernel[1])


def _lenet(channels: int, height: int, width: int, classes: int) -> nn.Module:
    def before_last_pool(side: int) -> int:
        return (max(side, LENET_SIDE) - 4) // 2 - 4

    pool, pixels = _last_pool(before_last_pool(height), before_last_pool(width), most=5)
    net = nn.Sequential()
    net.add_module("pad", PadTo(LENET_SIDE))
    net.add_module("conv1", nn.Conv2d(channels, 6, 5))
    net.add_module("pool1", nn.MaxPool2d(2))
    net.add_module("relu1", nn.ReLU(inplace=True))
    net.add_module("conv2", nn.Conv2d(6, 16, 5))
    net.add_module("pool2", pool)
    net.add_module("relu2", nn.ReLU(inplace=True))
    net.add_module("flatten", nn.Flatten())
    net.add_module("dense1", nn.Linear(16 * pixels, 120))
    net.add_module("relu3", nn.ReLU(inplace=True))
    net.add_module("dense2", nn.Linear(120, 84))
    net.add_module("relu4", nn.ReLU(inplace=True))
    net.add_module("classifier", nn.Linear(84, classes))
    return net


def _cnn(channels: int, height: int, width: int, classes: int) -> nn.Module:
    pool, pixels = _last_pool(height // 2, width // 2, most=8)
    net = nn.Sequential()
    net.add_module("conv1", nn.Conv2d(channels, 32, 5, padding=2))
    net.add_module("pool1", nn.MaxPool2d(2))
    net.add_module("relu1", nn.ReLU(inplace=True))
    net.add_module("conv2", nn.Conv2d(32, 64, 5, padding=2))
    net.add_module("pool2", pool)
    net.add_module("relu2", nn.ReLU(inplace=True))
    net.add_module("flatten", nn.Flatten())
    net.add_module("dense1", nn.Linear(64 * pixels, 512))
    net.add_module("relu3", nn.ReLU(inplace=True))
    net.add_module("classifier", nn.Linear(512, classes))
    return net


def _cnn_2m(channels: int, height: int, width: int, classes: int) -> nn.Module:
    pool, pixels = _last_pool(height // 2, width // 2, most=8)
    net = nn.Sequential()
    net.add_module("conv1", nn.Conv2d(channels, 32, 3, padding=1))
    net.add_module("relu1", nn.ReLU(inplace=True))
    net.add_module("conv2", nn.Conv2d(32, 32, 3, padding=1))
    net.add_module("pool1", nn.MaxPool2d(2))
    net.add_module("relu2", nn.ReLU(inplace=True))
    net.add_module("conv3", nn.Conv2d(32, 64, 3, padding=1))
    net.add_module("relu3", nn.ReLU(inplace=True))
    net.add_module("conv4", nn.Conv2d(64, 64, 3, padding=1))
    net.add_module("pool2", pool)
    net.add_module("relu4", nn.ReLU(inplace=True))
    net.add_module("flatten", nn.Flatten())
    net.add_module("dense1", nn.Linear(64 * pixels, 512))
    net.add_module("relu5", nn.ReLU(inplace=True))
    net.add_module("classifier", nn.Linear(512, classes))
    return net


NETS = {
    "lenet": Net(line="LeNet-5; 44,426 parameters on 1x28x28; no norms", make=by_shape(partial(make_cnn, "lenet"))),
    "cnn": Net(
        line="two 5x5 convolutions, dense 512; 1,663,370 parameters on 1x28x28; no norms",
        make=by_shape(partial(make_cnn, "cnn")),
    ),
    "cnn-2m": Net(
        line="four 3x3 convolutions, dense 512; 2,168,362 parameters on 3x32x32; no norms",
        make=by_shape(partial(make_cnn, "cnn-2m")),
    ),
}
