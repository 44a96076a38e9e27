"""Values, ranges and warnings of the low-rank methods' options: the faithful profiles of FedHM and FedDLR.

FedHM's are the authors' code (its schedule that for CIFAR-10), FedDLR's our reading of the paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FEDHM: Mapping[str, Any] = {
    "aggregation": "replace",
    "weighting": "uniform",
    "temperature": 1.0,
    "l2_on_factors": 1e-4,
    "keep_history": True,
    "mask_labels": True,
    "classifier_rows": "paper",
    "train": {"lr": 0.1, "batch_size": 64, "epochs": 10, "weight_decay": 1e-4}
    | {"schedule": "step", "milestones": [100, 150]},
    "model": {"norm": "batch_stat"},
}
COLLAPSE = (
    'aggregation = "replace" with unequal rank factors: the model collapses to the smallest rank, because each round '
    'shrinks what small devices were not sent; "delta" does not'
)
FEDDLR: Mapping[str, Any] = {
    "target": "weight",
    "p_server": 0.95,
    "error_feedback": False,
    "dense_rounds": 0,
    "train": {"lr": 0.05, "momentum": 0.9, "epochs": 1, "batch_size": 64},
}
STALL = (
    'target = "weight" with p_client < 1: once updates are small beside the weights, truncation erases them and '
    'training stalls; "update" does not'
)
CYCLE = (
    'target = "update" with p_server < 0.99: the server adds along directions that devices never see, and its weights '
    "cycle; raise p_server to 0.999"
)


def is_factor(value: float) -> bool:
    if not 1 <= value <= 64:
        raise ValueError("expected a number from 1 (full) to 64.")
    return True


def is_share(value: float) -> bool:
    if not 0 < value <= 1:
        hint = f" Did you mean {value / 100:g}?" if 1 < value <= 100 else ""
        raise ValueError(f"expected a share of energy, 0 < p <= 1.{hint}")
    return True
