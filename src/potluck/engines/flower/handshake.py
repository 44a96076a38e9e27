"""What a device says when it joins, and whether that fits the fleet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from potluck.core.types import Device


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedFleet:
    """What every device must agree with, and how many are waited for. ``numbers``: device by node id, where known."""

    devices: Sequence[Device]
    digest: str
    version: str
    numbers: Mapping[int, int]
    deadline_s: float
    least: int
    join_timeout_s: float


def unfit(fleet: ExpectedFleet, nodes: Mapping[int, int], node: int, said: Mapping[str, Any]) -> str:
    """What is wrong with a node's hello; "" if nothing. ``nodes``: the node of each device that is here."""
    number = said.get("device")
    if type(number) is not int or not 0 <= number < len(fleet.devices):
        return f"it says it is device {number!r}, expected 0 to {len(fleet.devices) - 1}"
    tiers, expected = ", ".join(sorted({device.tier for device in fleet.devices})), fleet.devices[number].tier
    tier, version, digest = (str(said.get(name, "")) for name in ("tier", "version", "digest"))
    found = {
        f"its key is registered for device {fleet.numbers.get(node)}": fleet.numbers.get(node, number) == number,
        f"two nodes say they are device {number}, the other is {nodes.get(number)}": number not in nodes,
        f"tier {tier!r}, device {number} is a {expected!r} of {tiers}": tier in ("", expected),
        f"it runs potluck {version}, expected {fleet.version} as the server does": version == fleet.version,
        f"its experiment has the digest {digest[:12]}, the server's {fleet.digest[:12]}": digest == fleet.digest,
    }
    return next((reason for reason, sound in found.items() if not sound), "")
