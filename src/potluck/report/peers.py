"""Peers on real machines: each has its own run folder, and together they are one run."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from potluck.report import ledger
from potluck.report.ledger import Ledger, Trouble
from potluck.report.runs import Round, Run, Scores
from potluck.report.tables import replies, table
from potluck.report.units import NONE, Html, count, score, size


def whole(found: Sequence[Run]) -> list[Run]:
    """The runs, with the peers of one run put together; not where two are of one id."""
    groups: dict[Any, list[Run]] = {}
    for run in found:
        key = run.path if run.peer is None else (run.config, run.name, run.seed)
        groups.setdefault(key, []).append(run)
    made: list[Run] = []
    for group in groups.values():
        ids = {run.peer for run in group}
        made += [_one(group)] if len(ids) == len(group) > 1 else group
    return made


def by_peer(run: Run) -> Html:
    """A row for each device with a model of its own: AD and AL, and what it sent and got; nothing for other runs."""
    scores = run.scores
    if scores is None or not scores.ad:
        return Html("")
    rows: list[list[object]] = []
    for device in sorted(scores.ad):
        sent = run.ledger.traffic.get(device, ledger.Traffic())
        own = score(scores.al[device], run.metric) if device in scores.al else NONE
        told = score(scores.ad[device], run.metric), own
        used = count(run.ledger.aggregated.get(device, 0))
        rows.append([f"device {device}", run.tier_of.get(device, ""), *told, size(sent.up), size(sent.down), used])
    head = ["device", "tier", "all domains (AD)", "its own (AL)", "bytes up", "bytes down", "aggregated"]
    if len(rows) > 1:
        means = [score(statistics.mean(values), run.metric) for values in (scores.ad.values(), scores.al.values())]
        rows.append(["all", "", *means, size(run.traffic.up), size(run.traffic.down), count(replies(run)[0])])
    return table(head, rows, words=2)


def _one(group: Sequence[Run]) -> Run:
    """The run that these peers made together. It is finished when each of the fleet's devices has finished."""
    first, devices = group[0], {device for tier in group[0].tiers for device in tier.devices}
    done = all(run.finished for run in group) and {run.peer for run in group} == devices
    peak = sum(int(run.summary.get("peak_rss_bytes", 0)) for run in group)
    numbers = sorted({line.number for run in group for line in run.rounds})
    return replace(
        first,
        path=first.path.parent,
        rounds=[_round(number, group) for number in numbers],
        ledger=_ledger([run.ledger for run in group], [run.peer for run in group]),
        summary={**first.summary, "peak_rss_bytes": peak, "state_sha256": ""} if done else {},
        peer=None,
    )


def _round(number: int, group: Sequence[Run]) -> Round:
    lines = [(run, line) for run in group for line in run.rounds if line.number == number]
    there = [line for _, line in lines]
    tier_of = group[0].tier_of
    evaluated = {run.peer: line.scores for run, line in lines if line.scores is not None and run.peer is not None}
    return Round(
        number=number,
        cohort=sorted({device for line in there for device in line.cohort}),
        traffic=ledger.add(line.traffic for line in there),
        seconds=max(line.seconds for line in there),
        simulated_seconds=max(line.simulated_seconds for line in there),
        wall_seconds=max(line.wall_seconds for line in there),
        notes=_means(line.notes for line in there),
        parts=_sums(line.parts for line in there),
        scores=_scores(evaluated, tier_of, group[0].better) if evaluated else None,
        metric=group[0].metric,
        better=group[0].better,
    )


def _scores(evaluated: Mapping[int, Scores], tier_of: Mapping[int, str], better: str) -> Scores:
    by_device = {peer: found.mean for peer, found in sorted(evaluated.items())}
    tiers: dict[str, list[float]] = {}
    for peer, value in by_device.items():
        tiers.setdefault(tier_of.get(peer, ""), []).append(value)
    return Scores(
        mean=statistics.mean(by_device.values()),
        worst=min(by_device.values()) if better == "higher" else max(by_device.values()),
        p10=None,
        tiers={tier: statistics.mean(values) for tier, values in tiers.items()},
        devices=by_device,
        domains={device: values for found in evaluated.values() for device, values in found.domains.items()},
        ad={device: value for found in evaluated.values() for device, value in found.ad.items()},
        al={device: value for found in evaluated.values() for device, value in found.al.items()},
    )


def _ledger(parts: Sequence[Ledger], peers: Sequence[int | None]) -> Ledger:
    traffic = {d: ledger.add(p.traffic[d] for p in parts if d in p.traffic) for p in parts for d in p.traffic}
    told: dict[tuple[int, str], list[tuple[int | None, Trouble]]] = {}
    for peer, part in zip(peers, parts, strict=True):
        for trouble in part.troubles:
            told.setdefault((trouble.device, trouble.status), []).append((peer, trouble))
    return Ledger(
        traffic=dict(sorted(traffic.items())),
        tiers={device: tier for part in parts for device, tier in part.tiers.items()},
        aggregated={device: most for part in parts for device, most in part.aggregated.items()},
        troubles=[
            replace(
                found[0][1],
                rounds=sorted({round for _, trouble in found for round in trouble.rounds}),
                reason=f"{found[0][1].reason} (told by {', '.join(f'peer {peer}' for peer, _ in found)})",
            )
            for _, found in sorted(told.items())
        ],
    )


def _means(notes: Iterable[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, list[float]]] = {}
    for tiers in notes:
        for tier, values in tiers.items():
            for name, value in values.items():
                found.setdefault(tier, {}).setdefault(name, []).append(value)
    return {tier: {name: statistics.mean(v) for name, v in values.items()} for tier, values in found.items()}


def _sums(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for each in parts:
        for name, seconds in each.items():
            found[name] = found.get(name, 0.0) + seconds
    return found
