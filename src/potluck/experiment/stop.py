"""When a run has reached what it was for: the rules of ``[stop]``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from potluck.core.types import Device
from potluck.engines.result import RoundResult
from potluck.experiment import ledger
from potluck.experiment.config import Stop
from potluck.experiment.measure import Measure, per_score


@dataclass(slots=True)
class StopRules:
    """The rules, the bytes of the rounds so far, and the reason once one of them holds."""

    stop: Stop
    measure: Measure
    devices: Sequence[Device]
    sent_bytes: int
    reason: str = ""

    @classmethod
    def of(
        cls, stop: Stop, measure: Measure, devices: Sequence[Device], lines: Iterable[Mapping[str, Any]]
    ) -> StopRules:
        """The rules after the rounds of these lines."""
        return cls(stop, measure, devices, sum(line["bytes"]["total"] for line in lines))

    def enough(self, result: RoundResult) -> bool:
        """Whether the run may end with this round; sets ``reason``."""
        self.sent_bytes += ledger.traffic(ledger.as_json(result.rows))["total"]
        mean, measure = self._mean(result), self.measure
        seconds, stop = result.checkpoint.simulated_seconds, self.stop
        if stop.accuracy and mean is not None and mean >= stop.accuracy:
            self.reason = f"stop.accuracy = {stop.accuracy:g}: the mean reached {mean:.4f}"
        elif stop.metric is not None and mean is not None and measure.reached(mean, stop.metric):
            self.reason = f"stop.metric = {stop.metric:g}: the mean {measure.name} reached {mean:.4f}"
        elif stop.bytes and self.sent_bytes >= stop.bytes:
            self.reason = f"stop.bytes = {stop.bytes:,}: {self.sent_bytes:,} were sent"
        elif stop.seconds and seconds >= stop.seconds:
            self.reason = f"stop.seconds = {stop.seconds:g}: {seconds:.1f} simulated seconds passed"
        return bool(self.reason)

    def _mean(self, result: RoundResult) -> float | None:
        """The mean metric over devices, where a rule asks for it and there is one."""
        if not self.stop.accuracy and self.stop.metric is None:
            return None
        values = per_score(result.scores, lambda score: self.measure.value(score["all"]))
        found: float | None = self.measure.spread(values, self.devices).get("mean")
        return found
