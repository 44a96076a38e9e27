"""What the round loop is given, and what it yields: values only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from potluck.core import tree
from potluck.core.errors import TrainingError, WireError
from potluck.core.types import Desk, Device, Shard
from potluck.engines.seam import Delivery, Letters, Order
from potluck.fleet.cohort import Fleet


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """What a run is, for the loop."""

    method: Any
    fleet: Fleet
    letters: Letters
    held: Shard | None
    public: Shard | None
    seed: int
    classes: int
    domains: int
    test_samples: int
    shares: bool
    """Whether the metric of a sample lies in [0, 1], as accuracy does."""
    depths: Mapping[str, int]
    """What ``[model] steps`` says of each tier: it makes models of equal variants unlike."""
    evaluate_every: int
    evaluate_samples: int

    def desk(self, round: int) -> Desk:
        """The server's side of a round."""
        return Desk(round=round, devices=self.fleet.devices, held=self.held, public=self.public, seed=self.seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """All that a checkpoint holds: the state after ``round``, and per device its last merged round and its digests."""

    round: int
    state: Mapping[str, Any]
    acks: Mapping[int, int] = field(default_factory=dict)
    own: Mapping[int, str] = field(default_factory=dict)
    codec: Mapping[int, str] = field(default_factory=dict)
    simulated_seconds: float = 0.0

    def digest(self) -> str:
        """The ``state_sha256`` of the summary."""
        own = {str(device): sha for device, sha in self.own.items() if sha}
        codec = {str(device): sha for device, sha in self.codec.items() if sha}
        return tree.digest({"state": self.state, "own": own, "codec": codec})


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A row of the ledger: one frame of one device in one direction.

    ``engine_bytes`` are those of the message around the frame, as the engine serialises it; None: it has none.
    """

    round: int
    device: int
    tier: str
    verb: str
    direction: str
    tensor_bytes: int
    encoded_bytes: int
    seconds: float
    status: str
    reason: str
    engine_bytes: int | None = None


@dataclass(slots=True, kw_only=True)
class Played:
    """One round's outcome: the snapshot after it, ledger rows, notes by device, scores by device, seconds by part."""

    snapshot: Snapshot
    cohort: list[int] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    notes: dict[int, dict[str, float]] = field(default_factory=dict)
    server_notes: dict[str, float] = field(default_factory=dict)
    scores: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    parts: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    def spent(self, part: str, seconds: float) -> None:
        """Adds wall seconds to a part."""
        self.parts[part] = self.parts.get(part, 0.0) + seconds


def notes_of(up: Mapping[str, Any], facts: Mapping[str, Any], device: Device) -> dict[str, float]:
    """The figures for the record: the scalars of the reply and what the device noted. WireError if one is no number."""
    found = {**{k: v for k, v in up.items() if isinstance(v, (bool, int, float))}, **(facts.get("notes") or {})}
    for name, value in found.items():
        if not isinstance(value, (bool, int, float)) or not math.isfinite(value):
            raise WireError(f"note {name!r} is {value!r}: expected a finite number", device=device.id)
    return {str(name): float(value) for name, value in found.items()}


def demand_one_sound(failed: list[str], cohort: list[int]) -> None:
    """Raises TrainingError when every device of the round gave up by itself: going on would change nothing."""
    if failed and len(failed) == len(cohort):
        raise TrainingError(f"every device of the round gave up; the first one: {failed[0]}")


def row(
    order: Order,
    direction: str,
    tensor_bytes: int,
    encoded_bytes: int,
    seconds: float,
    status: str,
    reason: str,
    engine_bytes: int | None = None,
) -> Row:
    """The ledger row of one frame of an order."""
    return Row(
        round=order.round,
        device=order.device.id,
        tier=order.device.tier,
        verb=order.verb,
        direction=direction,
        tensor_bytes=tensor_bytes,
        encoded_bytes=encoded_bytes,
        seconds=seconds,
        status=status,
        reason=reason,
        engine_bytes=engine_bytes,
    )


def rows_of(delivery: Delivery, up_tensor_bytes: int, status: str, reason: str) -> tuple[Row, Row]:
    """The two rows of an order that was answered or not: down, up. An order that never left has no bytes."""
    order, sent = delivery.order, delivery.sent
    sizes = {
        "down": (order.tensor_bytes, len(order.frame)) if sent else (0, 0),
        "up": (up_tensor_bytes, len(delivery.frame)),
    }
    down, up = (
        row(order, direction, *size, delivery.seconds, status, reason, delivery.engine_bytes.get(direction))
        for direction, size in sizes.items()
    )
    return down, up
