"""Areas under curves from binned sums: AUROC and average precision of any number of devices, exactly.

A score in [0, 1] falls into one of ``BINS`` bins; positives and negatives are counted by bin. Scores of one bin count
as ties. With thresholds 0, 1/BINS, ..., these are torchmetrics' binned AUROC and average precision.
"""

from __future__ import annotations

import torch
from torch import Tensor

BINS = 200


def histogram(scores_BL: Tensor, positive_BL: Tensor) -> Tensor:
    """Counts (L, 2, BINS), int64: of negatives, and of positives, by bin, for each of L labels."""
    labels = scores_BL.shape[1]
    bin_BL = (
        (scores_BL.detach().to(torch.float64).nan_to_num(nan=0.0) * BINS).floor().clamp(0, BINS - 1).to(torch.int64)
    )
    place_BL = (torch.arange(labels, device=bin_BL.device) * 2 + positive_BL.to(torch.int64)) * BINS + bin_BL
    return torch.bincount(place_BL.reshape(-1), minlength=labels * 2 * BINS).reshape(labels, 2, BINS)


def auroc(counts_L2B: Tensor) -> Tensor:
    """The chance that a positive scores above a negative, ties counting half; float64, (L,). NaN without either."""
    negative_LB, positive_LB = counts_L2B.to(torch.float64).unbind(dim=1)
    below_LB = negative_LB.cumsum(dim=1) - negative_LB
    won_L = (positive_LB * (below_LB + negative_LB / 2)).sum(dim=1)
    return won_L / (negative_LB.sum(dim=1) * positive_LB.sum(dim=1))


def average_precision(counts_L2B: Tensor) -> Tensor:
    """Σ (recall_k - recall_{k-1}) precision_k over descending thresholds; float64, (L,). NaN without a positive."""
    negative_LB, positive_LB = counts_L2B.to(torch.float64).flip(dims=(2,)).unbind(dim=1)
    found_LB, said_LB = positive_LB.cumsum(dim=1), (positive_LB + negative_LB).cumsum(dim=1)
    return (positive_LB * found_LB / said_LB.clamp(min=1)).sum(dim=1) / positive_LB.sum(dim=1)
