"""int4: two values a byte, and one scale per tensor.

    q = round(v / s) in -7 ... 7,    s = the share-quantile of |v|, divided by 7

``{ int4 = 0.99 }`` sets the share: values beyond it are clipped. The setting is both sides', so it need not travel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from potluck.core.errors import WireError
from potluck.core.spec import Array, Exactly
from potluck.core.tree import Tree
from potluck.wire.codec import marked

LEVELS = 7


@dataclass(frozen=True, slots=True)
class Int4:
    """Rounding to 15 levels; tensors of less than 16 values, or of no fixed shape, stay as they are."""

    share: float = 1.0
    name: ClassVar[str] = "int4"
    sparse: ClassVar[bool] = False
    decay: ClassVar[float] = 1.0

    def encode(self, value: Tensor, memory: Tensor | None, rng: torch.Generator) -> tuple[Tree | Tensor, None]:
        if value.numel() < 16:
            return value, None
        size = value.abs().reshape(-1).sort().values
        step = size[max(0, round(self.share * len(size)) - 1)] / LEVELS
        if not torch.isfinite(step):
            raise WireError("int4: NaN or infinity cannot be quantised")
        levels = (value.reshape(-1) / torch.where(step > 0, step, 1.0)).round().clamp(-LEVELS, LEVELS)
        halves = torch.zeros(-(-value.numel() // 2) * 2, dtype=torch.uint8)
        halves[: value.numel()] = (levels + LEVELS).to(torch.uint8)
        sent = {marked(self.name): halves[::2] * 16 + halves[1::2], "scale": step.reshape(1)}
        return {**sent, "shape": list(value.shape)}, None

    def decode(self, node: Mapping[str, Any]) -> Tensor:
        packed, shape = node[marked(self.name)], node.get("shape")
        if not isinstance(packed, Tensor) or packed.dtype != torch.uint8 or not isinstance(shape, list):
            raise WireError("int4: expected bytes, a scale and a shape")
        halves = torch.stack([packed // 16, packed % 16], dim=1).reshape(-1)
        count = torch.Size(shape).numel()
        if not count <= len(halves) <= count + 1:
            raise WireError(f"int4: {len(packed)} bytes for {count} values")
        return ((halves[:count].float() - LEVELS) * node["scale"]).reshape(shape)

    def respec(self, leaf: Array) -> Mapping[str, Array | Exactly]:
        values = leaf.most_values()
        if values < 16 or leaf.fewest_values() != values:
            return {"": leaf}
        return {
            marked(self.name): Array(dtype=torch.uint8, shape=(-(-values // 2),), optional=leaf.optional),
            "scale": Array(dtype=torch.float32, shape=(1,), optional=leaf.optional),
            "shape": Exactly(value=list(leaf.shape), optional=leaf.optional),
        }


def make_int4(settings: Mapping[str, float]) -> Int4:
    """The codec of ``"int4"`` or ``{ int4 = SHARE }``. Raises ValueError."""
    share = settings.get("int4", 1.0)
    if not 0 < share <= 1:
        raise ValueError(f"int4 = {share:g}: expected a share, 0 < int4 <= 1")
    return Int4(float(share))
