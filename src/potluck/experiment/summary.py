"""What a round and a run leave for a person: lines of ``rounds.jsonl``, and the summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from potluck.core.types import Device
from potluck.data.shares import Shares
from potluck.engines.result import RoundResult
from potluck.experiment.ledger import as_json, traffic
from potluck.experiment.measure import Measure, per_score
from potluck.tasks.task import Totals, ratio, told_by
from potluck.training.evaluate import OWN_COUNT, OWN_SUM, Score

SPREAD = ("mean", "worst", "p10", "tiers")
MOST_PARTS = 100
"""A line tells the metric of each class, label or target where there are at most so many."""


def last_of(lines: Sequence[Mapping[str, Any]], measure: Measure) -> dict[str, Any]:
    """What the last round that was evaluated says, for the summary; None where there is none.

    ``accuracy`` stands there for classification alone, ``metric`` and ``metrics`` for every task.
    """
    last: Mapping[str, Any] = next((line for line in reversed(lines) if "metric" in line), {})
    metric = last.get("metric", {})
    said: dict[str, Any] = {
        "metric": {"name": measure.name, "better": measure.better} | {key: metric.get(key) for key in SPREAD},
        "metrics": last.get("metrics", {}),
    }
    if "own" in last:
        said["own"] = last["own"]
    if measure.task.name == "classification":
        found = last.get("accuracy", {})
        told = {key: found.get(key) for key in SPREAD} | {key: found.get(key, {}).get("mean") for key in ("ad", "al")}
        said["accuracy"] = told
    return said


def own_parts(shares: Shares) -> dict[int, Tensor]:
    """What each device's training data are made of: the share of each domain or, without domains, of each class."""
    found = {}
    for device, shard in enumerate(shares.train):
        domains, tested = shard.d, shares.test.domains
        if domains is not None and tested is not None:
            counts = torch.bincount(domains, minlength=int(tested.max()) + 1)
        elif told_by(shard.targets) == "classification":
            counts = torch.bincount(shard.y.clamp(min=0), minlength=shard.facts.outputs)
        else:
            continue
        found[device] = counts.to(torch.float64) / counts.sum().clamp(min=1)
    return found


def ad_and_al(score: Score, measure: Measure, part: Tensor) -> tuple[float, float]:
    """(AD, AL) of a model: its metric on all domains, each counting the same, and on the device's own.

    Without domains AD is the pooled metric, and AL the recall of each class weighted by the device's label shares.
    """
    rates = _rates(score, measure)
    return rates.ad, rates.al(part)


@dataclass(frozen=True, slots=True)
class _Rates:
    """What a model's score says of each domain or, without domains, of each class; and which of these occur."""

    pooled: float
    ad: float
    values: Tensor
    present: Tensor

    def al(self, part: Tensor) -> float:
        weight = part * self.present if part.shape == self.present.shape else torch.zeros(1)
        return float((weight * self.values).sum() / weight.sum()) if float(weight.sum()) > 0 else self.pooled


def _rates(score: Score, measure: Measure) -> _Rates:
    pooled, totals = measure.value(score["all"]), score["all"]
    if not score["domains"]:
        return _Rates(pooled, pooled, ratio(totals["right"], totals["total"]), totals["total"] > 0)
    values = torch.tensor([measure.value(one) for one in score["domains"].values()], dtype=torch.float64)
    present = torch.tensor([not _empty(one) for one in score["domains"].values()])
    return _Rates(pooled, float(values[present].mean()) if bool(present.any()) else pooled, values, present)


def _empty(totals: Totals) -> bool:
    """Whether these are the totals of no sample."""
    return not any(bool(value.any()) for value in totals.values())


def round_line(
    result: RoundResult,
    devices: Sequence[Device],
    measure: Measure,
    personal: bool,
    wall_seconds: float,
    parts: Mapping[int, Tensor],
) -> dict[str, Any]:
    """The line of a round. ``parts`` say what each device's own data are made of (``own_parts``)."""
    checkpoint = result.checkpoint
    ups = [row for row in result.rows if row.direction == "up" and row.verb != "evaluate"]
    line: dict[str, Any] = {
        "round": checkpoint.round,
        "cohort": result.cohort,
        "status": {
            status: [row.device for row in ups if row.status == status]
            for status in ("late", "lost", "rejected")
            if any(row.status == status for row in ups)
        },
        "bytes": traffic(as_json(result.rows)),
        "seconds": result.seconds,
        "simulated_seconds": checkpoint.simulated_seconds,
        "wall_seconds": wall_seconds,
        "notes": _by_tier(result, devices) | ({"server": result.server_notes} if result.server_notes else {}),
        "parts": result.parts,
    }
    if result.own_scores:
        line["own"] = _own(result.own_scores, devices, measure)
    return line | _scores(result, devices, measure, personal, parts) if result.scores else line


