"""Devices that lack some classes: a loss that leaves those logits alone, and which rows of the classifier are theirs.

Diao et al., *HeteroFL*, arXiv 2010.01264, and Yao et al., *FedHM*, arXiv 2111.14655, share both.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from potluck.core.types import Shard
from potluck.tasks.task import LearningTask
from potluck.training.fit import Loss, Objective


def present(task: LearningTask, shard: Shard) -> list[int]:
    """The classes of which the share has a sample, ascending; of a task without classes all outputs."""
    if task.name != "classification":
        return list(range(task.outputs))
    found: list[int] = torch.unique(shard.y).tolist()
    return found


def masked(loss: Loss, labels: Sequence[int], classes: int) -> Objective:
    """The objective in which the logits of all classes but ``labels`` are 0 (not -inf), so that they do not learn."""
    absent_C = torch.ones(classes, dtype=torch.bool)
    absent_C[list(labels)] = False

    def objective(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        logits_BC = net(x)
        return loss(logits_BC.masked_fill(absent_C.to(logits_BC.device), 0.0), y)

    return objective


def classifier_tensors(net: nn.Module, classes: int) -> tuple[str, ...]:
    """The names of the last layer's tensors, whose rows are the classes; none if that layer has other rows."""
    layers = [(name, layer) for name, layer in net.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    if not layers or layers[-1][1].weight.shape[0] != classes:
        return ()
    name, layer = layers[-1]
    return (f"{name}.weight",) if layer.bias is None else (f"{name}.weight", f"{name}.bias")
