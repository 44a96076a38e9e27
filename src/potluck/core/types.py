"""A device of the fleet, and a share of the data."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One device of the fleet, and what it can afford."""

    id: int
    tier: str
    memory_bytes: int
    flops_per_s: float
    uplink_bytes_per_s: float
    downlink_bytes_per_s: float
    latency_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A share of a data set: rows ``index`` of arrays that many shards hold in common and nobody writes to.

    ``images`` (N, ...) uint8 or float32, ``labels`` (N,) int64, ``index`` (n,) int64. ``mean`` and ``deviation`` are
    broadcastable to a sample. ``domains`` (N,) int64 names each sample's domain.
    """

    images: Tensor
    labels: Tensor
    index: Tensor
    mean: Tensor
    deviation: Tensor
    classes: int
    domains: Tensor | None = None

    def __len__(self) -> int:
        return int(self.index.numel())

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample, as (channels, height, width), or (features,)."""
        return tuple(self.images.shape[1:])

    @property
    def x(self) -> Tensor:
        """The samples, normalised, float32, (n, *shape): made anew at each call."""
        picked = self.images[self.index]
        unit = picked.to(torch.float32).div_(255.0) if picked.dtype == torch.uint8 else picked.to(torch.float32)
        return unit.sub_(self.mean).div_(self.deviation)

    @property
    def y(self) -> Tensor:
        """The labels, int64, (n,)."""
        return self.labels[self.index]

    @property
    def d(self) -> Tensor | None:
        """The domain of each sample, int64, (n,), where the data carry one."""
        return None if self.domains is None else self.domains[self.index]

    def take(self, rows: Tensor) -> Shard:
        """The sub-share of these rows of the share."""
        return Shard(
            images=self.images,
            labels=self.labels,
            index=self.index[rows],
            mean=self.mean,
            deviation=self.deviation,
            classes=self.classes,
            domains=self.domains,
        )
