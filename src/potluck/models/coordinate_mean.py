"""A streaming mean entry by entry, over those replies that hold the entry."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from potluck.models.slim import IndexMap


class CoordinateMean:
    """W[i] = Σ_{k: i held} v_k W_k[i] / Σ_{k: i held} v_k; entries that nobody held keep their former value.

    Float64 inside, cast back once. Integer tensors keep the largest. Where everybody holds everything it is bitwise
    ``tree.WeightedMean``.
    """

    def __init__(self, former: Mapping[str, Tensor]) -> None:
        self._former = former
        # Starting from -0.0, the one number whose sum with any other is the other.
        self._sums = {
            name: torch.full_like(value, -0.0, dtype=torch.float64) if value.is_floating_point() else value.clone()
            for name, value in former.items()
        }
        self._weights = {name: torch.zeros(value.shape, dtype=torch.float64) for name, value in former.items()}
        self._total = 0.0

    def add(
        self, part: Mapping[str, Tensor], weight: float, index: IndexMap, rows: Mapping[str, Tensor] | None = None
    ) -> None:
        """Folds in ``part``, which stands at ``index`` of the full tensors; of tensors in ``rows`` only those rows."""
        self._total += weight
        for name, value in part.items():
            held, seen = self._sums[name][index[name]], self._weights[name][index[name]]
            if not held.is_floating_point():
                torch.maximum(held, value, out=held)
            elif rows is None or name not in rows:
                held.add_(value, alpha=weight)
                seen.add_(weight)
            else:
                chosen = rows[name]
                held[chosen] = held[chosen].add(value[chosen], alpha=weight)
                seen[chosen] += weight

    def result(self, *, renormalise: bool = True) -> dict[str, Tensor]:
        """The next tensors. Without ``renormalise`` every sum is divided by the weight of *all* replies: it shrinks."""
        made = {}
        for name, value in self._former.items():
            held, seen = self._sums[name], self._weights[name]
            if not held.is_floating_point():
                made[name] = held
            elif renormalise:
                made[name] = torch.where(seen > 0, held / torch.where(seen > 0, seen, 1.0), value).to(value.dtype)
            else:
                made[name] = (held / self._total).to(value.dtype)
        return made
