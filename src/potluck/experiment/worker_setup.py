"""What travels to a worker process: the resolved experiment as a table, and the data in shared memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from potluck.core.types import Shard
from potluck.data.shares import Shares
from potluck.engines.device import DeviceRuntime
from potluck.experiment import build
from potluck.experiment.config import Experiment
from potluck.experiment.resolve import resolve


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedShares:
    """Shares in a handful of shared tensors, however many devices there are: one shard, and each device's length."""

    train: Shard
    train_sizes: list[int]
    public: Shard | None
    held: Shard | None
    test: Shard
    tests: Shard | None
    test_sizes: list[int]
    own: Shard | None = None
    own_sizes: Sequence[int] = ()

    @classmethod
    def of(cls, shares: Shares) -> PackedShares:
        """The shares in shared memory."""
        tests = shares.tests
        return cls(
            train=_joined(shares.train),
            train_sizes=[len(shard) for shard in shares.train],
            public=None if shares.public is None else _joined([shares.public]),
            held=None if shares.held is None else _joined([shares.held]),
            test=_joined([shares.test]),
            tests=None if tests is None else _joined(tests),
            test_sizes=[] if tests is None else [len(shard) for shard in tests],
            own=None if shares.own is None else _joined(shares.own),
            own_sizes=[len(shard) for shard in shares.own or ()],
        )

    def unpacked(self) -> Shares:
        """The shares again, on the same memory."""
        return Shares(
            train=_cut(self.train, self.train_sizes),
            public=self.public,
            held=self.held,
            test=self.test,
            tests=None if self.tests is None else _cut(self.tests, self.test_sizes),
            own=None if self.own is None else _cut(self.own, self.own_sizes),
        )


def make_runtime_in_worker(table: dict[str, Any], packed: PackedShares, folder: str) -> DeviceRuntime:
    """The devices' side, in a worker process."""
    return build.make_runtime(resolve(Experiment.of(table)), packed.unpacked(), Path(folder))


def _joined(shards: Sequence[Shard]) -> Shard:
    whole = replace(shards[0], index=torch.cat([shard.index for shard in shards]))
    for tensor in (whole.samples, whole.targets, whole.index, whole.mean, whole.deviation, whole.domains):
        if tensor is not None:
            tensor.share_memory_()  # type: ignore[no-untyped-call]
    return whole


def _cut(whole: Shard, sizes: Sequence[int]) -> tuple[Shard, ...]:
    return tuple(replace(whole, index=part) for part in torch.split(whole.index, list(sizes)))
