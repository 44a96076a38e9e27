"""What surrounds a method's functions: the device's side of a round, the server's side, and a device's reply."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch

from potluck.core import seeds
from potluck.core.types import Device, Shard

Update = TypeVar("Update")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceContext:
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
class Reply(Generic[Update]):
    """What one device sent back."""

    device: Device
    round: int
    update: Update


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerContext:
    """The server's side of a round. ``once`` remembers a pure computation for the length of the round.

    ``held`` are samples of the server's own, ``public`` those that everybody has.
    """

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
