"""What nets say of samples that everybody has, and samples that know their own rows, to be taught by it."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from potluck.core.types import Shard

BATCH = 250


@torch.no_grad()
def outputs(net: nn.Module, shard: Shard, device: str) -> Tensor:
    """What the net says in evaluation mode, (samples, outputs) float32, on the CPU."""
    net.eval()
    parts = [net(shard.take(rows).x.to(device)).float().cpu() for rows in torch.split(torch.arange(len(shard)), BATCH)]
    return torch.cat(parts) if parts else torch.zeros(0, shard.facts.outputs)


def numbered(shard: Shard) -> Shard:
    """The same samples with their places 0, 1, ... as targets: what is known of each sample is found by them."""
    places = torch.zeros(len(shard.samples), dtype=torch.int64)
    places[shard.index] = torch.arange(len(shard))
    return replace(shard, targets=places)
