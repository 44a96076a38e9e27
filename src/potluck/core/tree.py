"""A tree is the only shape of data: nested dicts whose leaves are tensors or scalars.

State, message and checkpoint are trees, so one encoder serves the wire and the disk. A path joins the keys with ``/``,
as in ``weights/conv1.weight``. Nothing here mutates its arguments.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeGuard

import torch
from torch import Tensor

Tree = Mapping[str, Any]
"""str -> Tensor | bool | int | float | str | list of numbers or strings | Tree."""
Path = str


def is_tree(value: object) -> TypeGuard[Tree]:
    """Whether ``value`` is an inner node."""
    return isinstance(value, Mapping)


def leaves(tree: Tree, prefix: str = "") -> Iterator[tuple[Path, Any]]:
    """Yields (path, leaf) in sorted order of the keys. An empty inner node below the root is a leaf, ``{}``."""
    for key in sorted(tree, key=str):
        value = tree[key]
        if not isinstance(key, str) or not key or "/" in key:
            raise ValueError(f"tree key {key!r} under {prefix!r}: expected a non-empty string without '/'")
        if isinstance(value, Tensor) or not is_tree(value):  # tensors first: they are many, and quicker to tell
            yield f"{prefix}{key}", value
        elif value:
            yield from leaves(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", {}


def tensors(tree: Tree) -> dict[Path, Tensor]:
    """The tensor leaves by path."""
    return {path: leaf for path, leaf in leaves(tree) if isinstance(leaf, Tensor)}


def assemble(by_path: Mapping[Path, Any]) -> dict[str, Any]:
    """The tree whose leaves stand at these paths: the inverse of ``dict(leaves(tree))``."""
    root: dict[str, Any] = {}
    for path, leaf in by_path.items():
        node = root
        *inner, last = path.split("/")
        for key in inner:
            node = node.setdefault(key, {})
            if not isinstance(node, dict):
                raise ValueError(f"path {path!r} goes through a leaf")
        if last in node:
            raise ValueError(f"path {path!r} stands twice, as a leaf and as a node")
        node[last] = leaf
    return root


def map(tree: Tree, function: Callable[[Tensor], Any]) -> dict[str, Any]:
    """The same tree with ``function`` applied to each tensor; scalars stay."""
    return {
        key: map(value, function) if is_tree(value) else function(value) if isinstance(value, Tensor) else value
        for key, value in tree.items()
    }


def zip_map(left: Tree, right: Tree, function: Callable[[Tensor, Tensor], Any]) -> dict[str, Any]:
    """``function`` over pairs of tensors at equal paths; scalars are those of ``left``. Names and shapes must agree."""
    require_alike(left, right)
    return {
        key: zip_map(value, right.get(key, {}), function)
        if is_tree(value)
        else (function(value, right[key]) if isinstance(value, Tensor) else value)
        for key, value in left.items()
    }


def require_alike(left: Tree, right: Tree) -> None:
    """Raises ValueError unless both have the same tensors: equal names *and* equal shapes, so nothing broadcasts."""
    a, b = tensors(left), tensors(right)
    if a.keys() != b.keys():
        odd = sorted(a.keys() ^ b.keys())
        raise ValueError(f"trees differ in their names: {', '.join(odd[:4])}")
    for path, value in a.items():
        if value.shape != b[path].shape:
            raise ValueError(f"{path}: shapes {tuple(value.shape)} and {tuple(b[path].shape)} differ")


def add(left: Tree, right: Tree, alpha: float = 1.0) -> dict[str, Any]:
    """``left + alpha * right``, tensor by tensor."""
    return zip_map(left, right, lambda a, b: torch.add(a, b, alpha=alpha) if a.is_floating_point() else a)


def subtract(left: Tree, right: Tree) -> dict[str, Any]:
    """``left - right`` of floating tensors; integer tensors are those of ``left``."""
    return zip_map(left, right, lambda a, b: a - b if a.is_floating_point() else a)


def scale(tree: Tree, factor: float) -> dict[str, Any]:
    """``factor * tree`` of floating tensors."""
    return map(tree, lambda a: a * factor if a.is_floating_point() else a)


def norm(tree: Tree) -> float:
    """The 2-norm over all floating tensors, accumulated in float64."""
    total = sum(float(a.double().square().sum()) for a in tensors(tree).values() if a.is_floating_point())
    return math.sqrt(total)


def equal(left: Tree, right: Tree) -> bool:
    """Bitwise equality of names, dtypes, shapes, values and scalars; NaN equals itself."""
    a, b = dict(leaves(left)), dict(leaves(right))
    return a.keys() == b.keys() and all(same(a[path], b[path]) for path in a)


def same(a: object, b: object) -> bool:
    """Bitwise equality of two leaves; 1, 1.0 and True are three different ones."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and _bytes(a) == _bytes(b)
    return type(a) is type(b) and repr(a) == repr(b)


def nbytes(tree: Tree) -> int:
    """Bytes of all tensors."""
    return sum(a.numel() * a.element_size() for a in tensors(tree).values())


def finite(value: Tensor) -> bool:
    """Whether every entry is finite. One read: a finite sum proves it, only else are the entries looked at."""
    if not value.is_floating_point():
        return True
    total = value.sum() if value.element_size() >= 4 else value.sum(dtype=torch.float32)
    return math.isfinite(total.item()) or bool(torch.isfinite(value).all())


def view_bytes(value: Tensor) -> memoryview:
    """The bytes of a tensor, row-major, without a copy where it is contiguous on the CPU."""
    flat = value.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def _bytes(value: Tensor) -> bytes:
    return view_bytes(value).tobytes()


def digest(tree: Tree) -> str:
    """SHA-256 (hex) of the canonical tree: sorted paths, dtypes, shapes, little-endian bytes, scalars.

    Each leaf begins with a line of JSON, so no name can pass for a value. An empty tree has the digest "".
    """
    hasher, count = hashlib.sha256(), 0
    for path, leaf in leaves(tree):
        count += 1
        if isinstance(leaf, Tensor):
            hasher.update(f"{json.dumps([path, str(leaf.dtype), list(leaf.shape)])}\n".encode())
            hasher.update(view_bytes(leaf))
        else:
            hasher.update(f"{json.dumps([path, leaf], sort_keys=True, allow_nan=False)}\n".encode())
    return hasher.hexdigest() if count else ""
