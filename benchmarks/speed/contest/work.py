"""The work that all contestants share: a file with everybody's data and the first weights, and how results are told.

    BENCH_WORK   the npz that ``make_work.py`` wrote        BENCH_ROUNDS   rounds to play
    BENCH_SEED   seed of the order of samples               BENCH_START    when the process was started (time.time())

A contestant prints one line of JSON: seconds of each round but the first, start-up, accuracy, versions.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from nets import MAKERS


@dataclass(frozen=True)
class Work:
    """What a contestant has to do."""

    net: str
    batch: int
    lr: float
    rounds: int
    seed: int
    shares: list[tuple[Tensor, Tensor]]
    x_test: Tensor
    y_test: Tensor
    weights: dict[str, Tensor]

    def make_net(self) -> nn.Module:
        """The net with its first weights."""
        net = MAKERS[self.net](tuple(self.x_test.shape[1:]), 10)
        net.load_state_dict(self.weights)
        return net


def load() -> Work:
    """The work that the environment names."""
    with np.load(os.environ["BENCH_WORK"]) as file:
        held = {name: torch.from_numpy(file[name]) for name in file.files if name != "facts"}
        facts = json.loads(str(file["facts"]))
    sizes = facts["sizes"]
    shares = list(zip(held["x"].split(sizes), held["y"].split(sizes), strict=True))
    return Work(
        net=facts["net"],
        batch=facts["batch"],
        lr=facts["lr"],
        rounds=int(os.environ["BENCH_ROUNDS"]),
        seed=int(os.environ["BENCH_SEED"]),
        shares=shares,
        x_test=held["x_test"],
        y_test=held["y_test"],
        weights={name[2:]: value for name, value in held.items() if name.startswith("w.")},
    )


def accuracy(net: nn.Module, work: Work) -> float:
    """Share of right answers on the test images."""
    net.eval()
    with torch.no_grad():
        parts = zip(work.x_test.split(250), work.y_test.split(250), strict=True)
        return sum(int((net(x).argmax(1) == y).sum()) for x, y in parts) / len(work.y_test)


def tell(ends: list[float], score: float, versions: dict[str, str]) -> None:
    """Prints the result. ``ends``: time.time() at the end of each round."""
    seconds = [after - before for before, after in itertools.pairwise(ends)]
    startup = ends[0] - float(os.environ["BENCH_START"]) - statistics.median(seconds)
    print(json.dumps({"seconds": seconds, "startup": startup, "accuracy": score, "versions": versions}), flush=True)


def now() -> float:
    """Seconds since the epoch."""
    return time.time()
