"""Tiers to devices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from potluck.core.types import Device

BITS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """A kind of device, in the units of the experiment file."""

    name: str
    devices: int
    uplink_mbps: float
    downlink_mbps: float
    gflops: float
    memory_mb: float
    latency_ms: float
    availability: float


def make_devices(tiers: Sequence[Tier]) -> tuple[Device, ...]:
    """The devices of all tiers, numbered from 0 in the order of the tiers."""
    from potluck.core.types import Device  # noqa: PLC0415 - a wrong file is told before torch is loaded

    made: list[Device] = []
    for tier in tiers:
        for _ in range(tier.devices):
            made.append(
                Device(
                    id=len(made),
                    tier=tier.name,
                    memory_bytes=int(tier.memory_mb * 1e6),
                    flops_per_s=tier.gflops * 1e9,
                    uplink_bytes_per_s=tier.uplink_mbps * 1e6 / BITS,
                    downlink_bytes_per_s=tier.downlink_mbps * 1e6 / BITS,
                    latency_s=tier.latency_ms / 1e3,
                )
            )
    return tuple(made)


def by_strength(tiers: Sequence[Tier]) -> list[str]:
    """The tiers' names from the weakest to the strongest by gflops; ties keep the file's order."""
    return [tier.name for tier in sorted(tiers, key=lambda tier: tier.gflops)]
