"""From dry rounds to a whole run: every round's cohort is known before it, so its bytes and seconds are added up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from potluck.core.types import Device
from potluck.experiment.plan_dry import Cost
from potluck.experiment.run import Prepared
from potluck.fleet import link


@dataclass(frozen=True, slots=True, kw_only=True)
class Total:
    """A whole run, as the ledger and the summary would count it. ``late`` counts replies beyond the deadline."""

    rounds: int
    down_bytes: int
    up_bytes: int
    flops: float
    simulated_seconds: float
    late: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Fares:
    """Costs by round played dry and by tier, of the tier's stand-in; ``slopes`` are FLOPs a sample and pass."""

    ready: Prepared
    costs: Mapping[int, Mapping[str, Cost]]
    slopes: Mapping[str, tuple[float, float]]
    standins: Mapping[str, Device]

    @property
    def devices(self) -> Sequence[Device]:
        """The devices of the tiers that are planned."""
        return [device for device in self.ready.course.fleet.devices if device.tier in self.standins]

    def at(self, number: int) -> Mapping[str, Cost]:
        """The costs of a round: those of the last dry one up to it."""
        return self.costs[max(played for played in self.costs if played <= number)]

    def flops(self, device: Device, number: int) -> float:
        """FLOPs of a device in a round before it hears of the others: with its own number of samples."""
        shares, standin = self.ready.shares.train, self.standins[device.tier]
        epochs = self.ready.experiment.train.epochs
        assert isinstance(epochs, dict), "the experiment is resolved"
        more = (len(shares[device.id]) - len(shares[standin.id])) * epochs[device.tier]
        return max(0.0, self.at(number)[device.tier].flops + self.slopes[device.tier][0] * more)

    def work(self, device: Device, number: int) -> float:
        """Seconds that a device works in a round."""
        return link.work_seconds(device, self.flops(device, number) + self.at(number)[device.tier].absorb_flops)


def seconds_of(fares: Fares, device: Device, number: int, cohort: Sequence[Device]) -> tuple[float, float]:
    """(seconds that the deadline is held against, seconds of the round), for a device among this cohort."""
    judged = {other.id: _judged(fares, other, number, cohort) for other in cohort}
    if not fares.ready.course.method.traits.peers:
        return judged[device.id], judged[device.id]
    return judged[device.id], _absorbed(fares, device, number, cohort, max(judged.values()))


def total_of(fares: Fares) -> Total:
    """Adds up every round of the run."""
    course, rounds = fares.ready.course, fares.ready.experiment.rounds
    peers, deadline_s = course.method.traits.peers, course.fleet.deadline_s
    down = up = late = 0
    flops = seconds = 0.0
    for number in range(1, rounds + 1):
        cohort, costs = course.fleet.cohort(number), fares.at(number)
        judged = {device.id: _judged(fares, device, number, cohort) for device in cohort}
        slow = {one for one, spent in judged.items() if spent > deadline_s}
        there = [device for device in cohort if device.id not in slow]
        gathered = deadline_s if slow else max(judged.values(), default=0.0)
        for device in cohort:
            cost = costs[device.tier]
            flops += fares.flops(device, number)
            up += (len(cohort) - 1 if peers else 1) * cost.up_bytes
            if not peers:
                down += cost.down_bytes
        round_seconds = gathered
        for device in there if peers else []:
            down += _received(fares, device, number, there)
            flops += costs[device.tier].absorb_flops
            round_seconds = max(round_seconds, _absorbed(fares, device, number, there, gathered))
        seconds += round_seconds
        late += len(slow)
    return Total(rounds=rounds, down_bytes=down, up_bytes=up, flops=flops, simulated_seconds=seconds, late=late)


def _judged(fares: Fares, device: Device, number: int, cohort: Sequence[Device]) -> float:
    """Seconds until a device's reply, or post, has arrived."""
    cost = fares.at(number)[device.tier]
    work = link.work_seconds(device, fares.flops(device, number))
    if fares.ready.course.method.traits.peers:
        return work + link.up_seconds(device, (len(cohort) - 1) * cost.up_bytes)
    return link.down_seconds(device, cost.down_bytes) + work + link.up_seconds(device, cost.up_bytes)


def _received(fares: Fares, device: Device, number: int, posted: Sequence[Device]) -> int:
    costs = fares.at(number)
    return sum(costs[other.tier].up_bytes for other in posted if other.id != device.id)


def _absorbed(fares: Fares, device: Device, number: int, posted: Sequence[Device], gathered_s: float) -> float:
    """Seconds until a peer has absorbed the others' posts."""
    work = link.work_seconds(device, fares.at(number)[device.tier].absorb_flops)
    return gathered_s + link.down_seconds(device, _received(fares, device, number, posted)) + work
