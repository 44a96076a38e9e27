"""What a round and a run leave for a person: lines of ``rounds.jsonl``, and the summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from potluck.core.types import Device
from potluck.data.shares import Shares
from potluck.engines.result import RoundResult
from potluck.experiment.ledger import as_json, traffic


def accuracies(scores: Mapping[int, Mapping[str, Tensor]]) -> dict[int, float]:
    """The metric by device: for classification the share of right answers."""
    return {device: float(score["right"].sum()) / max(1, int(score["total"].sum())) for device, score in scores.items()}


def accuracy_summary(by_device: Mapping[int, float], devices: Sequence[Device]) -> dict[str, Any]:
    """Mean, worst and tenth percentile over devices, and the mean of each tier."""
    if not by_device:
        return {}
    values = torch.tensor([by_device[device.id] for device in devices if device.id in by_device], dtype=torch.float64)
    tiers: dict[str, list[float]] = {}
    for device in devices:
        if device.id in by_device:
            tiers.setdefault(device.tier, []).append(by_device[device.id])
    return {
        "mean": float(values.mean()),
        "worst": float(values.min()),
        "p10": float(values.quantile(0.1)),
        "tiers": {tier: sum(found) / len(found) for tier, found in tiers.items()},
    }


def last_accuracy(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the last round that was evaluated says; None where there is none."""
    found: Mapping[str, Any] = next((line["accuracy"] for line in reversed(lines) if "accuracy" in line), {})
    said = {key: found.get(key) for key in ("mean", "worst", "p10", "tiers")}
    return said | {key: found.get(key, {}).get("mean") for key in ("ad", "al")}


def own_parts(shares: Shares) -> dict[int, Tensor]:
    """What each device's training data are made of: the share of each domain or, without domains, of each class."""
    found = {}
    for device, shard in enumerate(shares.train):
        domains = shard.d
        kinds = shard.y.clamp(min=0) if domains is None else domains
        test = shares.test
        size = test.classes if test.domains is None or domains is None else int(test.domains.max()) + 1
        counts = torch.bincount(kinds, minlength=size).to(torch.float64)
        found[device] = counts / counts.sum().clamp(min=1)
    return found


def ad_and_al(score: Mapping[str, Tensor], part: Tensor) -> tuple[float, float]:
    """(AD, AL) of a model: its accuracy on all domains, each counting the same, and on the device's own.

    Without domains AD is the pooled accuracy, and AL the recall of each class weighted by the device's label shares.
    """
    by_domain = bool(score["domain_total"].numel())
    right, total = (score[f"domain_{kind}" if by_domain else kind] for kind in ("right", "total"))
    there = total > 0
    rates = right / total.clamp(min=1)
    pooled = float(right.sum()) / max(1, int(total.sum()))
    ad = float(rates[there].mean()) if by_domain and bool(there.any()) else pooled
    weight = part * there if part.shape == there.shape else torch.zeros(1)
    return ad, float((weight * rates).sum() / weight.sum()) if float(weight.sum()) > 0 else pooled


def round_line(
    result: RoundResult, devices: Sequence[Device], personal: bool, wall_seconds: float, parts: Mapping[int, Tensor]
) -> dict[str, Any]:
    """The line of a round. ``parts`` say what each device's own data are made of (``own_parts``)."""
    checkpoint, by_device = result.checkpoint, accuracies(result.scores)
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
    if by_device:
        line["accuracy"] = accuracy_summary(by_device, devices)
        if personal:
            line["accuracy"]["devices"] = {str(device): value for device, value in by_device.items()}
        line["accuracy"] |= _by_domain(result) | _ad_and_al(result, parts, personal)
    return line


def _by_domain(result: RoundResult) -> dict[str, Any]:
    found = {
        str(device): (score["domain_right"] / score["domain_total"].clamp(min=1)).tolist()
        for device, score in result.scores.items()
        if score["domain_total"].numel()
    }
    return {"domains": found} if found else {}


def _ad_and_al(result: RoundResult, parts: Mapping[int, Tensor], personal: bool) -> dict[str, Any]:
    """``ad`` and ``al``: means over devices and, of personal models, each device's."""
    found = {device: ad_and_al(score, parts[device]) for device, score in result.scores.items() if device in parts}
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
