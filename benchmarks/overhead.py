"""What a simulated round costs beyond its arithmetic: Potluck against a bare PyTorch loop of the same work.

    python benchmarks/overhead.py [--repeats 3] [--rounds 4]

50 devices of 50 samples (3x32x32), batch 10, one epoch of SGD at lr 0.1 on the net of 2.2 M parameters: the shape of
pfl-research's CIFAR10 benchmark. In turn: the bare loop with one torch thread, in-process, and the pool of two workers,
all with one torch thread a device; seconds a round, medians, and ratios to the bare loop. Potluck's rounds include
encoding, checks, merging, the ledger and the checkpoint; evaluation and start-up stand apart in both.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import potluck
from potluck.experiment import build, run
from potluck.experiment.config import Experiment
from potluck.experiment.resolve import resolved
from potluck.models.nets import weights_of

DEVICES, SAMPLES, BATCH, LR = 50, 50, 10, 0.1


def experiment(kind: str, rounds: int, channels_last: bool) -> Experiment:
    """The benchmark's experiment on an engine."""
    return Experiment.of(
        {
            "name": f"overhead-{kind}",
            "rounds": rounds,
            "data": {
                "source": f"synthetic:{DEVICES * SAMPLES + 1000},3,32,32",
                "partition": {"kind": "iid"},
                "limit": DEVICES * SAMPLES,
            },
            "model": {"name": "cnn-2m"},
            "train": {"lr": LR, "momentum": 0.0, "batch_size": BATCH, "channels_last": channels_last},
            "fleet": {"tier": [{"name": "device", "devices": DEVICES}], "deadline_s": 1e6},
            "evaluate": {"every": rounds},
            "engine": {"kind": kind, "workers": 2, "threads": 1},
        }
    )


class Clock:
    """A listener that notes when each round was done."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def begins(self, experiment: Experiment, folder: Path, first_round: int, warnings: Sequence[str]) -> None:
        return

    def round_done(self, line: dict[str, Any]) -> None:
        self.times.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Of the rounds between the first (start-up) and the last (evaluation)."""
        return [after - before for before, after in itertools.pairwise(self.times[:-1])]


def potluck_rounds(kind: str, rounds: int, channels_last: bool) -> tuple[list[float], float]:
    """(seconds of each round, final accuracy)."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        done = potluck.run(experiment(kind, rounds + 2, channels_last), f"{folder}/run", clock)
        return clock.seconds(), done.summary["accuracy"]["mean"]


def bare_rounds(rounds: int, channels_last: bool) -> list[float]:
    """Seconds of each round of a loop that does the arithmetic and nothing else: load, train, average."""
    settled = resolved(experiment("inprocess", 1, channels_last))
    shares = build.make_shares(settled)
    net = build.make_nets(settled, shares.test.shape, shares.test.classes)("device")
    shared = weights_of(net)
    data = [(shard.x, shard.y) for shard in shares.train]
    seconds = []
    with run.torch_threads(1):
        for _ in range(rounds + 1):
            start = time.perf_counter()
            total = {name: torch.zeros_like(value) for name, value in shared.items()}
            for x, y in data:
                net.load_state_dict(shared)
                _train(net, x, y)
                for name, value in net.state_dict().items():
                    total[name] += value / DEVICES
            shared = total
            seconds.append(time.perf_counter() - start)
    return seconds[1:]


def _train(net: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    optimiser = torch.optim.SGD(net.parameters(), lr=LR)
    net.train()
    for rows in torch.split(torch.randperm(len(x)), BATCH):
        optimiser.zero_grad()
        F.cross_entropy(net(x[rows]), y[rows]).backward()
        optimiser.step()


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    told = parser.parse_args()
    found: dict[str, list[float]] = {}
    for _ in range(told.repeats):
        found.setdefault("bare loop, 1 thread", []).extend(bare_rounds(told.rounds, channels_last=False))
        for kind in ("inprocess", "pool"):
            for layout in (False, True):
                name = f"{kind}{', channels-last' if layout else ''}"
                found.setdefault(name, []).extend(potluck_rounds(kind, told.rounds, layout)[0])
    base = statistics.median(found["bare loop, 1 thread"])
    print(
        f"torch {torch.__version__}, {DEVICES} devices x {SAMPLES} samples, {told.repeats} x {told.rounds} rounds each"
    )
    for name, seconds in found.items():
        median = statistics.median(seconds)
        print(
            f"{name:<28} {median:6.2f} s a round (from {min(seconds):.2f} to {max(seconds):.2f})  {median / base:5.2f}"
        )


if __name__ == "__main__":
    main()
