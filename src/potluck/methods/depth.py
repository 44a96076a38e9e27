"""What methods share whose devices bring their own depth: step counts, and what is refused or doubtful about them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from potluck.core.types import Setup
from potluck.methods.protocol import IfServerData
from potluck.methods.refuse import demand_no_topk
from potluck.models.fit import Objective

Steps = int | list[int]
"""A number of steps, or one for each stage of a net."""
MOST_SAMPLES = 2**40
SHORTENED = 0.5
"""With ``random_steps``, the share of batches that train at a depth drawn from 1 to the device's own."""


def key_of(steps: Steps) -> str:
    """The name of a step count in a tree: ``4``, also for a list of nothing but 4, or ``2-4-8``."""
    counts = [steps] if isinstance(steps, int) else steps
    return "-".join(map(str, counts[:1] if len(set(counts)) == 1 else counts))


def nearest(key: str, known: Sequence[str]) -> str:
    """The key whose counts are nearest to those of ``key``, in ratio; of equally near ones the smallest."""
    counts = {one: [int(part) for part in one.split("-")] for one in [key, *known]}
    size = max(map(len, counts.values()))
    logs = {one: [math.log(count) for count in found * (size // len(found))] for one, found in counts.items()}

    def distance(one: str) -> float:  # rounded, or else log 2 and log 4 - log 2 might differ
        return round(sum(abs(a - b) for a, b in zip(logs[one], logs[key], strict=True)), 9)

    return min(known, key=lambda one: (distance(one), logs[one]))


def at_depths(
    objective: Objective,
    set_depth: Callable[[nn.Module, Any], None],
    steps: Steps,
    rng: torch.Generator | None,
) -> Objective:
    """The objective, in half of the batches at a depth drawn from 1 to ``steps``; the same where ``rng`` is None.

    The first batch is at full depth, so that a device of one batch says how it fares there.
    """
    if rng is None:
        return objective
    first = iter([True])

    def varied(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        if next(first, False) or float(torch.rand((), generator=rng)) >= SHORTENED:
            return objective(net, x, y)
        set_depth(net, _drawn(steps, rng))
        try:
            return objective(net, x, y)
        finally:  # the net stays in this process, and its FLOPs are counted at its own depth
            set_depth(net, steps)

    return varied


def _drawn(steps: Steps, rng: torch.Generator) -> Steps:
    if isinstance(steps, int):
        return int(torch.randint(1, steps + 1, (), generator=rng))
    return [int(torch.randint(1, most + 1, (), generator=rng)) for most in steps]


def whole_weights(setup: Setup, method: str) -> list[str]:
    """A warning for lossy codecs. Raises ConfigError for ``topk``, which is for updates."""
    demand_no_topk(setup, method, "it sends whole weights, not updates")
    lossy = [name for name in setup.up_codecs if name != "zstd"]
    return [f"wire.up = {lossy} loses a part of the weights themselves."] if lossy else []


def overrides(setup: Setup, name: str, profile: Mapping[str, Any]) -> list[str]:
    """A line for each option that is set otherwise than in its named profile; none for the recommended one."""
    if name == "recommended":
        return []
    odd = {key: value for key, value in setup.given.items() if key in profile and not _as_in(profile[key], value)}
    return [f'profile = "{name}" is overridden: method.{key} = {value}.' for key, value in odd.items()]


def _as_in(usual: object, value: object) -> bool:
    return value in (usual.yes, usual.no) if isinstance(usual, IfServerData) else value == usual
