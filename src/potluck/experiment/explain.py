"""What is wrong with a setting, in one line each: key, value, what was expected, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

ARMS = ("int", "float", "str", "bool", "literal", "constrained-int", "constrained-float")
"""Names that pydantic puts into a location for the arms of a union."""


def explain(error: ValidationError, model: type[BaseModel], prefix: str = "") -> str:
    """A line for each setting that is wrong; what each arm of a union expected stands in one line."""
    lines: dict[str, str] = {}
    for fault in error.errors(include_url=False):
        line = _line(fault["type"], fault["loc"], fault["input"], fault["msg"], model, prefix)
        setting, _, told = line.partition(": ")
        if setting not in lines:
            lines[setting] = line
        elif told not in lines[setting]:
            lines[setting] += f", or {told.removeprefix('expected ')}"
    return "\n".join(lines.values())


def unknown(key: str, known: Sequence[str], what: str = "key") -> str:
    """The line for a name that does not exist."""
    close = difflib.get_close_matches(key.rpartition(".")[2], known, n=1)
    parent = key.rpartition(".")[0]
    hint = f"; did you mean {_join(parent, close[0])}?" if close else f"; expected one of {', '.join(known)}"
    return f"{key}: unknown {what}{hint}"


def _line(kind: str, loc: tuple[Any, ...], given: Any, message: str, model: type[BaseModel], prefix: str) -> str:
    key = _join(prefix, _key(loc))
    if kind == "extra_forbidden":
        return unknown(key, _fields(model, loc[:-1]))
    if kind == "union_tag_invalid":
        tags = [tag.strip(" '") for tag in message.partition("expected tags:")[2].split(",")]
        hint = unknown(str(given.get("kind")), tags, "kind").partition(": ")[2]
        return f"{key}.kind = {_shown(given.get('kind'))}: {hint}"
    if kind == "missing":
        return f"{key}: missing; it has no default"
    told = message.removeprefix("Value error, ").removeprefix("Input should be ").partition(" after validation")[0]
    told = told if kind == "value_error" else f"expected {told}"
    if kind == "value_error" and isinstance(given, Mapping):
        return f"{key}: {told}"
    return f"{key} = {_shown(given)}: {told}"


def _key(loc: tuple[Any, ...]) -> str:
    """``fleet.tier[0].gflops``; the names that pydantic adds for the arms of a union are left out."""
    text = ""
    for before, part in zip((None, *loc), loc, strict=False):
        if isinstance(part, int):
            text += f"[{part}]"
        elif before != "partition" and part not in ARMS and not any(mark in part for mark in "[]()"):
            text = _join(text, part)
    return text


def _join(parent: str, key: str) -> str:
    return f"{parent}.{key}" if parent else key


def _shown(value: Any) -> str:
    text = f'"{value}"' if isinstance(value, str) else str(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _fields(model: type[BaseModel], loc: tuple[Any, ...]) -> list[str]:
    """The keys of the table at ``loc``."""
    arms: list[type[BaseModel]] = [model]
    for part in loc:
        named = [arm.model_fields[part].annotation for arm in arms if part in arm.model_fields]
        if named:
            arms = [found for annotation in named for found in _models_of(annotation)]
        elif isinstance(part, str):  # the tag of a union: keep the arm that bears it
            arms = [arm for arm in arms if part in get_args(arm.model_fields["kind"].annotation)] or arms
    return sorted({name for arm in arms for name in arm.model_fields})


def _models_of(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for inner in get_args(annotation) for found in _models_of(inner)]
