"""Codecs: lossy steps between a method's tree and its frame.

A codec replaces a float32 tensor ``w`` by a node ``{~NAME: ..., ...}``, for which no node of the method's can be taken;
integers, bools and float64 pass exactly. What a codec remembers (a residual) goes in and comes out as a tensor; none
hides in an object.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from potluck.core import tree as trees
from potluck.core.errors import WireError
from potluck.core.spec import Array, Exactly
from potluck.core.tree import Tree

MARK = "~"
"""What a method sends under codecs has no name that begins so."""


def marked(name: str) -> str:
    """The key that tells the node of the codec ``name`` from a node of the method's."""
    return MARK + name


class Codec(Protocol):
    """A lossy step on float32 tensors."""

    @property
    def name(self) -> str:
        """Its name in the experiment file and in frames."""

    def encode(self, value: Tensor, memory: Tensor | None, rng: torch.Generator) -> tuple[Tree | Tensor, Tensor | None]:
        """(what is sent, what is remembered until the next merged round)."""

    def decode(self, node: Mapping[str, Any]) -> Tensor:
        """The tensor that the receiver sees."""

    def respec(self, leaf: Array) -> Mapping[str, Array | Exactly]:
        """What a receiver may find instead of a float32 tensor: sub-path -> spec; "" is the tensor's own path."""


@dataclass(frozen=True, slots=True)
class Cast:
    """float16 or bfloat16: half the bytes. float16 overflows above 65,504, which is an error."""

    name: str
    dtype: torch.dtype

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
