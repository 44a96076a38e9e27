"""The weights of one round, cut to the rank of each device: one decomposition a layer serves all of them.

What was sent is computed once and kept for the round, so that merging can compare with it to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor

from potluck.lowrank.fuse import FUSIONS, Fused, Fusion
from potluck.lowrank.layers import ranks_by_factor
from potluck.lowrank.matrix import Flatten, from_matrix, to_matrix
from potluck.lowrank.svd import Svd, decompose

FLATTEN: Flatten = "ok_ik"
Cut = tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]


class Spectra:
    """Full weights, the shapes of the layers that may be cut, and the rank factors of the fleet."""

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        layers: Mapping[str, Sequence[int]],
        factors: Collection[float],
        generator: Callable[[str], torch.Generator],
    ) -> None:
        """``generator(layer)`` allows the randomised decomposition, and must be the same whenever it is asked."""
        self.weights = weights
        self.layers = layers
        self._generator = generator
        self._ranks = {factor: ranks_by_factor(layers, factor) for factor in factors}
        self._svds: dict[str, Svd] = {}
        self._cuts: dict[float, Cut] = {}

    def matrix(self, layer: str) -> Tensor:
        """M of a layer, (O·k, I·k)."""
        return to_matrix(self.weights[f"{layer}.weight"], FLATTEN)

    def fleet_ranks(self, layer: str) -> set[int]:
        """The ranks at which the fleet's devices hold the layer; dense ones not counted."""
        return {ranks[layer] for ranks in self._ranks.values() if layer in ranks}

    def svd(self, layer: str) -> Svd:
        """The leading part, up to the largest rank that anybody may be sent."""
        if layer not in self._svds:
            rank = max(self.fleet_ranks(layer))
            self._svds[layer] = decompose(self.matrix(layer), layer, rank=rank, generator=self._generator(layer))
        return self._svds[layer]

    def cut(self, factor: float) -> Cut:
        """(tensors that stay full, U by layer, V by layer) for a device of this rank factor."""
        if factor not in self._cuts:
            ranks = self._ranks[factor]
            pairs = {layer: self.svd(layer).factors(rank) for layer, rank in ranks.items()}
            full = {name: w for name, w in self.weights.items() if name.removesuffix(".weight") not in ranks}
            u, v = ({layer: pair[part] for layer, pair in pairs.items()} for part in (0, 1))
            self._cuts[factor] = full, u, v
        return self._cuts[factor]

    def truncated(self, factor: float) -> dict[str, Tensor]:
        """The weights, each layer at the rank that a device of this factor holds, and of the norm that it had.

        A random layer of rank r has but a part of its energy in r directions: as it is, a net without norms would fade.
        """
        full, u, v = self.cut(factor)
        made = dict(full)
        for layer in u:
            m_MN = u[layer] @ v[layer]
            scale = self.matrix(layer).norm() / m_MN.norm().clamp(min=1e-30)
            made[f"{layer}.weight"] = from_matrix(m_MN * scale, tuple(self.layers[layer]), FLATTEN)
        return made

    def fused(self, kind: str, rows: Sequence[str], retention: float) -> Fused:
        """What gathers the replies; ``kind`` names a fusion, ``rows`` the tensors that are averaged row by row."""

        def fusion(layer: str) -> Fusion:
            matrix_MN, ranks = self.matrix(layer), self.fleet_ranks(layer)
            return FUSIONS[kind](
                layer, matrix_MN, lambda rank: self.svd(layer).truncated(rank), ranks, retention=retention
            )

        return Fused(self.weights, {layer: fusion(layer) for layer in self.layers}, rows, FLATTEN)

    def unsent(self, factor: float) -> float:
        """The share of the layers' energy beyond the ranks of this factor, ‖M - T_r(M)‖² / ‖M‖²."""
        lost, total, ranks = 0.0, 0.0, self._ranks[factor]
        for layer in self.layers:
            energy = float(self.matrix(layer).double().square().sum())
            held = float(self.svd(layer).s[: ranks[layer]].double().square().sum()) if layer in ranks else energy
            lost, total = lost + max(0.0, energy - held), total + energy
        return lost / max(total, 1e-30)
