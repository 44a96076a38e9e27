"""How replies of different rank become one matrix again: three fusions of a layer, fed reply by reply.

    replace            M <- Σ_k w_k M_k                           what was not sent decays to the smallest rank
    delta              M <- M + Σ_k w_k (M_k - T_{r_k}(M) - (1 - ρ)(M - T_{r_k}(M)))     what was not sent survives
    rank_partitioned   each band of singular directions is averaged over the replies that reach it; above the largest
                       rank that came back stands M's own part

M_k = U_k V_k of rank r_k, or a full matrix; T_r(M) is what was sent at rank r; w_k are normalised. The retention ρ is
the share of what a device was not sent that its reply leaves in place: 1 leaves it untouched, 0 is "replace". The first
is FedHM's (arXiv 2111.14655), the last after raFLoRA (arXiv 2602.13486), of which we know the abstract.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from potluck.core.mean import CoordinateMean, WeightedMean
from potluck.lowrank.matrix import Flatten, from_matrix, to_matrix
from potluck.lowrank.svd import decompose, decompose_product

Piece = Tensor | tuple[Tensor, Tensor]
"""A full matrix (m, n), or the factors U (m, r) and V (r, n)."""


class Fusion(ABC):
    """The next matrix of one layer."""

    def __init__(
        self,
        name: str,
        matrix_MN: Tensor,
        sent: Callable[[int], Tensor],
        ranks: Iterable[int],
        retention: float = 1.0,
    ) -> None:
        """``sent(r)`` is T_r(M), to the bit what devices of rank r were sent; ``ranks`` are those of the fleet.

        ``retention`` is ρ, which only "delta" has.
        """
        self.name = name
        self.matrix_MN = matrix_MN
        self.sent = sent
        self.retention = retention
        side = min(matrix_MN.shape)
        self.edges = sorted({0, side, *(min(rank, side) for rank in ranks)})
        self.prepare()

    @abstractmethod
    def prepare(self) -> None:
        """Makes what the fusion gathers."""

    @abstractmethod
    def add(self, piece: Piece, weight: float) -> None:
        """Folds in one reply."""

    @abstractmethod
    def result(self) -> Tensor:
        """The next M, (m, n), after one reply at least."""


class Replace(Fusion):
    """The mean of the products."""

    def prepare(self) -> None:
        self.mean = WeightedMean()

    def add(self, piece: Piece, weight: float) -> None:
        self.mean.add({"m": product(piece)}, weight)

    def result(self) -> Tensor:
        found: Tensor = self.mean.result()["m"]
        return found


class Delta(Fusion):
    """M plus the mean of what changed."""

    def prepare(self) -> None:
        self.mean = WeightedMean()

    def add(self, piece: Piece, weight: float) -> None:
        before = self.matrix_MN if isinstance(piece, Tensor) else self.sent(piece[0].shape[1])
        change = product(piece) - before
        if self.retention < 1:
            change = change.sub_(self.matrix_MN - before, alpha=1 - self.retention)
        self.mean.add({"m": change}, weight)

    def result(self) -> Tensor:
        change: Tensor = self.mean.result()["m"]
        return self.matrix_MN + change


class RankPartitioned(Fusion):
    """A mean per band (r_i, r_{i+1}] of singular directions. It holds one matrix per band."""

    def prepare(self) -> None:
        bands = [*pairwise(self.edges)]
        self.sums = {band: torch.zeros_like(self.matrix_MN, dtype=torch.float64) for band in bands}
        self.weights = dict.fromkeys(bands, 0.0)

    def add(self, piece: Piece, weight: float) -> None:
        full = isinstance(piece, Tensor)
        rank = min(piece.shape) if isinstance(piece, Tensor) else piece[0].shape[1]
        found = decompose(piece, self.name) if isinstance(piece, Tensor) else decompose_product(*piece, self.name)
        assert full or rank in self.edges, f"{self.name}: a reply of rank {rank}, the fleet has {self.edges}"
        for low, high in self.sums:
            if high <= rank:
                part_MN = (found.p[:, low:high] * found.s[low:high]) @ found.q[:, low:high].T
                self.sums[low, high].add_(part_MN, alpha=weight)
                self.weights[low, high] += weight

    def result(self) -> Tensor:
        reached = [band for band, weight in self.weights.items() if weight > 0]
        largest = max(high for _, high in reached)
        total = sum((self.sums[band] / self.weights[band] for band in reached), torch.zeros(()))
        if largest < self.edges[-1]:
            total = total + (self.matrix_MN - self.sent(largest))
        return total.to(self.matrix_MN.dtype)


LEAST_WEIGHT = 1e-200
"""A weight never vanishes: a device that answers alone must count."""


def reply_weight(kind: str, samples: float, beyond: float, temperature: float) -> float:
    """w_k before it is normalised: 1, n_k, exp(-(f_k - f_min) / T) with ``beyond`` = f_k - f_min, or both."""
    size = max(math.exp(-beyond / temperature), LEAST_WEIGHT)
    return {"uniform": 1.0, "samples": samples, "size_softmax": size, "samples_size": samples * size}[kind]


FUSIONS: dict[str, type[Fusion]] = {"replace": Replace, "delta": Delta, "rank_partitioned": RankPartitioned}


def product(piece: Piece) -> Tensor:
    """The matrix of a piece: the one operation by which devices, server and tests multiply factors."""
    return piece if isinstance(piece, Tensor) else piece[0] @ piece[1]


class Fused:
    """The next weights of a net, from replies that hold some layers as factors and the rest in full.

    Of the tensors named in ``rows``, whose rows are classes, a reply counts with the rows of its ``labels`` only.
    """

    def __init__(
        self, weights: Mapping[str, Tensor], fusions: Mapping[str, Fusion], rows: Sequence[str], flatten: Flatten
    ) -> None:
        self._weights = weights
        self._fusions = fusions
        self._flatten = flatten
        self._mean = WeightedMean()
        self._everything = dict.fromkeys(rows, (slice(None),))
        self._rows = CoordinateMean({name: weights[name] for name in rows})

    def add(
        self,
        full: Mapping[str, Tensor],
        u: Mapping[str, Tensor],
        v: Mapping[str, Tensor],
        weight: float,
        labels: Sequence[int] | None = None,
    ) -> None:
        """Folds in one reply; without ``labels`` with all its rows."""
        apart = {f"{layer}.weight" for layer in self._fusions} | self._everything.keys()
        self._mean.add({name: value for name, value in full.items() if name not in apart}, weight)
        chosen = None if labels is None else dict.fromkeys(self._everything, torch.tensor(labels, dtype=torch.int64))
        self._rows.add({name: full[name] for name in self._everything}, weight, self._everything, chosen)
        for layer, fusion in self._fusions.items():
            whole = layer not in u
            fusion.add(to_matrix(full[f"{layer}.weight"], self._flatten) if whole else (u[layer], v[layer]), weight)

    def result(self, *, renormalise: bool) -> dict[str, Tensor]:
        """The next weights. Without ``renormalise`` rows that few brought shrink by the weight of the others."""
        made: dict[str, Tensor] = {**self._mean.result(), **self._rows.result(renormalise=renormalise)}
        for layer, fusion in self._fusions.items():
            name = f"{layer}.weight"
            made[name] = from_matrix(fusion.result(), tuple(self._weights[name].shape), self._flatten)
        return made
