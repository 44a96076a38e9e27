"""``float16`` and ``bfloat16``: half the bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from potluck.core import tree as trees
from potluck.core.errors import WireError
from potluck.core.spec import Array
from potluck.core.tree import Tree
from potluck.wire.codec import marked


@dataclass(frozen=True, slots=True)
class Cast:
    """float16 or bfloat16: half the bytes. float16 overflows above 65,504, which is an error."""

    name: str
    dtype: torch.dtype
    sparse: ClassVar[bool] = False
    decay: ClassVar[float] = 1.0

    def encode(self, value: Tensor, memory: Tensor | None, rng: torch.Generator) -> tuple[Tree, None]:
        cast = value.to(self.dtype)
        if not trees.finite(cast):
            if not trees.finite(value):
                raise WireError(f"{self.name}: holds NaN or infinity")
            remedy = "use bfloat16" if self.dtype == torch.float16 else "send float32"
            raise WireError(f"{self.name}: a value beyond {torch.finfo(self.dtype).max:,.5g}; {remedy}")
        return {marked(self.name): cast}, None

    def decode(self, node: Mapping[str, Any]) -> Tensor:
        sent = node[marked(self.name)]
        if len(node) != 1 or not isinstance(sent, Tensor) or sent.dtype != self.dtype:
            raise WireError(f"{self.name}: expected one tensor of {self.dtype}")
        return sent.to(torch.float32)

    def respec(self, leaf: Array) -> Mapping[str, Array]:
        return {marked(self.name): replace(leaf, dtype=self.dtype)}


CODECS = {"float16": Cast("float16", torch.float16), "bfloat16": Cast("bfloat16", torch.bfloat16)}
