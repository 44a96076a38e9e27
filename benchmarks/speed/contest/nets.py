"""The nets of the benchmarks, in plain PyTorch: every contestant trains the same one, from the same weights."""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn

PAYLOAD_FLOATS = {"payload_4kB": 1_000, "payload_1MB": 250_000, "payload_20MB": 5_000_000}


def cnn_2m(shape: tuple[int, ...], classes: int) -> nn.Module:
    """The CIFAR-10 CNN of the pfl-research benchmarks, 2,168,362 parameters; names as in Potluck's ``cnn-2m``."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number, (inputs, outputs) in enumerate([(shape[0], 32), (32, 32), (32, 64), (64, 64)], start=1):
        layers[f"conv{number}"] = nn.Conv2d(inputs, outputs, 3, padding=1)
        layers[f"relu{number}"] = nn.ReLU()
        if number % 2 == 0:
            layers[f"pool{number // 2}"] = nn.MaxPool2d(2)
    layers["flatten"] = nn.Flatten()
    layers["dense1"] = nn.Linear(64 * (shape[1] // 4) * (shape[2] // 4), 512)
    layers["relu5"] = nn.ReLU()
    layers["classifier"] = nn.Linear(512, classes)
    return nn.Sequential(layers)


def tiny(shape: tuple[int, ...], classes: int) -> nn.Module:
    """One hidden layer of 64: 4,810 parameters, 19 kB, on the digits."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["flatten"] = nn.Flatten()
    layers["dense1"] = nn.Linear(math.prod(shape), 64)
    layers["relu1"] = nn.ReLU()
    layers["classifier"] = nn.Linear(64, classes)
    return nn.Sequential(layers)


class Payload(nn.Module):
    """So many floats, and next to no arithmetic."""

    def __init__(self, floats: int, classes: int) -> None:
        nn.Module.__init__(self)
        self.weight = nn.Parameter(torch.zeros(floats))
        self.classes = classes

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, : self.classes] + self.weight[: self.classes]


def payload_4kb(shape: tuple[int, ...], classes: int) -> nn.Module:
    """4 kB of weights."""
    return Payload(PAYLOAD_FLOATS["payload_4kB"], classes)


def payload_1mb(shape: tuple[int, ...], classes: int) -> nn.Module:
    """1 MB of weights."""
    return Payload(PAYLOAD_FLOATS["payload_1MB"], classes)


def payload_20mb(shape: tuple[int, ...], classes: int) -> nn.Module:
    """20 MB of weights."""
    return Payload(PAYLOAD_FLOATS["payload_20MB"], classes)


MAKERS = {"cnn_2m": cnn_2m, "tiny": tiny}
