"""Codecs: lossy steps between a method's tree and its frame.

A codec replaces a float32 tensor ``w`` by a node ``{~NAME: ..., ...}``, for which no node of the method's can be taken;
integers, bools and float64 pass exactly. What a codec remembers (a residual) goes in and comes out as a tensor; none
hides in an object.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

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

    @property
    def sparse(self) -> bool:
        """Whether it drops most entries: such a codec comes first, on the up-link only, and suits updates alone."""

    @property
    def decay(self) -> float:
        """By what it multiplies its memory for each round that a device has missed; 1 where it remembers nothing."""

    def encode(self, value: Tensor, memory: Tensor | None, rng: torch.Generator) -> tuple[Tree | Tensor, Tensor | None]:
        """(what is sent, what is remembered until the next aggregated round)."""

    def decode(self, node: Mapping[str, Any]) -> Tensor:
        """The tensor that the receiver sees."""

    def respec(self, leaf: Array) -> Mapping[str, Array | Exactly]:
        """What a receiver may find instead of a float32 tensor: sub-path -> spec; "" is the tensor's own path."""
