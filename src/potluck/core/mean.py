"""Streaming weighted means of trees: of whole ones, and entry by entry of parts of them. O(one tree) memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from potluck.core.tree import Path, Tree, assemble, tensors

PIECE = 2**16
"""Entries that are converted at a time: the copy stays in the processor's cache."""
IndexMap = Mapping[str, tuple[slice, ...]]
"""Name of a tensor -> the slice of the full tensor that is held, axis by axis."""


class WeightedMean:
    """A streaming weighted mean of trees: O(one tree) memory, float64 inside, cast back once.

    Integer and bool tensors are not averaged: the largest wins, dtype unchanged (a counter such as
    ``num_batches_tracked`` stays an integer). Scalars are dropped.
    """

    def __init__(self) -> None:
        self._total = 0.0
        self._flat = torch.empty(0, dtype=torch.float64)
        """The sums of all floating tensors, one after the other."""
        self._sums: dict[Path, Tensor] = {}
        self._largest: dict[Path, Tensor] = {}
        self._kinds: dict[Path, tuple[torch.Size, torch.dtype]] = {}
        self._converted = torch.empty(PIECE, dtype=torch.float64)

    def add(self, tree: Tree, weight: float) -> None:
        """Folds one tree in. ``weight`` must be positive and finite; names, shapes, dtypes those of the first tree."""
        if not (weight > 0 and math.isfinite(weight)):
            raise ValueError(f"weight {weight}: expected a positive, finite number")
        found = tensors(tree)
        if self:
            self._fold(found, weight)
        else:
            self._begin(found, weight)
        self._total += weight

    def _begin(self, found: Mapping[Path, Tensor], weight: float) -> None:
        self._kinds = {path: (value.shape, value.dtype) for path, value in found.items()}
        floats = {path: value.reshape(-1) for path, value in found.items() if value.is_floating_point()}
        sizes = [value.numel() for value in floats.values()]
        self._flat = torch.empty(sum(sizes), dtype=torch.float64)
        self._sums = dict(zip(floats, torch.split(self._flat, sizes), strict=True))
        self._largest = {path: value.clone() for path, value in found.items() if path not in floats}
        for path, value in floats.items():
            self._sums[path].copy_(value).mul_(weight)

    def _fold(self, found: Mapping[Path, Tensor], weight: float) -> None:
        self._require_kinds(found)
        floats = [found[path].reshape(-1) for path in self._sums]
        if floats and self._flat.numel() <= PIECE:
            self._accumulate(self._flat, torch.cat(floats), weight)
        else:
            for held, value in zip(self._sums.values(), floats, strict=True):
                self._accumulate(held, value, weight)
        for path, largest in self._largest.items():
            torch.maximum(largest, found[path], out=largest)

    def _require_kinds(self, found: Mapping[Path, Tensor]) -> None:
        if found.keys() != self._kinds.keys():
            odd = sorted(found.keys() ^ self._kinds.keys())
            raise ValueError(f"trees differ in their names: {', '.join(odd[:4])}")
        for path, value in found.items():
            shape, dtype = self._kinds[path]
            if shape != value.shape:
                raise ValueError(f"{path}: shapes {tuple(shape)} and {tuple(value.shape)} differ")
            if dtype != value.dtype:
                raise ValueError(f"{path}: {dtype} and {value.dtype} differ")

    def _accumulate(self, sums: Tensor, value: Tensor, weight: float) -> None:
        """``sums += weight * value``, piece by piece: a sum of two dtypes at once takes three times as long."""
        for held, part in zip(torch.split(sums, PIECE), torch.split(value, PIECE), strict=True):
            held.add_(self._converted[: len(part)].copy_(part), alpha=weight)

    def __bool__(self) -> bool:
        return self._total > 0

    def result(self) -> dict[str, Any]:
        """The mean, in the dtypes of the first tree. Raises ValueError if nothing was added."""
        if not self:
            raise ValueError("the mean of nothing: add a tree first")
        made = dict(self._largest)
        for path, held in self._sums.items():
            shape, dtype = self._kinds[path]
            made[path] = (held / self._total).to(dtype).view(shape)
        return assemble({path: made[path] for path in self._kinds})


class CoordinateMean:
    """W[i] = Σ_{k: i held} v_k W_k[i] / Σ_{k: i held} v_k; entries that nobody held keep their former value.

    Float64 inside, cast back once. Integer tensors keep the largest. Where everybody holds everything it is bitwise
    ``WeightedMean``.
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
