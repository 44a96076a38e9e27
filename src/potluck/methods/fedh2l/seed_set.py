"""Samples that everybody holds: their digest, the slice of a round, and batches that know their own rows."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

import torch
from torch import Tensor

from potluck.core import seeds, tree
from potluck.core.types import Shard

PUBLIC = -1
"""The contributor of the samples that come from the experiment's shared set."""


def manifest(shared: Shard) -> list[dict[str, Any]]:
    """A row per sample: contributor, place in the set, target, SHA-256 of its bytes as the source has them."""
    samples, targets = shared.samples[shared.index], shared.y.tolist()
    return [
        {
            "contributor": PUBLIC,
            "index": place,
            "label": target,
            "sha256": hashlib.sha256(tree.view_bytes(sample)).hexdigest(),
        }
        for place, (sample, target) in enumerate(zip(samples, targets, strict=True))
    ]


def digest(shared: Shard) -> str:
    """SHA-256 of the manifest: equal where two participants hold the same samples, in the same order."""
    text = json.dumps(manifest(shared), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def rows_of_round(count: int, size: int, seed_digest: str, round: int) -> Tensor:
    """The rows of round ``round`` (from 1): all ``count``, or a slice of ``size``. Equal on all participants.

    A pass goes through all rows once, in an order of its own, in slices of which the last may be smaller.
    """
    if size >= count:
        return torch.arange(count)
    slices = math.ceil(count / size)
    turn, place = divmod(round - 1, slices)
    order = torch.randperm(count, generator=seeds.generator(0, turn, seeds.SERVER, f"seeds {seed_digest}"))
    return order[place * size : (place + 1) * size]
