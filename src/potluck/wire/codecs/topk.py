"""``topk``: the largest entries of an update, and a memory of what was not sent.

Stich, Cordonnier, Jaggi, *Sparsified SGD with Memory*, 2018, arXiv 1809.07599; Karimireddy, Rebjock, Stich, Jaggi,
*Error Feedback Fixes SignSGD and other Gradient Compression Schemes*, 2019, arXiv 1901.09847.

    p_t = Δ_t + e_t        sent c_t = top_k(p_t)        e_{t+1} = p_t - c_t        k = ⌈fraction · d⌉ of d entries

Each tensor by itself (a scope of the whole tree is not offered). Of equal magnitudes the lower index wins. Beside the k
values travel k indices of 4 bytes, or a bitmap of d/8 bytes where that is smaller, as it is for k > d/32; both sides
know which from k and d alone. Where neither is smaller than the tensor itself, it is sent whole, and e = 0.

The memory is counted by the channel, since a later codec of the chain (a quantiser of the values) loses something too.
A device that was away for n rounds finds its memory multiplied by ``decay``ⁿ.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from potluck.core import tree as trees
from potluck.core.errors import WireError
from potluck.core.spec import Array, Exactly
from potluck.core.tree import Tree
from potluck.wire.codec import marked

FRACTION = 0.01
INDEX_BYTES = VALUE_BYTES = 4


@dataclass(frozen=True, slots=True)
class TopK:
    """The k = ⌈fraction · d⌉ entries of largest magnitude of each tensor."""

    fraction: float = FRACTION
    decay: float = 1.0
    name: ClassVar[str] = "topk"
    sparse: ClassVar[bool] = True

    def form(self, values: int) -> tuple[int, str]:
        """(k, where the places stand) of a tensor of so many values: "index", "bitmap", or "" where all is sent."""
        k = max(1, math.ceil(self.fraction * values - 1e-9))  # 0.07 * 100 is a little more than 7
        bitmap, index = -(-values // 8), INDEX_BYTES * k
        if values == 0 or VALUE_BYTES * k + min(bitmap, index) >= VALUE_BYTES * values:
            return values, ""
        return k, "bitmap" if bitmap < index else "index"

    def encode(self, value: Tensor, memory: Tensor | None, rng: torch.Generator) -> tuple[Tree | Tensor, Tensor | None]:
        if not trees.finite(value):
            raise WireError("topk: holds NaN or infinity")
        if memory is not None and memory.shape != value.shape:
            raise WireError(f"topk: of shape {tuple(value.shape)}, what it remembers is of {tuple(memory.shape)}")
        wanted = value if memory is None else value + memory
        k, places = self.form(wanted.numel())
        if not places:
            return wanted, None
        flat = wanted.reshape(-1)
        index = largest(flat, k)
        left = wanted.clone(memory_format=torch.contiguous_format)
        left.view(-1)[index] = 0.0
        where = index.to(torch.int32) if places == "index" else _bitmap(index, flat.numel())
        return {marked(self.name): flat[index].clone(), places: where, "shape": list(value.shape)}, left

    def decode(self, node: Mapping[str, Any]) -> Tensor:
        sent, shape = node[marked(self.name)], node.get("shape")
        if not isinstance(sent, Tensor) or not isinstance(shape, Sequence) or len(node) != 3:
            raise WireError("topk: expected values, their places and a shape")
        if not all(type(size) is int and size >= 0 for size in shape):
            raise WireError("topk: expected a shape of whole numbers")
        full = torch.zeros(tuple(shape), dtype=torch.float32)
        index = _places(node, full.numel())
        if sent.dim() != 1 or index.numel() != sent.numel():
            raise WireError(f"topk: {sent.numel()} values for {index.numel()} places")
        full.view(-1)[index] = sent.to(torch.float32)
        return full

    def respec(self, leaf: Array) -> Mapping[str, Array | Exactly]:
        values = leaf.most_values()
        k, places = self.form(values)
        if not places or leaf.fewest_values() != values:  # a tensor of no fixed shape has no lasting places
            return {"": leaf}
        size = (k,) if places == "index" else (-(-values // 8),)
        dtype = torch.int32 if places == "index" else torch.uint8
        return {
            marked(self.name): replace(leaf, shape=(k,)),
            places: Array(dtype=dtype, shape=size, optional=leaf.optional),
            "shape": Exactly(value=list(leaf.shape), optional=leaf.optional),
        }


def largest(flat_D: Tensor, k: int) -> Tensor:
    """The places of the k entries of largest magnitude, ascending, int64; of equal ones the first."""
    size_D = flat_D.abs()
    least = size_D.topk(k, sorted=False).values.min()
    chosen_D = size_D > least
    equal = (size_D == least).nonzero().reshape(-1)
    chosen_D[equal[: k - int(chosen_D.sum())]] = True
    return chosen_D.nonzero().reshape(-1)


def _bitmap(index: Tensor, values: int) -> Tensor:
    bits = np.zeros(values, dtype=np.uint8)
    bits[index.numpy()] = 1
    return torch.from_numpy(np.packbits(bits, bitorder="little"))


def _places(node: Mapping[str, Any], values: int) -> Tensor:
    """The places as int64, ascending. WireError if there are none, or they do not fit."""
    index, bitmap = node.get("index"), node.get("bitmap")
    if isinstance(index, Tensor) and index.dtype == torch.int32 and index.dim() == 1:
        found = index.to(torch.int64)
        if found.numel() and (int(found[0]) < 0 or int(found[-1]) >= values or bool((found.diff() <= 0).any())):
            raise WireError(f"topk: indices are not ascending within 0..{values - 1}")
        return found
    if isinstance(bitmap, Tensor) and bitmap.dtype == torch.uint8 and bitmap.shape == (-(-values // 8),):
        bits = np.unpackbits(bitmap.numpy(), bitorder="little")
        if bits[values:].any():
            raise WireError(f"topk: the bitmap marks places beyond {values - 1}")
        return torch.from_numpy(bits[:values].nonzero()[0].astype(np.int64))
    raise WireError("topk: expected indices of int32, or a bitmap of the tensor's size")


def make_topk(settings: Mapping[str, float]) -> TopK:
    """The codec of ``{ topk = FRACTION, decay = FACTOR }``. Raises ValueError naming the value."""
    odd = sorted(settings.keys() - {"topk", "decay"})
    if odd:
        raise ValueError(f"{', '.join(odd)} unknown, expected {{ topk = 0.01 }}, and decay beside it or nothing")
    fraction, decay = settings.get("topk", FRACTION), settings.get("decay", 1.0)
    if not 0 < fraction <= 1:
        raise ValueError(f"topk = {fraction:g}: expected a share of the entries, 0 < topk <= 1")
    if not 0 <= decay <= 1:
        raise ValueError(f"decay = {decay:g}: expected 0 (forget) to 1 (keep)")
    return TopK(float(fraction), float(decay))


CODECS = {"topk": make_topk}
