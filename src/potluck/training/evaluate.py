"""The evaluation of a net: a metric of each sample, summed by class and by domain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from potluck.core.types import Shard

Metric = Callable[[Tensor, Tensor], Tensor]
"""(logits (B, classes), labels (B,)) -> a number per sample, whose mean is reported."""


def accuracy(logits_BC: Tensor, y_B: Tensor) -> Tensor:
    """1.0 where the largest logit is the label's, else 0.0; shape (B,)."""
    return (logits_BC.argmax(dim=1) == y_B).to(torch.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Sums of a metric (for classification: right answers) and counts, by class and by domain; tensors for the wire."""

    right: Tensor
    total: Tensor
    domain_right: Tensor
    domain_total: Tensor


@torch.no_grad()
def evaluate(
    net: nn.Module, shard: Shard, *, metric: Metric = accuracy, batch_size: int = 250, device: str = "cpu"
) -> Score:
    """The metric summed by class, (classes,), and by domain, (domains,): float64 sums and int64 counts."""
    net.eval()
    scores = []
    for rows in torch.split(torch.arange(len(shard)), batch_size):
        part = shard.take(rows)
        scores.append(metric(net(part.x.to(device)), part.y.to(device)).to("cpu", torch.float64))
    score = torch.cat(scores) if scores else torch.zeros(0, dtype=torch.float64)
    y = shard.y.clamp(0, shard.classes - 1)
    domain = shard.d if shard.d is not None else torch.zeros(0, dtype=torch.int64)
    kinds = int(shard.domains.max()) + 1 if shard.domains is not None and shard.domains.numel() else 0
    in_domain = score if len(domain) else score[:0]
    return Score(
        right=torch.bincount(y, weights=score, minlength=shard.classes).to(torch.float64),
        total=torch.bincount(y, minlength=shard.classes),
        domain_right=torch.bincount(domain, weights=in_domain, minlength=kinds).to(torch.float64),
        domain_total=torch.bincount(domain, minlength=kinds),
    )
