"""The check of a frame's header against a spec, before anything is allocated, and of the values after it."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from potluck.core import tree as trees
from potluck.core.errors import WireError
from potluck.core.spec import Array, OneOf, scalar_fault, shape_fault, value_fault
from potluck.wire.frame import Entry

MOST_NOTES, LONGEST_NOTE = 64, 120
"""A reply carries at most so many figures for the record, with names of at most so many letters."""
DIGEST = re.compile(r"([0-9a-f]{64})?")


def require_spec(sent: Mapping[str, Any], leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The spec, a leaf by path, with each OneOf replaced by the form that was sent.

    ``sent`` holds scalars, and tensors or their header entries, by path. Raises WireError unless names, dtypes, shapes
    and scalars are what the spec says.
    """
    chosen = _chosen(leaves, sent)
    nodes = {path[:at] for path in chosen for at, letter in enumerate(path) if letter == "/"}
    for path in sent:
        if path not in chosen and not (path in nodes and sent[path] == {}):
            raise WireError("not expected here", tensor=path[:80])
    free: dict[str, int] = {}
    for path, leaf in chosen.items():
        if path not in sent:
            if isinstance(leaf, Mapping) or not leaf.optional:
                raise WireError("missing", tensor=path)
            continue
        fault = _fault(leaf, sent[path], free)
        if fault is not None:
            raise WireError(fault, tensor=path)
    return chosen


def _chosen(leaves: Mapping[str, Any], sent: Mapping[str, Any]) -> dict[str, Any]:
    """The leaves with each OneOf replaced by the choice whose names were sent."""
    made: dict[str, Any] = {}
    for path, leaf in leaves.items():
        if not isinstance(leaf, OneOf):
            made[path] = leaf
            continue
        found = {name for name in sent if name.startswith(f"{path}/")}
        if not found and leaf.optional:
            continue
        choices: list[dict[str, Any]] = [
            {f"{path}/{sub}": part for sub, part in choice.items()} for choice in leaf.choices
        ]
        fitting = [c for c in choices if found.issuperset(p for p, part in c.items() if not part.optional)]
        if not fitting:
            raise WireError("holds none of the forms that are expected here", tensor=path)
        best: dict[str, Any] = max(fitting, key=lambda c: len(found.intersection(c.keys())))
        made |= best
    return made


def _fault(leaf: Any, value: Any, free: dict[str, int]) -> str | None:
    if isinstance(leaf, Mapping):
        return None if isinstance(value, Mapping) and not value else "expected an empty node"
    if not isinstance(value, (Tensor, Entry)):
        return scalar_fault(leaf, value)
    if not isinstance(leaf, Array):
        return "got a tensor, expected a scalar"
    if value.dtype != leaf.dtype:
        return f"got {value.dtype}, expected {leaf.dtype}"
    return shape_fault(leaf, tuple(value.shape), free)


def require_finite(tree: trees.Tree, leaves: Mapping[str, Any] | None = None) -> None:
    """Raises WireError naming the first floating tensor that holds NaN or infinity, unless its spec allows it."""
    for path, value in trees.tensors(tree).items():
        leaf = (leaves or {}).get(path)
        lenient = isinstance(leaf, Array) and not leaf.finite
        if not lenient and not trees.finite(value):
            raise WireError("holds NaN or infinity", tensor=path)


def require_values(tree: trees.Tree, leaves: Mapping[str, Any]) -> None:
    """Raises WireError naming the first tensor whose entries or rows are beyond what its spec says."""
    for path, value in trees.tensors(tree).items():
        leaf = leaves.get(path)
        fault = value_fault(leaf, value) if isinstance(leaf, Array) else None
        if fault is not None:
            raise WireError(fault, tensor=path)


def require_facts(facts: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raises WireError unless the sender's facts (method, config digest, round, device) are these.

    What a device says of itself (digests, FLOPs, notes for the record) must be of the right kind where it is there.
    """
    for name, value in expected.items():
        if not trees.same(facts.get(name), value):
            raise WireError(f"{name} is {reprlib.repr(facts.get(name))}, expected {value!r}")
    for name in ("own", "codec_memory"):
        digest = facts.get(name, "")
        if not isinstance(digest, str) or not DIGEST.fullmatch(digest):
            raise WireError(f"{name} is {reprlib.repr(digest)}, expected a digest in hexadecimal")
    flops, notes = facts.get("flops", 0), facts.get("notes", {})
    if type(flops) not in (int, float) or flops < 0:
        raise WireError(f"flops is {reprlib.repr(flops)}, expected a number from 0")
    if not isinstance(notes, dict) or len(notes) > MOST_NOTES:
        raise WireError(f"notes are {reprlib.repr(notes)}, expected at most {MOST_NOTES} figures by name")
    for name, figure in notes.items():
        if len(name) > LONGEST_NOTE or not name.isprintable() or not isinstance(figure, (bool, int, float)):
            raise WireError(f"note {reprlib.repr(name)} is {reprlib.repr(figure)}, expected a figure with a short name")
