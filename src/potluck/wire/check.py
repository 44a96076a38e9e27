"""The check of a frame's header against a spec, before anything is allocated, and of the values after it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from potluck.core import tree as trees
from potluck.core.errors import WireError
from potluck.core.spec import Array, Leaf, OneOf, scalar_fault, shape_fault
from potluck.wire.frame import Header


def demand_spec(header: Header, leaves: Mapping[str, Any]) -> None:
    """Raises WireError unless names, dtypes, shapes and scalars are what the spec, a leaf by path, says."""
    sent = {**header.scalars, **header.entries}
    leaves = _chosen(leaves, sent)
    for path in sent.keys() - leaves.keys():
        if sent[path] != {}:
            raise WireError("not expected here", tensor=path[:80])
    free: dict[str, int] = {}
    for path, leaf in leaves.items():
        if isinstance(leaf, Mapping):
            continue
        if path not in sent:
            if not leaf.optional:
                raise WireError("missing", tensor=path)
            continue
        fault = _fault(leaf, path, header, free)
        if fault is not None:
            raise WireError(fault, tensor=path)


def _chosen(leaves: Mapping[str, Any], sent: Mapping[str, Any]) -> dict[str, Any]:
    """The leaves with each OneOf replaced by the choice whose names were sent."""
    made: dict[str, Any] = {}
    for path, leaf in leaves.items():
        if not isinstance(leaf, OneOf):
            made[path] = leaf
            continue
        found = {name for name in sent if name.startswith(f"{path}/")}
        choices: list[dict[str, Any]] = [
            {f"{path}/{sub}": part for sub, part in choice.items()} for choice in leaf.choices
        ]
        fitting = [c for c in choices if found.issuperset(p for p, part in c.items() if not part.optional)]
        if not fitting:
            raise WireError("holds none of the forms that are expected here", tensor=path)
        best: dict[str, Any] = max(fitting, key=lambda c: len(found.intersection(c.keys())))
        made |= best
    return made


def _fault(leaf: Leaf, path: str, header: Header, free: dict[str, int]) -> str | None:
    entry = header.entries.get(path)
    if entry is None:
        return scalar_fault(leaf, header.scalars[path])
    if not isinstance(leaf, Array):
        return "got a tensor, expected a scalar"
    if entry.dtype != leaf.dtype:
        return f"got {entry.dtype}, expected {leaf.dtype}"
    return shape_fault(leaf, entry.shape, free)


def demand_finite(tree: trees.Tree, leaves: Mapping[str, Any] | None = None) -> None:
    """Raises WireError naming the first floating tensor that holds NaN or infinity, unless its spec allows it."""
    for path, value in trees.tensors(tree).items():
        leaf = (leaves or {}).get(path)
        lenient = isinstance(leaf, Array) and not leaf.finite
        if not lenient and not trees.finite(value):
            raise WireError("holds NaN or infinity", tensor=path)


def demand_facts(facts: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raises WireError unless the sender's facts (method, config digest, round, device) are these."""
    for name, value in expected.items():
        if facts.get(name) != value:
            raise WireError(f"{name} is {facts.get(name)!r}, expected {value!r}")
