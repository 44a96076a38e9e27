"""How time and memory of a training round grow: ``growth.py steps N`` (depth) or ``growth.py width N`` (model size)."""

from __future__ import annotations

import itertools
import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

from torch import nn

import potluck
from potluck.experiment.config import Experiment


def dense(factor: int, shape: tuple[int, ...], classes: int) -> nn.Module:
    """A perceptron of 250,000 times ``factor`` parameters, about: two hidden layers."""
    hidden = round(math.sqrt(250_000 * factor))
    net = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), hidden), nn.ReLU(), nn.Linear(hidden, hidden))
    return net.append(nn.ReLU()).append(nn.Linear(hidden, classes))


def width_1(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Of factor 1."""
    return dense(1, shape, classes)


def width_2(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Of factor 2."""
    return dense(2, shape, classes)


def width_4(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Of factor 4."""
    return dense(4, shape, classes)


def width_8(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Of factor 8."""
    return dense(8, shape, classes)


def width_16(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Of factor 16."""
    return dense(16, shape, classes)


def table(kind: str, size: int) -> dict[str, Any]:
    """Ten devices of 32 samples, one step each a round."""
    base: dict[str, Any] = {
        "name": "growth",
        "rounds": 5,
        "data": {"source": "synthetic:900,3,16,16", "partition": {"kind": "iid"}, "limit": 320},
        "fleet": {"tier": [{"name": "device", "devices": 10}]},
        "evaluate": {"every": 5, "samples": 100},
        "engine": {"kind": "inprocess"},
    }
    if kind == "width":
        return base | {"model": {"name": f"growth:width_{size}"}}
    method = {"name": "fedode", "steps": {"device": size}}
    return base | {"model": {"name": "odenet-cifar-like"}, "method": method}


def main() -> None:
    """Prints seconds of the rounds between the first and the last."""
    kind, size = sys.argv[1], int(sys.argv[2])
    with tempfile.TemporaryDirectory() as folder:
        run = potluck.run(Experiment.of(table(kind, size)), Path(folder) / "run")
        walls = [line["wall_seconds"] for line in run.rounds]
        parameters = run.summary["parameters"]["device"]
    seconds = [after - before for before, after in itertools.pairwise(walls)][:-1]
    print(json.dumps({"seconds": seconds, "size": parameters if kind == "width" else size}))


if __name__ == "__main__":
    main()
