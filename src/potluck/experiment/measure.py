"""By which metric runs are judged, which way it is better, and what totals say of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from potluck.core.types import Device
from potluck.experiment import build
from potluck.experiment.problem import Problem
from potluck.experiment.resolve import Resolved
from potluck.tasks.task import Better, LearningTask, Totals
from potluck.training.evaluate import Score, metrics_of

Value = TypeVar("Value")
LOWER = ("rmse", "mae", "log_loss", "perplexity")
"""Metrics of which less is better, other than a task's own."""


def per_score(scores: Mapping[int, Score], of: Callable[[Score], Value]) -> dict[int, Value]:
    """``of`` the score of each device. Devices that deploy one model have one score, which is looked at once."""
    known: dict[int, Value] = {}
    for score in scores.values():
        if id(score) not in known:
            known[id(score)] = of(score)
    return {device: known[id(score)] for device, score in scores.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """A metric by name, of a task; ``own`` is that name where it is a function of somebody's own."""

    name: str
    better: Better
    task: LearningTask
    own: str = ""

    @classmethod
    def of(cls, resolved: Resolved, problem: Problem) -> Measure:
        """The metric of ``[evaluate]``. Raises ConfigError for one that does not exist."""
        evaluate, task = resolved.experiment.evaluate, problem.task
        own = build.make_metric(resolved, problem) is not None
        name = task.primary if evaluate.metric == "task" else evaluate.metric
        if own:
            return cls(name=name, better=evaluate.better, task=task, own=name)
        better = task.better if name == task.primary else "lower" if name in LOWER else "higher"
        return cls(name=name, better=better, task=task)

    def metrics(self, totals: Totals) -> dict[str, float]:
        """All metrics of these totals that are numbers: one that needs two classes is not, where there is one."""
        found = metrics_of(self.task, totals, self.own)
        return {name: value for name, value in found.items() if math.isfinite(value)}

    def value(self, totals: Totals) -> float:
        """The metric; 0 where it is no number."""
        return self.metrics(totals).get(self.name, 0.0)

    def reached(self, value: float, goal: float) -> bool:
        """Whether a value is as good as a goal."""
        return value >= goal if self.better == "higher" else value <= goal

    def spread(self, by_device: Mapping[int, float], devices: Sequence[Device]) -> dict[str, Any]:
        """Mean, worst and the worst tenth's bound over devices, and the mean of each tier."""
        if not by_device:
            return {}
        there = [device for device in devices if device.id in by_device]
        values = torch.tensor([by_device[device.id] for device in there], dtype=torch.float64)
        tiers: dict[str, list[float]] = {}
        for device in there:
            tiers.setdefault(device.tier, []).append(by_device[device.id])
        higher = self.better == "higher"
        return {
            "mean": float(values.mean()),
            "worst": float(values.min() if higher else values.max()),
            "p10": float(values.quantile(0.1 if higher else 0.9)),
            "tiers": {tier: sum(found) / len(found) for tier, found in tiers.items()},
        }