def _scores(
    result: RoundResult, devices: Sequence[Device], measure: Measure, personal: bool, parts: Mapping[int, Tensor]
) -> dict[str, Any]:
    """``metric``: the one by which runs are judged, over devices. ``metrics`` and ``breakdown``: means over devices."""
    found = per_score(result.scores, lambda score: measure.metrics(score["all"]))
    by_device = {device: values.get(measure.name, 0.0) for device, values in found.items()}
    metric = measure.spread(by_device, devices)
    if personal:
        metric["devices"] = {str(device): value for device, value in by_device.items()}
    metric |= _by_domain(result, measure) | _ad_and_al(result, measure, parts, personal)
    told = {
        "metric": {"name": measure.name, "better": measure.better, **metric},
        "metrics": _means(list(found.values())),
    }
    broken = _means([*per_score(result.scores, lambda score: measure.task.breakdown(_of_task(score["all"]))).values()])
    if 1 < len(broken) <= MOST_PARTS:
        told["breakdown"] = broken
    if measure.task.name == "classification":
        right = {device: values["accuracy"] for device, values in found.items()}
        told["accuracy"] = metric if measure.own or measure.name == "accuracy" else measure.spread(right, devices)
    return told


PERCENTILES = (10, 25, 50, 75, 90)


def _own(scores: Mapping[int, Score], devices: Sequence[Device], measure: Measure) -> dict[str, Any]:
    """The metric on each device's own data: over devices, as percentiles, and of each."""
    values = {device: measure.value(score["all"]) for device, score in scores.items() if not _empty(score["all"])}
    if not values:
        return {}
    spread = torch.tensor(list(values.values()), dtype=torch.float64)
    percentiles = {f"{at}": float(spread.quantile(at / 100)) for at in PERCENTILES}
    by_device = {str(device): value for device, value in values.items()}
    return {**measure.spread(values, devices), "percentiles": percentiles, "devices": by_device}


def _of_task(totals: Totals) -> Totals:
    return {name: value for name, value in totals.items() if name not in (OWN_SUM, OWN_COUNT)}


def _means(tables: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each figure over the tables that have it."""
    names = dict.fromkeys(name for table in tables for name in table)
    found = {name: [table[name] for table in tables if name in table] for name in names}
    return {name: sum(values) / len(values) for name, values in found.items()}


def _by_domain(result: RoundResult, measure: Measure) -> dict[str, Any]:
    values = per_score(result.scores, lambda score: [measure.value(totals) for totals in score["domains"].values()])
    found = {str(device): by_domain for device, by_domain in values.items() if by_domain}
    return {"domains": found} if found else {}


def _ad_and_al(result: RoundResult, measure: Measure, parts: Mapping[int, Tensor], personal: bool) -> dict[str, Any]:
    """``ad`` and ``al``: means over devices and, of personal models, each device's."""
    there = {device: score for device, score in result.scores.items() if device in parts}
    rates = per_score(there, lambda score: _rates(score, measure))
    found = {device: (of.ad, of.al(parts[device])) for device, of in rates.items()}
    told: dict[str, Any] = {}
    for name, values in (
        ("ad", {device: pair[0] for device, pair in found.items()}),
        ("al", {device: pair[1] for device, pair in found.items()}),
    ):
        if values:
            told[name] = {"mean": sum(values.values()) / len(values)}
        if values and personal:
            told[name]["devices"] = {str(device): value for device, value in values.items()}
    return told


def _by_tier(result: RoundResult, devices: Sequence[Device]) -> dict[str, dict[str, float]]:
    """The mean of each note over the devices of a tier that gave it."""
    tier_of = {device.id: device.tier for device in devices}
    sums: dict[str, dict[str, list[float]]] = {}
    for device, notes in result.notes.items():
        for name, value in notes.items():
            sums.setdefault(tier_of[device], {}).setdefault(name, []).append(value)
    return {tier: {name: sum(v) / len(v) for name, v in notes.items()} for tier, notes in sums.items()}
