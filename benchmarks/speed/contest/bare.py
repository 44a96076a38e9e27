"""A loop that does the arithmetic and nothing else: load, train, average. ``bare.py THREADS``."""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F
import work
from torch import nn


def train(net: nn.Module, x: torch.Tensor, y: torch.Tensor, told: work.Work) -> None:
    """One epoch of SGD on a device's share."""
    optimiser = torch.optim.SGD(net.parameters(), lr=told.lr)
    net.train()
    for rows in torch.split(torch.randperm(len(x)), told.batch):
        optimiser.zero_grad()
        F.cross_entropy(net(x[rows]), y[rows]).backward()
        optimiser.step()


def main() -> None:
    """Plays the rounds."""
    torch.set_num_threads(int(sys.argv[1]))
    told = work.load()
    torch.manual_seed(told.seed)
    net, shared, ends = told.make_net(), told.weights, []
    samples = sum(len(x) for x, _ in told.shares)
    for _ in range(told.rounds):
        total = {name: torch.zeros_like(value) for name, value in shared.items()}
        for x, y in told.shares:
            net.load_state_dict(shared)
            train(net, x, y, told)
            for name, value in net.state_dict().items():
                total[name].add_(value, alpha=len(x) / samples)
        shared = total
        ends.append(work.now())
    net.load_state_dict(shared)
    work.tell(ends, work.accuracy(net, told), {"torch": torch.__version__})


if __name__ == "__main__":
    main()
