"""From dry rounds to a whole run: every round's cohort is known before it, so its bytes and seconds are added up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from potluck.core.types import Device
from potluck.experiment.prepare import Prepared
from potluck.fleet import link
from potluck.planning.dry_round import Cost


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
class CostTable:
    """Costs by round run dry and by tier, of the tier's stand-in; ``slopes`` are FLOPs a sample and pass."""

    ready: Prepared
    costs: Mapping[int, Mapping[str, Cost]]
    slopes: Mapping[str, tuple[float, float]]
    standins: Mapping[str, Device]

    @property
    def devices(self) -> Sequence[Device]:
        """The devices of the tiers that are planned."""
        return [device for device in self.ready.federation.fleet.devices if device.tier in self.standins]

    def at(self, number: int) -> Mapping[str, Cost]:
        """The costs of a round: those of the last dry one up to it."""
        return self.costs[max(result for result in self.costs if result <= number)]

    def flops(self, device: Device, number: int) -> float:
        """FLOPs of a device in a round before it hears of the others: with its own number of samples."""
        shares, standin = self.ready.shares.train, self.standins[device.tier]
        epochs = self.ready.resolved.epochs
        more = (len(shares[device.id]) - len(shares[standin.id])) * epochs[device.tier]
        return max(0.0, self.at(number)[device.tier].flops + self.slopes[device.tier][0] * more)

    def work(self, device: Device, number: int) -> float:
        """Seconds that a device works in a round."""
        return link.work_seconds(device, self.flops(device, number) + self.at(number)[device.tier].absorb_flops)


def seconds_of(table: CostTable, device: Device, number: int, cohort: Sequence[Device]) -> tuple[float, float]:
    """(seconds that the deadline is held against, seconds of the round), for a device among this cohort."""
    apply_deadline = {other.id: _judged(table, other, number, cohort) for other in cohort}
    if not table.ready.federation.method.traits.peers:
        return apply_deadline[device.id], apply_deadline[device.id]
    return apply_deadline[device.id], _absorbed(table, device, number, cohort, max(apply_deadline.values()))


def total_of(table: CostTable) -> Total:
    """Adds up every round of the run."""
    federation, rounds = table.ready.federation, table.ready.experiment.rounds
    peers, deadline_s = federation.method.traits.peers, federation.fleet.deadline_s
    down = up = late = 0
    flops = seconds = 0.0
    for number in range(1, rounds + 1):
        cohort, costs = federation.fleet.cohort(number), table.at(number)
        apply_deadline = {device.id: _judged(table, device, number, cohort) for device in cohort}
        slow = {one for one, spent in apply_deadline.items() if spent > deadline_s}
        there = [device for device in cohort if device.id not in slow]
        gathered = deadline_s if slow else max(apply_deadline.values(), default=0.0)
        for device in cohort:
            cost = costs[device.tier]
            flops += table.flops(device, number)
            up += (len(cohort) - 1 if peers else 1) * cost.up_bytes
            if not peers:
                down += cost.down_bytes
        round_seconds = gathered
        for device in there if peers else []:
            down += _received(table, device, number, there)
            flops += costs[device.tier].absorb_flops
            round_seconds = max(round_seconds, _absorbed(table, device, number, there, gathered))
        seconds += round_seconds
        late += len(slow)
    return Total(rounds=rounds, down_bytes=down, up_bytes=up, flops=flops, simulated_seconds=seconds, late=late)


def _judged(table: CostTable, device: Device, number: int, cohort: Sequence[Device]) -> float:
    """Seconds until a device's reply, or publication, has arrived."""
    cost = table.at(number)[device.tier]
    work = link.work_seconds(device, table.flops(device, number))
    if table.ready.federation.method.traits.peers:
        return work + link.up_seconds(device, (len(cohort) - 1) * cost.up_bytes)
    return link.down_seconds(device, cost.down_bytes) + work + link.up_seconds(device, cost.up_bytes)


def _received(table: CostTable, device: Device, number: int, posted: Sequence[Device]) -> int:
    costs = table.at(number)
    return sum(costs[other.tier].up_bytes for other in posted if other.id != device.id)


def _absorbed(table: CostTable, device: Device, number: int, posted: Sequence[Device], gathered_s: float) -> float:
    """Seconds until a peer has received what the others published."""
    work = link.work_seconds(device, table.at(number)[device.tier].absorb_flops)
    return gathered_s + link.down_seconds(device, _received(table, device, number, posted)) + work
