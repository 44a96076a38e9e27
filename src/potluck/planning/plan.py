"""What each method would cost on each tier, before any training: bytes, memory, FLOPs, seconds, and whether it fits.

The figures are of dry rounds (dry_round.py) through the method's own functions and real frames. Bytes are exact but for
what follows from the data: ranks that adapt, zstd, and the figures that a reply's header holds as text, whose digits
make a few dozen bytes more or less.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from potluck.core.errors import PotluckError
from potluck.core.types import Device
from potluck.engines.local.inprocess import torch_threads
from potluck.engines.round import initial_checkpoint
from potluck.experiment.config import Experiment
from potluck.experiment.prepare import Prepared, prepare
from potluck.methods import METHODS
from potluck.methods.protocol import deployed
from potluck.nets.zoo import count_parameters
from potluck.planning.dry_round import Cost, DryRounds
from potluck.planning.totals import CostTable, Total, seconds_of, total_of
from potluck.wire.channel import codec_names

BEGINNING = 2
"""Rounds that are run dry from the start: in the second, what was kept from the first is there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TierPlan:
    """One tier under one method. Figures are of a settled round, and of the tier's device with the most samples."""

    tier: str
    devices: int
    samples: int
    parameters: int
    down_bytes: int
    up_bytes: int
    first_down_bytes: int
    """In round 1, in which some methods send less or more."""
    first_up_bytes: int
    least_up_bytes: int
    """Tensor bytes of a reply, by what the receiver accepts; equal to the most where sizes are fixed."""
    most_up_bytes: int
    memory_bytes: int
    flops: float
    work_seconds: float
    seconds: float
    """Of a round: message down, work, reply up; among peers until all have received."""
    fits_memory: bool
    fits_deadline: bool

    @property
    def fits(self) -> bool:
        """Whether the tier can take part."""
        return self.fits_memory and self.fits_deadline


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodPlan:
    """One method: its tiers and the whole run; or ``reason``, why it cannot run at all."""

    method: str
    model: str
    reason: str = ""
    notes: Sequence[str] = ()
    settled_round: int = 0
    tiers: Sequence[TierPlan] = ()
    total: Total | None = None

    @property
    def fits(self) -> bool:
        """Whether every tier can take part."""
        return bool(self.tiers) and all(tier.fits for tier in self.tiers)


def methods_of(experiment: Experiment, names: str) -> list[str]:
    """The methods named, joined by commas; ``all`` of them; or, of nothing, those of the experiment file."""
    if names.strip() == "all":
        return list(METHODS)
    own = dict.fromkeys([str(experiment.method.get("name", "")), *experiment.methods])
    return [part.strip() for part in names.split(",") if part.strip()] or [name for name in own if name]


def plan(
    variants: Sequence[tuple[Experiment, str]], begins: Callable[[str], None] = lambda name: None
) -> Iterator[MethodPlan]:
    """The plan of each variant (``compare.variants`` makes them). ``begins`` hears which one is under way."""
    for experiment, note in variants:
        name = str(experiment.method["name"])
        begins(name)
        try:
            yield plan_one(experiment, [note] if note else [])
        except PotluckError as error:
            yield MethodPlan(method=name, model=experiment.model.name, reason=str(error))


def plan_one(experiment: Experiment, notes: Sequence[str] = (), tiers: Sequence[str] | None = None) -> MethodPlan:
    """The plan of one experiment, of all its tiers or of these. Raises PotluckError for one that cannot run."""
    here = experiment.engine.model_copy(update={"device": "cpu", "kind": "inprocess"})
    with torch_threads(experiment.engine.threads), tempfile.TemporaryDirectory() as folder:
        ready = prepare(experiment.model_copy(update={"engine": here}))
        dry = DryRounds.of(ready, _standins(ready, tiers), initial_checkpoint(ready.federation).state, Path(folder))
        costs = {number: dry.run(number) for number in range(1, min(BEGINNING, experiment.rounds) + 1)}
        settled = _settled_round(dry, experiment.rounds)
        if settled not in costs:
            costs[settled] = dry.run(settled)
        table = CostTable(ready=ready, costs=costs, slopes=dry.slopes, standins=dry.standins)
        found = [_tier(dry, table, tier, settled) for tier in dry.standins]
        total = total_of(table) if tiers is None else None
    return MethodPlan(
        method=str(ready.experiment.method["name"]),
        model=ready.experiment.model.name,
        notes=[*notes, *ready.warnings, *_caveats(ready, found)],
        settled_round=settled,
        tiers=found,
        total=total,
    )


