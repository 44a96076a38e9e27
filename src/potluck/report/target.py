"""What it takes to reach a goal, and a comparison in one row a method."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from potluck.report.compare import groups
from potluck.report.runs import Run
from potluck.report.units import SHARES

SHARE = 0.9
"""The default target: so much of the best run's last mean, of shares in whole percent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reached:
    """Where a run first reached the target, by its evaluated rounds: all bytes until then, both ways."""

    round: int
    bytes: int
    simulated_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A figure over seeds: mean and sample deviation (None of one seed)."""

    mean: float
    deviation: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Figure | None:
        """The figure of some values, or None where there are none."""
        if not values:
            return None
        return cls(mean=statistics.fmean(values), deviation=statistics.stdev(values) if len(values) > 1 else None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One method as it was set, over its finished seeds. ``reached`` counts the seeds that reached the target."""

    method: str
    seeds: int
    rounds: int
    mean: Figure | None
    worst: Figure | None
    tiers: Mapping[str, Figure | None]
    parameters: Sequence[int]
    net: str
    """What ``[model]`` names; "per tier" where the devices own their nets."""
    up: float
    down: float
    setup: float
    reached: int
    bytes_to_target: Figure | None
    seconds_to_target: Figure | None
    simulated_seconds: float
    wall_seconds: float
    peak_bytes: float


def target_of(runs: Sequence[Run], wanted: float | None = None) -> float | None:
    """The target: as told, or what is 10 % worse than the best last mean; None where runs have no common metric."""
    if wanted is not None:
        return wanted
    found = [run.scores.mean for run in runs if run.scores]
    if not found or len({run.metric for run in runs}) > 1 or min(found) < 0:
        return None
    if runs[0].better == "lower":
        return float(f"{min(found) / SHARE:.3g}")
    return (
        math.floor(100 * SHARE * max(found)) / 100 if runs[0].metric in SHARES else float(f"{SHARE * max(found):.3g}")
    )


def reached(run: Run, target: float | None) -> Reached | None:
    """The first evaluated round whose mean is the target or better; None where there is none."""
    if target is None:
        return None
    sent = itertools.accumulate(line.traffic.total for line in run.rounds)
    for line, total in zip(run.rounds, sent, strict=True):
        if line.scores is not None and run.gain(line.scores.mean) >= run.gain(target):
            return Reached(round=line.number, bytes=total, simulated_seconds=line.simulated_seconds)
    return None


def sides(runs: Sequence[Run], target: float | None) -> list[Side]:
    """A row for each method as it was set."""
    return [_side(name, [run for run in members if run.finished], target) for name, members in groups(runs).items()]


def _side(name: str, runs: Sequence[Run], target: float | None) -> Side:
    there = [found for found in (reached(run, target) for run in runs) if found is not None]

    def mean(of: Callable[[Run], float]) -> float:
        return statistics.fmean(map(of, runs)) if runs else math.nan

    scored = [run.scores for run in runs if run.scores]
    tiers = dict.fromkeys(tier.name for run in runs for tier in run.tiers)
    return Side(
        method=name,
        seeds=len(runs),
        rounds=max((run.done for run in runs), default=0),
        mean=Figure.of([found.mean for found in scored]),
        worst=Figure.of([found.worst for found in scored]),
        tiers={tier: Figure.of([found.tiers[tier] for found in scored if tier in found.tiers]) for tier in tiers},
        parameters=sorted({int(n) for run in runs for n in run.summary.get("parameters", {}).values()}),
        net=_net(runs[0].experiment) if runs else "",
        up=mean(lambda run: run.traffic.up),
        down=mean(lambda run: run.traffic.down),
        setup=mean(lambda run: run.traffic.setup),
        reached=len(there),
        bytes_to_target=Figure.of([found.bytes for found in there]),
        seconds_to_target=Figure.of([found.simulated_seconds for found in there]),
        simulated_seconds=mean(lambda run: run.rounds[-1].simulated_seconds if run.rounds else math.nan),
        wall_seconds=mean(lambda run: run.rounds[-1].wall_seconds if run.rounds else math.nan),
        peak_bytes=mean(lambda run: float(run.summary.get("peak_rss_bytes", math.nan))),
    )


def _net(experiment: Mapping[str, Any]) -> str:
    if experiment.get("method", {}).get("models"):
        return "per tier"
    return str(experiment.get("model", {}).get("name", ""))
