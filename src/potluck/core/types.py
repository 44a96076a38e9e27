"""A device of the fleet, what a net is given, what it is to say, and a share of the data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["images", "rows", "series", "tokens"]
KINDS: tuple[Kind, ...] = ("images", "rows", "series", "tokens")
PADDING = 0
"""The token that stands where a text has ended."""


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


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a net is given: the shape of one sample, and of tokens how many there are.

    | kind | shape | values |
    |---|---|---|
    | ``images`` | (channels, height, width) | float32 |
    | ``rows`` | (features,) | float32 |
    | ``series`` | (steps, channels) | float32; the steps behind a shorter one's end are zero |
    | ``tokens`` | (length,) | int64 in 0..vocabulary-1; ``PADDING`` behind a shorter one's end |
    """

    shape: tuple[int, ...]
    vocabulary: int = 0

    @property
    def kind(self) -> Kind:
        """Told by the shape and the vocabulary."""
        if self.vocabulary:
            return "tokens"
        kinds: dict[int, Kind] = {1: "rows", 2: "series", 3: "images"}
        return kinds[len(self.shape)]

    def example(self, count: int) -> Tensor:
        """So many samples of this kind, drawn from a fixed seed: normal values, or tokens."""
        draw = torch.Generator().manual_seed(0)
        if self.vocabulary:
            return torch.randint(min(1, self.vocabulary - 1), self.vocabulary, (count, *self.shape), generator=draw)
        return torch.randn((count, *self.shape), generator=draw)

    def __str__(self) -> str:
        if self.vocabulary:
            return f"tokens of shape {self.shape} from a vocabulary of {self.vocabulary}"
        return f"{self.kind} of shape {self.shape}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetFacts:
    """What is known of targets beforehand: how many numbers a net says of a sample (or of a step of it), and of what.

    ``names`` are those of the classes, labels, target columns or tokens. ``mean`` and ``deviation`` are those of
    numbers that are to be predicted, in their own units, one each; empty for whatever else.
    """

    outputs: int
    names: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    deviation: tuple[float, ...] = ()

    def name(self, number: int) -> str:
        """The name of an output, or else its number."""
        return self.names[number] if number < len(self.names) else str(number)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A share of a data set: rows ``index`` of arrays that many shards hold in common and nobody writes to.

    ``samples`` (N, ...) uint8, float32 or, of tokens, int64; ``targets`` (N, ...); ``index`` (n,) int64. ``mean`` and
    ``deviation`` are broadcastable to a sample. ``domains`` (N,) int64 names each sample's domain.
    """

    samples: Tensor
    targets: Tensor
    index: Tensor
    mean: Tensor
    deviation: Tensor
    facts: TargetFacts
    vocabulary: int = 0
    domains: Tensor | None = None

    def __len__(self) -> int:
        return int(self.index.numel())

    @property
    def inputs(self) -> Inputs:
        """What a net is given of it."""
        return Inputs(tuple(self.samples.shape[1:]), self.vocabulary)

    @property
    def x(self) -> Tensor:
        """The samples, (n, *shape), made anew at each call: normalised float32, or tokens as they are."""
        picked = self.samples[self.index]
        if self.vocabulary:
            return picked
        unit = picked.to(torch.float32).div_(255.0) if picked.dtype == torch.uint8 else picked.to(torch.float32)
        normal = unit.sub_(self.mean).div_(self.deviation)
        return normal.nan_to_num_(nan=0.0) if picked.ndim == 3 and picked.is_floating_point() else normal

    @property
    def y(self) -> Tensor:
        """The targets, (n, ...): int64 classes, uint8 marks, float32 numbers, or int64 tokens."""
        return self.targets[self.index]

    @property
    def d(self) -> Tensor | None:
        """The domain of each sample, int64, (n,), where the data carry one."""
        return None if self.domains is None else self.domains[self.index]

    def take(self, rows: Tensor) -> Shard:
        """The sub-share of these rows of the share."""
        return replace(self, index=self.index[rows])
