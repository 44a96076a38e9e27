"""What a receiver expects of a tree: names, dtypes, shapes, ranges. It is checked before a tensor is made.

A spec is a tree whose leaves say what a leaf must be. A dimension may be ``Free``: of unknown size within bounds, and
equal wherever the same name stands (the rank of a factor pair, for instance).
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from potluck.core import tree as trees
from potluck.core.tree import Tree


@dataclass(frozen=True, slots=True)
class Free:
    """A dimension of any size in [low, high]; the same ``name`` means the same size within one message."""

    name: str
    low: int
    high: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Array:
    """A tensor: dtype, shape (numbers or Free), finite unless said otherwise.

    Entries lie in [low, high], and the sums over the last dimension in ``row_sums`` where that is given.
    """

    dtype: torch.dtype
    shape: tuple[int | Free, ...]
    optional: bool = False
    finite: bool = True
    low: float = -math.inf
    high: float = math.inf
    row_sums: tuple[float, float] | None = None

    def most_values(self) -> int:
        """The largest number of entries that fits the spec."""
        return math.prod(size.high if isinstance(size, Free) else size for size in self.shape)

    def fewest_values(self) -> int:
        """The smallest number of entries that fits the spec."""
        return math.prod(size.low if isinstance(size, Free) else size for size in self.shape)

    def most_bytes(self) -> int:
        """The largest size that fits the spec."""
        return self.most_values() * self.dtype.itemsize


@dataclass(frozen=True, slots=True, kw_only=True)
class Number:
    """A scalar of type ``kind`` (bool, int or float) in [low, high]."""

    kind: type
    low: float = -math.inf
    high: float = math.inf
    optional: bool = False


MOST_SAMPLES = 2**40
SAMPLES = Number(kind=int, low=1, high=MOST_SAMPLES)
"""The samples that a device says it has trained on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exactly:
    """A scalar, or list of scalars, that must equal ``value``."""

    value: Any
    optional: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Integers:
    """A list of at most ``most`` integers in [low, high]."""

    low: int
    high: int
    most: int
    optional: bool = False


@dataclass(frozen=True, slots=True)
class OneOf:
    """A node in one of several forms, a leaf by path each: a pair of factors, or a dense tensor."""

    choices: tuple[Mapping[str, Leaf], ...]
    optional: bool = False


Leaf = Array | Number | Exactly | Integers
Spec = Mapping[str, Any]


def spec_of(tree: Tree) -> dict[str, Any]:
    """The spec that a tree of exactly these names, dtypes and shapes meets; scalars must be equal."""
    return {
        key: spec_of(value)
        if trees.is_tree(value)
        else Array(dtype=value.dtype, shape=tuple(value.shape))
        if isinstance(value, Tensor)
        else Exactly(value=value)
        for key, value in tree.items()
    }


def extent(leaves: Mapping[str, Any], *, whole: bool = False) -> tuple[int, int]:
    """The fewest and the most bytes of tensors that these leaves of a spec, by path, allow.

    ``whole``: with everything that is optional, and of several forms none that is empty.
    """
    fewest = most = 0
    for leaf in leaves.values():
        if isinstance(leaf, OneOf):
            sizes = [extent(choice, whole=whole) for choice in leaf.choices if choice or not whole]
            fewest, most = fewest + min(low for low, _ in sizes), most + max(high for _, high in sizes)
        elif isinstance(leaf, Array):
            fewest += 0 if leaf.optional and not whole else leaf.fewest_values() * leaf.dtype.itemsize
            most += leaf.most_bytes()
    return fewest, most


def optional(spec: Spec) -> dict[str, Any]:
    """The same spec with every leaf optional."""
    return {
        key: optional(value) if isinstance(value, Mapping) else replace(value, optional=True)
        for key, value in spec.items()
    }


def scalar_fault(leaf: Leaf, value: Any) -> str | None:
    """What is wrong with a scalar, in words, or None."""
    if isinstance(leaf, Exactly):
        return None if trees.same(value, leaf.value) else f"got {reprlib.repr(value)}, expected {leaf.value!r}"
    if isinstance(leaf, Number):
        right_type = type(value) is leaf.kind or (leaf.kind is float and type(value) is int)
        if not right_type or not (leaf.low <= value <= leaf.high):
            return f"got {reprlib.repr(value)}, expected {leaf.kind.__name__} in [{leaf.low:g}, {leaf.high:g}]"
        return None
    if isinstance(leaf, Integers):
        fits = isinstance(value, list) and len(value) <= leaf.most
        if not fits or not all(type(v) is int and leaf.low <= v <= leaf.high for v in value):
            return f"expected a list of at most {leaf.most} integers in [{leaf.low}, {leaf.high}]"
        return None
    return "expected a tensor, got a scalar"


def shape_fault(leaf: Array, shape: tuple[int, ...], free: dict[str, int]) -> str | None:
    """What is wrong with a shape, in words, or None. ``free`` collects the sizes of the named dimensions."""
    wanted = ", ".join(f"{s.low}..{s.high}" if isinstance(s, Free) else str(s) for s in leaf.shape)
    if len(shape) != len(leaf.shape):
        return f"got shape {shape}, expected ({wanted})"
    for size, want in zip(shape, leaf.shape, strict=True):
        if isinstance(want, Free):
            if not want.low <= size <= want.high or free.setdefault(want.name, size) != size:
                return f"got shape {shape}, expected ({wanted}) with {want.name!r} the same everywhere"
        elif size != want:
            return f"got shape {shape}, expected ({wanted})"
    return None


def value_fault(leaf: Array, value: Tensor) -> str | None:
    """What is wrong with the entries of a tensor of the right shape, in words, or None. NaN lies in no range."""
    bounded = (leaf.low, leaf.high) != (-math.inf, math.inf)
    if not value.numel() or not (bounded or leaf.row_sums):
        return None
    wide = value.to(torch.float64)
    if bounded and not bool(((wide >= leaf.low) & (wide <= leaf.high)).all()):
        return f"holds values beyond [{leaf.low:g}, {leaf.high:g}]"
    if leaf.row_sums is not None:
        sums, (low, high) = wide.sum(dim=-1), leaf.row_sums
        if not bool(((sums >= low) & (sums <= high)).all()):
            return (
                f"has rows that add up to {float(sums.min()):g} to {float(sums.max()):g}, expected {low:g} to {high:g}"
            )
    return None
