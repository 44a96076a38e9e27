"""Does Potluck learn what a plain loop learns? FedAvg against fifteen lines of PyTorch, on the same shares.

    POTLUCK_DATA=... python benchmarks/claims/reference.py recipes/fashion.toml [--seeds 0,1,2] [--rounds 10]

The loop below shares nothing with Potluck but the shares of data and the initial weights: its own order of samples, its
own averaging in float32. Accuracy after each round on the same test images, side by side.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import potluck
from potluck.data.shares import Shares
from potluck.experiment import build
from potluck.experiment.config import Experiment
from potluck.experiment.problem import problem_of
from potluck.experiment.resolve import resolve

TESTED = 2000


def plain_loop(experiment: Experiment, shares: Shares, net: nn.Module) -> list[float]:
    """Accuracy after each round of the plain loop."""
    train, test = experiment.train, shares.test.take(torch.arange(TESTED))
    x_test, y_test = test.x, test.y
    data = [(shard.x, shard.y) for shard in shares.train]
    shared = copy.deepcopy(net.state_dict())
    found = []
    for _ in range(experiment.rounds):
        total, samples = {name: torch.zeros_like(value) for name, value in shared.items()}, 0
        for x, y in data:
            net.load_state_dict(shared)
            net.train()
            optimiser = torch.optim.SGD(net.parameters(), lr=train.lr, momentum=train.momentum)
            for rows in torch.split(torch.randperm(len(x)), train.batch_size):
                optimiser.zero_grad()
                F.cross_entropy(net(x[rows]), y[rows]).backward()
                optimiser.step()
            total = {name: total[name] + len(x) * value for name, value in net.state_dict().items()}
            samples += len(x)
        shared = {name: value / samples for name, value in total.items()}
        net.load_state_dict(shared)
        net.eval()
        with torch.no_grad():
            right = sum(
                int((net(x).argmax(1) == y).sum()) for x, y in zip(x_test.split(500), y_test.split(500), strict=True)
            )
        found.append(right / len(y_test))
    return found


def main() -> None:
    """Prints both curves for each seed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--rounds", type=int, default=10)
    told = parser.parse_args()
    for seed in (int(part) for part in told.seeds.split(",")):
        resolved = resolve(Experiment.load(told.recipe, [f"seed={seed}", f"rounds={told.rounds}"]))
        experiment = resolved.experiment
        shares = build.make_shares(resolved)
        tier = experiment.fleet.tier[0].name
        net = build.make_tier_nets(resolved, problem_of(resolved, shares))(tier)
        torch.manual_seed(seed + 1000)
        plain = plain_loop(experiment, shares, net)
        with tempfile.TemporaryDirectory() as folder:
            run = potluck.run(experiment, Path(folder) / "run")
            ours = [line["accuracy"]["mean"] for line in run.rounds]
        print(f"{experiment.name}, seed {seed}: accuracy by round", flush=True)
        print("  plain loop ", " ".join(f"{value:.3f}" for value in plain))
        print("  potluck    ", " ".join(f"{value:.3f}" for value in ours), flush=True)


if __name__ == "__main__":
    main()
