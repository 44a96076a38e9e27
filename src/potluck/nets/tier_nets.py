"""The nets of the tiers: fresh ones with their initial weights, and one resident net per tier that is lent to train.

Building a net costs more than a local epoch of a small one, so a process keeps one a tier and loads weights into it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from potluck.core import seeds
from potluck.core.types import Inputs
from potluck.nets.weights import Weights, load

NOTHING = Inputs(())


class TierNets:
    """The net of each tier, from one maker a tier. The initial weights are drawn from the run's seed."""

    def __init__(
        self,
        makers: Mapping[str, Callable[[], nn.Module]],
        *,
        inputs: Inputs = NOTHING,
        outputs: int = 0,
        seed: int,
        device: str = "cpu",
        channels_last: bool = False,
        initial: Weights | None = None,
    ) -> None:
        self.inputs = inputs
        """What the nets are given."""
        self.outputs = outputs
        """How many numbers they say of a sample, or of a step of it."""
        self._makers = dict(makers)
        self._seed = seed
        self._device = device
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        self._initial = initial
        self._resident: dict[Any, nn.Module] = {}

    def __call__(self, tier: str, change: Callable[[nn.Module], None] | None = None) -> nn.Module:
        """A net of the tier with its initial weights; the caller's own. ``change`` is made before those are loaded."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeds.derived(self._seed, 0, seeds.SERVER, "initial weights"))
            net = self._makers[tier]()
            if change is not None:
                change(net)
        if self._initial is not None:
            load(net, self._initial)
        return self._placed(net)

    @property
    def fresh(self) -> bool:
        """Whether the initial weights are random, not from a file."""
        return self._initial is None

    def with_weights(self, tier: str, weights: Weights) -> nn.Module:
        """The resident net of the tier with these weights: lent until the next call for that tier."""
        return self.borrow(tier, weights, lambda: self(tier))

    def borrow(self, key: Any, weights: Weights, make: Callable[[], nn.Module]) -> nn.Module:
        """The resident net of ``key`` (made by ``make`` the first time) with these weights; likewise."""
        net = self._held(key, make)
        load(net, weights)
        return net

    def shapes(self, key: Any, make: Callable[[], nn.Module]) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor of the resident net of ``key`` (made by ``make`` the first time)."""
        return {name: tuple(value.shape) for name, value in self._held(key, make).state_dict().items()}

    def _held(self, key: Any, make: Callable[[], nn.Module]) -> nn.Module:
        if key not in self._resident:
            self._resident[key] = self._placed(make())
        return self._resident[key]

    def _placed(self, net: nn.Module) -> nn.Module:
        return net.to(device=self._device, memory_format=self._layout)  # type: ignore[call-overload, no-any-return]
