"""The frozen values that a method sees: devices, data shares, tasks, replies, and the server's desk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from potluck.core import seeds

Up = TypeVar("Up")


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a device is asked to work on in a round, beside the message."""

    round: int
    device: Device
    data: Shard
    public: Shard | None
    seed: int

    def rng(self, purpose: str) -> torch.Generator:
        """A generator of this device, this round and this purpose."""
        return seeds.generator(self.seed, self.round, self.device.id, purpose)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply(Generic[Up]):
    """What one device sent back."""

    device: Device
    round: int
    up: Up


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """The server's side of a Task. ``once`` remembers a pure computation for the length of the round."""

    round: int
    devices: Sequence[Device]
    held: Shard | None
    public: Shard | None
    seed: int
    memo: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def rng(self, purpose: str) -> torch.Generator:
        """A generator of the server, this round and this purpose."""
        return seeds.generator(self.seed, self.round, seeds.SERVER, purpose)

    def once(self, key: str, compute: Callable[[], Any]) -> Any:
        """``compute()``, made at most once per round and key: for work that serves all devices, such as one SVD."""
        if key not in self.memo:
            self.memo[key] = compute()
        return self.memo[key]


@dataclass(frozen=True, slots=True)
class Ladder:
    """Marks a per-tier option of a method: left out, it follows these rungs in the order of the tiers' gflops."""

    rungs: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class NetChoice:
    """Marks a per-tier option that names the net of each tier; left out, every tier has the net of ``[model]``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What a method may know of the experiment before it runs, to refuse what cannot work."""

    devices: Sequence[Device]
    tiers: Sequence[str]
    shape: tuple[int, ...]
    classes: int
    public_samples: int
    server_samples: int
    up_codecs: Sequence[str]
    down_codecs: Sequence[str]
    rounds: int
    given: Mapping[str, Any]
    """The options of ``[method]`` that the experiment file itself sets."""
