"""Who takes part in a round: derived from the seed and the round alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from potluck.core import seeds
from potluck.core.types import Device


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """All devices, the probability that a device of a tier is there in a round, and the share of them that is drawn."""

    devices: tuple[Device, ...]
    availability: Mapping[str, float]
    participation: float
    deadline_s: float
    seed: int

    def present(self, round: int) -> list[Device]:
        """The devices that are there in this round: one draw a device, whatever the others do."""
        rng = seeds.generator(self.seed, round, seeds.SERVER, "availability")
        draw = torch.rand(len(self.devices), generator=rng).tolist()
        return [device for device in self.devices if draw[device.id] < self.availability[device.tier]]

    def cohort(self, round: int) -> list[Device]:
        """The devices of this round by id: ``participation`` times all devices (at least one), of those present."""
        there = self.present(round)
        wanted = max(1, math.floor(self.participation * len(self.devices) + 0.5))
        if len(there) <= wanted:
            return there
        order = torch.randperm(len(there), generator=seeds.generator(self.seed, round, seeds.SERVER, "cohort"))
        return [there[i] for i in sorted(order[:wanted].tolist())]
