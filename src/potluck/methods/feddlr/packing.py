"""Weights as they travel: each matrix as two factors whose rank holds a share of its energy, or dense.

    W ≈ A B,   A = P_r √S_r (m, r),   B = √S_r Q_rᵀ (r, n),   r = min { r : Σ_{i<=r} σ_i² >= share · Σ_i σ_i² }

Factors are chosen only where they are smaller, r·(m + n) < m·n. Qiao et al., arXiv 2104.12416; see ``svd.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from potluck.core.mean import WeightedMean
from potluck.core.spec import Array, Free, OneOf
from potluck.lowrank.factorise import low_rank, with_factors
from potluck.lowrank.layers import candidates
from potluck.lowrank.matrix import Flatten, break_even, from_matrix, matrix_shape, to_matrix
from potluck.lowrank.svd import Energy, Svd, decompose, decompose_product
from potluck.nets.weights import load

Packed = dict[str, dict[str, Tensor]]
"""name -> {"a": (m, r), "b": (r, n)} or {"dense": the tensor itself}."""
Shapes = Mapping[str, tuple[int, ...]]


def largest_rank(shape: tuple[int, ...], flatten: Flatten) -> int:
    """The largest rank at which factors are smaller than a tensor of this shape; 0 if it is no matrix."""
    return break_even(*matrix_shape(shape, flatten)) if len(shape) > 1 and 0 not in shape else 0


def pack(weights: Mapping[str, Tensor], share: float, energy: Energy, flatten: Flatten) -> Packed:
    """The weights at a share of their energy; a share of 1 is dense. TrainingError names a tensor not finite."""
    made: Packed = {}
    for name, value in weights.items():
        bound = largest_rank(tuple(value.shape), flatten)
        if share < 1 and bound and value.is_floating_point():
            made[name] = cut(decompose(to_matrix(value, flatten), name), value, share, energy, flatten)
        else:
            made[name] = {"dense": value}
    return made


def cut(found: Svd, dense: Tensor, share: float, energy: Energy, flatten: Flatten) -> dict[str, Tensor]:
    """One tensor from its decomposition: factors where they are smaller, else ``dense``."""
    rank = found.rank(share, energy)
    if rank > largest_rank(tuple(dense.shape), flatten):
        return {"dense": dense}
    a_MR, b_RN = found.factors(rank)
    return {"a": a_MR, "b": b_RN}


def unpack_one(node: Mapping[str, Tensor], shape: tuple[int, ...], flatten: Flatten) -> Tensor:
    """The tensor of this shape."""
    return node["dense"] if "dense" in node else from_matrix(node["a"] @ node["b"], shape, flatten)


def unpack(packed: Mapping[str, Mapping[str, Tensor]], shapes: Shapes, flatten: Flatten) -> dict[str, Tensor]:
    """All tensors, multiplied out: the one way in which devices and server do so."""
    return {name: unpack_one(node, shapes[name], flatten) for name, node in packed.items()}


def left_out(weights: Mapping[str, Tensor], packed: Packed, flatten: Flatten) -> dict[str, Tensor]:
    """``weights`` minus what their packed form holds, of the tensors that travel as factors: nothing else loses any."""
    factored = {name: node for name, node in packed.items() if "a" in node}
    sent = unpack(factored, {name: tuple(weights[name].shape) for name in factored}, flatten)
    return {name: weights[name] - value for name, value in sent.items()}


def packed_spec(weights: Mapping[str, Tensor], flatten: Flatten, *, dense: bool) -> dict[str, Any]:
    """What a packed form of these weights may look like; only the dense one where ``dense``."""
    made: dict[str, Any] = {}
    for name, value in weights.items():
        shape = tuple(value.shape)
        whole = {"dense": Array(dtype=value.dtype, shape=shape)}
        bound = largest_rank(shape, flatten) if value.is_floating_point() else 0
        if dense or not bound:
            made[name] = whole
            continue
        rank, (rows, columns) = Free(f"rank of {name}", 1, bound), matrix_shape(shape, flatten)
        pair = {
            "a": Array(dtype=value.dtype, shape=(rows, rank)),
            "b": Array(dtype=value.dtype, shape=(rank, columns)),
        }
        made[name] = OneOf((pair, whole))
    return made


class PackedMean:
    """A weighted mean of packed weights, of products and never of factors.

    A tensor's factors are kept side by side while their ranks together stay below its smaller side, because the SVD of
    such a sum is cheap; beyond that, and for dense replies, it is folded into one dense mean.
    """

    def __init__(self, shapes: Shapes, flatten: Flatten) -> None:
        self._shapes = shapes
        self._flatten = flatten
        self._pairs: dict[str, list[tuple[Mapping[str, Tensor], float]]] = {name: [] for name in shapes}
        self._means = {name: WeightedMean() for name in shapes}

    def add(self, packed: Mapping[str, Mapping[str, Tensor]], weight: float) -> None:
        """Folds one reply in."""
        for name, node in packed.items():
            held = self._pairs[name]
            if "a" in node and not self._means[name] and self._rank(name) + node["a"].shape[1] < self._side(name):
                held.append((node, weight))
                continue
            for other, other_weight in held:
                self._fold(name, other, other_weight)
            held.clear()
            self._fold(name, node, weight)

    def _rank(self, name: str) -> int:
        return sum(node["a"].shape[1] for node, _ in self._pairs[name])

    def _side(self, name: str) -> int:
        return min(matrix_shape(self._shapes[name], self._flatten))

    def _fold(self, name: str, node: Mapping[str, Tensor], weight: float) -> None:
        self._means[name].add({"mean": unpack_one(node, self._shapes[name], self._flatten)}, weight)

    def __bool__(self) -> bool:
        return any(self._pairs.values()) or any(self._means.values())

    def result(self, share: float, energy: Energy) -> Packed:
        """The mean, packed again at a share of its energy (1: dense)."""
        made: Packed = {}
        for name, shape in self._shapes.items():
            if not self._pairs[name]:
                made |= pack({name: self._means[name].result()["mean"]}, share, energy, self._flatten)
                continue
            found = self._sum(name)
            dense = from_matrix(found.truncated(found.s.numel()), shape, self._flatten)
            made[name] = cut(found, dense, share, energy, self._flatten) if share < 1 else {"dense": dense}
        return made

    def _sum(self, name: str) -> Svd:
        pairs = self._pairs[name]
        total = sum(weight for _, weight in pairs)
        a_MR = torch.cat([node["a"].double() * (weight / total) for node, weight in pairs], dim=1)
        found = decompose_product(a_MR, torch.cat([node["b"].double() for node, _ in pairs]), name)
        kind = pairs[0][0]["a"].dtype
        return Svd(p=found.p.to(kind), s=found.s.to(kind), q=found.q.to(kind), total=found.total, complete=True)


def from_packed(net: nn.Module, packed: Packed, flatten: Flatten, *, small: bool) -> nn.Module:
    """``net`` with packed weights, multiplied out; with ``small``, a copy whose factored layers are low-rank."""
    pairs = {layer: packed[f"{layer}.weight"] for layer in candidates(net)} if small else {}
    pairs = {layer: node for layer, node in pairs.items() if "a" in node}
    made = low_rank(net, {layer: node["a"].shape[1] for layer, node in pairs.items()}, flatten)
    whole = {name: node for name, node in packed.items() if name.removesuffix(".weight") not in pairs}
    shapes = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    u, v = ({layer: node[part] for layer, node in pairs.items()} for part in ("a", "b"))
    load(made, with_factors(unpack(whole, shapes, flatten), u, v))
    return made
