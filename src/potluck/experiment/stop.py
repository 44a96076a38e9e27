"""When a run has reached what it was for: the rules of ``[stop]``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from potluck.core.types import Device
from potluck.engines.course import Played
from potluck.experiment import record
from potluck.experiment.config import Stop


@dataclass(slots=True)
class StopRules:
    """The rules, the bytes of the rounds so far, and the reason once one of them holds."""

    stop: Stop
    devices: Sequence[Device]
    sent_bytes: int
    reason: str = ""

    @classmethod
    def of(cls, stop: Stop, devices: Sequence[Device], lines: Iterable[Mapping[str, Any]]) -> StopRules:
        """The rules after the rounds of these lines."""
        return cls(stop, devices, sum(line["bytes"]["total"] for line in lines))

    def enough(self, played: Played) -> bool:
        """Whether the run may end with this round; sets ``reason``."""
        self.sent_bytes += record.traffic(record.ledger_rows(played.rows))["total"]
        accuracy = record.accuracy_summary(record.accuracies(played.scores), self.devices).get("mean")
        seconds, stop = played.snapshot.simulated_seconds, self.stop
        if stop.accuracy and accuracy is not None and accuracy >= stop.accuracy:
            self.reason = f"stop.accuracy = {stop.accuracy:g}: the mean reached {accuracy:.4f}"
        elif stop.bytes and self.sent_bytes >= stop.bytes:
            self.reason = f"stop.bytes = {stop.bytes:,}: {self.sent_bytes:,} were sent"
        elif stop.seconds and seconds >= stop.seconds:
            self.reason = f"stop.seconds = {stop.seconds:g}: {seconds:.1f} simulated seconds passed"
        return bool(self.reason)
