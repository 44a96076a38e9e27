"""What a round came to: the checkpoint after it, the ledger's rows, scores and notes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from potluck.core.errors import TrainingError, WireError
from potluck.core.types import Device
from potluck.engines.contract import Request, Response
from potluck.engines.federation import Checkpoint
from potluck.training.evaluate import Score


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerRow:
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
class RoundResult:
    """One round's outcome: the checkpoint after it, ledger rows, notes by device, scores by device, seconds by part."""

    checkpoint: Checkpoint
    cohort: list[int] = field(default_factory=list)
    rows: list[LedgerRow] = field(default_factory=list)
    notes: dict[int, dict[str, float]] = field(default_factory=dict)
    server_notes: dict[str, float] = field(default_factory=dict)
    scores: dict[int, Score] = field(default_factory=dict)
    own_scores: dict[int, Score] = field(default_factory=dict)
    """On each device's own test data, where both are evaluated on."""
    parts: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    def spent(self, part: str, seconds: float) -> None:
        """Adds wall seconds to a part."""
        self.parts[part] = self.parts.get(part, 0.0) + seconds


def notes_of(update: Mapping[str, Any], facts: Mapping[str, Any], device: Device) -> dict[str, float]:
    """The figures for the record: the scalars of the update and what the device noted. WireError if one is none."""
    found = {**{k: v for k, v in update.items() if isinstance(v, (bool, int, float))}, **(facts.get("notes") or {})}
    for name, value in found.items():
        if not isinstance(value, (bool, int, float)) or not math.isfinite(value):
            raise WireError(f"note {name!r} is {value!r}: expected a finite number", device=device.id)
    return {str(name): float(value) for name, value in found.items()}


def require_one_sound(failed: list[str], cohort: list[int]) -> None:
    """Raises TrainingError when every device of the round gave up by itself: going on would change nothing."""
    if failed and len(failed) == len(cohort):
        raise TrainingError(f"every device of the round gave up; the first one: {failed[0]}")


def ledger_row(
    request: Request,
    direction: str,
    tensor_bytes: int,
    encoded_bytes: int,
    seconds: float,
    status: str,
    reason: str,
    engine_bytes: int | None = None,
) -> LedgerRow:
    """The ledger row of one frame of a request."""
    return LedgerRow(
        round=request.round,
        device=request.device.id,
        tier=request.device.tier,
        verb=request.verb,
        direction=direction,
        tensor_bytes=tensor_bytes,
        encoded_bytes=encoded_bytes,
        seconds=seconds,
        status=status,
        reason=reason,
        engine_bytes=engine_bytes,
    )


def ledger_rows(response: Response, up_tensor_bytes: int, status: str, reason: str) -> tuple[LedgerRow, LedgerRow]:
    """The two rows of a request, answered or not: down, up. One that never left has no bytes."""
    request, sent = response.request, response.sent
    sizes = {
        "down": (request.tensor_bytes, len(request.frame)) if sent else (0, 0),
        "up": (up_tensor_bytes, len(response.frame)),
    }
    down, up = (
        ledger_row(request, direction, *size, response.seconds, status, reason, response.engine_bytes.get(direction))
        for direction, size in sizes.items()
    )
    return down, up
