"""``int8``: one byte a value, unbiased.

After FedPAQ (Reisizadeh et al. 2020, arXiv 1909.13014) and QSGD (Alistarh et al. 2017), with one scale per tensor
by the largest value (ours): q = floor(v / s + u), u uniform in [0, 1), s = max|v| / 127. E[s q] = v, and |s q - v| < s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from potluck.core.errors import WireError
from potluck.core.spec import Array
from potluck.core.tree import Tree
from potluck.wire.codec import marked

FEWEST_VALUES = 64
"""Smaller tensors pass as they are: the scale and the names would eat the gain."""


@dataclass(frozen=True, slots=True)
class Int8:
    """Stochastic rounding to 255 levels; a tensor of fewer than 64 values stays float32."""

    name: ClassVar[str] = "int8"
    sparse: ClassVar[bool] = False
    decay: ClassVar[float] = 1.0

    def encode(self, value: Tensor, memory: Tensor | None, rng: torch.Generator) -> tuple[Tree | Tensor, None]:
        if value.numel() < FEWEST_VALUES:
            return value, None
        largest = value.abs().max()
        if not torch.isfinite(largest):
            raise WireError("int8: NaN or infinity cannot be quantised")
        step = largest / 127.0
        draw = torch.rand(value.shape, generator=rng)
        scaled = value / torch.where(step > 0, step, torch.ones_like(step))
        levels = torch.floor(scaled + draw).clamp_(-127, 127).to(torch.int8)
        return {marked(self.name): levels, "scale": step.reshape(1)}, None

    def decode(self, node: Mapping[str, Any]) -> Tensor:
        levels, step = node[marked(self.name)], node.get("scale")
        if not isinstance(levels, Tensor) or not isinstance(step, Tensor) or len(node) != 2:
            raise WireError("int8: expected levels and a scale")
        if (levels.dtype, step.dtype, step.shape) != (torch.int8, torch.float32, (1,)):
            raise WireError("int8: expected levels of int8 and one scale of float32")
        return levels.to(torch.float32) * step

    def respec(self, leaf: Array) -> Mapping[str, Array]:
        if leaf.most_values() < FEWEST_VALUES:
            return {"": leaf}
        either = leaf.optional or leaf.fewest_values() < FEWEST_VALUES
        sent = {
            marked(self.name): replace(leaf, dtype=torch.int8, optional=either),
            "scale": Array(dtype=torch.float32, shape=(1,), optional=either),
        }
        return {"": replace(leaf, optional=True), **sent} if leaf.fewest_values() < FEWEST_VALUES else sent


CODECS = {"int8": Int8()}