def _standins(ready: Prepared, tiers: Sequence[str] | None) -> Mapping[str, Device]:
    """Of each tier the device with the most samples: what it can do, the others can."""
    found: dict[str, Device] = {}
    for device in ready.federation.fleet.devices:
        held = found.get(device.tier)
        size = len(ready.shares.train[device.id])
        if (tiers is None or device.tier in tiers) and (held is None or size > len(ready.shares.train[held.id])):
            found[device.tier] = device
    return found


def _settled_round(dry: DryRounds, rounds: int) -> int:
    """The first round from which replies may be of the sizes that they have in the last one."""

    def sizes(number: int) -> list[tuple[int, int]]:
        return [dry.bounds(tier, number) for tier in dry.standins]

    low = min(BEGINNING, rounds)
    last = sizes(rounds)
    if sizes(low) == last:
        return low
    high = rounds
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if sizes(middle) == last else (middle, high)
    return high


def _tier(dry: DryRounds, table: CostTable, tier: str, settled: int) -> TierPlan:
    ready, device = dry.ready, dry.standins[tier]
    federation, section = ready.federation, next(found for found in ready.experiment.fleet.tier if found.name == tier)
    first, cost = table.costs[1][tier], table.costs[settled][tier]
    fewest, most = dry.bounds(tier, settled)
    net = deployed(federation.method, None if federation.method.traits.personal else dry.state, None, device)
    slowest = max(
        (found for found in federation.fleet.devices if found.tier == tier), key=lambda d: table.work(d, settled)
    )
    memory = max(costs[tier].memory_bytes for costs in table.costs.values())
    post_seconds, seconds = seconds_of(table, slowest, settled, table.devices)
    return TierPlan(
        tier=tier,
        devices=section.devices,
        samples=len(ready.shares.train[device.id]),
        parameters=count_parameters(net),
        **_bytes(table, first, cost),
        least_up_bytes=fewest,
        most_up_bytes=most,
        memory_bytes=memory,
        flops=cost.flops + cost.absorb_flops,
        work_seconds=table.work(slowest, settled),
        seconds=seconds,
        fits_memory=memory <= device.memory_bytes,
        fits_deadline=post_seconds <= federation.fleet.deadline_s,
    )


def _bytes(table: CostTable, first: Cost, cost: Cost) -> dict[str, int]:
    copies = len(table.ready.federation.fleet.devices) - 1 if table.ready.federation.method.traits.peers else 1
    return {
        "down_bytes": cost.down_bytes,
        "up_bytes": copies * cost.up_bytes,
        "first_down_bytes": first.down_bytes,
        "first_up_bytes": copies * first.up_bytes,
    }


def _caveats(ready: Prepared, tiers: Sequence[TierPlan]) -> list[str]:
    """Why bytes may differ from the plan's."""
    said = []
    if any(tier.least_up_bytes != tier.most_up_bytes for tier in tiers):
        ranges = ", ".join(f"{t.tier} {t.least_up_bytes:,} to {t.most_up_bytes:,}" for t in tiers)
        said.append(f"sizes follow from the data; shown: a hardly trained dry round; a reply may hold {ranges} bytes")
    wire = ready.experiment.wire
    packed = [name for name, chain in (("up", wire.up), ("down", wire.down)) if "zstd" in codec_names(chain)]
    if packed:
        said.append(f"zstd {' and '.join(packed)}: sizes follow from the data; shown is a dry round")
    fleet = ready.federation.fleet
    if fleet.participation < 1 or min(fleet.availability.values()) < 1:
        said.append("not every device takes part in every round: what one does in its first is planned for round 1")
    return said
