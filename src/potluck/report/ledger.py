"""The ledger, summed while it is read: bytes by device and direction, and what went wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potluck.report import logs

WRONG = ("late", "lost", "rejected")
"""The statuses of a reply that was not aggregated."""
KINDS = ("down", "up", "setup", "evaluate")


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Encoded bytes by direction. Evaluation stands apart: it is no part of ``total``."""

    setup: int = 0
    up: int = 0
    down: int = 0
    evaluate: int = 0

    @property
    def total(self) -> int:
        """What the rounds' work cost: set-up, up and down."""
        return self.setup + self.up + self.down

    def of(self, kind: str) -> int:
        """The bytes of one of ``KINDS``."""
        return {"setup": self.setup, "up": self.up, "down": self.down, "evaluate": self.evaluate}[kind]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """The rounds in which a device's reply was late, lost or rejected, and why, in the words of the last time."""

    device: int
    tier: str
    status: str
    rounds: Sequence[int]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """The sums of a ledger. ``aggregated`` counts the rounds in which a device's reply was aggregated."""

    traffic: Mapping[int, Traffic]
    tiers: Mapping[int, str]
    aggregated: Mapping[int, int]
    troubles: Sequence[Trouble]

    @property
    def total(self) -> Traffic:
        """The bytes of all devices."""
        return add(self.traffic.values())


def add(parts: Any) -> Traffic:
    """The sum of many ``Traffic``."""
    sums = dict.fromkeys(KINDS, 0)
    for part in parts:
        for kind in KINDS:
            sums[kind] += part.of(kind)
    return Traffic(**sums)


def read(place: Path, length: int | None) -> Ledger:
    """The sums of the ledger's first ``length`` bytes (None: all). Raises RunFolderError: file and line."""
    sums: dict[int, dict[str, int]] = {}
    tiers: dict[int, str] = {}
    aggregated: dict[int, int] = {}
    wrong: dict[tuple[int, str], tuple[list[int], str]] = {}
    for round, device, tier, kind, size, answer, status, reason in logs.made(place, length, _row):
        tiers[device] = tier
        sums.setdefault(device, dict.fromkeys(KINDS, 0))[kind] += size
        if answer and status in WRONG:
            rounds, _ = wrong.setdefault((device, status), ([], ""))
            rounds.append(round)
            wrong[device, status] = (rounds, reason)
        elif answer:
            aggregated[device] = aggregated.get(device, 0) + 1
    return Ledger(
        traffic={device: Traffic(**found) for device, found in sorted(sums.items())},
        tiers=tiers,
        aggregated=aggregated,
        troubles=[
            Trouble(device=device, tier=tiers[device], status=status, rounds=rounds, reason=reason)
            for (device, status), (rounds, reason) in sorted(wrong.items())
        ],
    )


def _row(row: Mapping[str, Any]) -> tuple[int, int, str, str, int, bool, str, str]:
    """Round, device, tier, kind of bytes, bytes, whether it is a round's answer, status and reason."""
    verb, direction = row["verb"], row["direction"]
    kind = verb if verb in ("evaluate", "setup") else direction
    if kind not in KINDS:
        raise ValueError(f"direction {direction!r}, expected up or down")
    answer = direction == "up" and kind == "up"
    return (
        int(row["round"]),
        int(row["device"]),
        str(row["tier"]),
        kind,
        int(row["encoded_bytes"]),
        answer,
        str(row["status"]),
        str(row.get("reason", "")),
    )
