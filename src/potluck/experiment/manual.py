"""The manual page of a method, made from its own file: what it does, options, profiles, what crosses the link."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from potluck.core.options import IfServerData, Ladder
from potluck.experiment.options import option_marks, options_model
from potluck.methods import METHODS

BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def page(name: str) -> str:
    """The page of a method of ``METHODS``, in Markdown."""
    method: Any = METHODS[name]
    module = sys.modules[method.__module__]
    parts = [
        f"# `{name}`: {(method.__doc__ or '').strip().splitlines()[0]}",
        (module.__doc__ or "").strip(),
        "## Options of `[method]`",
        "\n".join(_options(method)) or "None of its own.",
    ]
    if method.traits.profiles:
        parts += ["## Profiles", "\n".join(_profiles(method))]
    sent = [*_messages(module), "", "Scalars travel in the header of a frame."]
    parts += ["## What crosses the link", "\n".join(sent) if len(sent) > 2 else "Nothing but the headers of frames."]
    return "\n\n".join(parts) + "\n"


def _options(method: Any) -> Iterator[str]:
    schema = options_model(method).model_json_schema()
    marks = option_marks(method)
    rows = [(key, schema["properties"][key]) for key in schema["properties"]]
    if rows:
        yield "| option | default | accepted |\n|---|---|---|"
    for key, told in rows:
        default = _shown(told.get("default"))
        mark = marks.get(key)
        if isinstance(mark, Ladder):
            default = f"by strength of the tier: {', '.join(_shown(rung) for rung in mark.rungs)}"
        elif mark is not None:
            default = "the net of `[model]` everywhere"
        per_tier = "per tier: " if mark is not None else ""
        yield f"| `{key}` | {default} | {per_tier}{_accepted(told, schema.get('$defs', {}))} |"


def _accepted(told: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    """What a JSON schema of one option says, in a few words."""
    if "enum" in told or "const" in told:
        return ", ".join(f"`{value}`" for value in told.get("enum", [told.get("const")]))
    if "anyOf" in told:
        return " or ".join(_accepted(one, known) for one in told["anyOf"] if one.get("type") != "null")
    if isinstance(told.get("additionalProperties"), Mapping):
        return _accepted(told["additionalProperties"], known)
    bounds = [f"{sign} {told[key]:g}" for key, sign in BOUNDS.items() if key in told]
    if told.get("type") == "array":
        return f"a list: {_accepted(told.get('items', {}), known)}"
    kind = {"integer": "integer", "number": "number", "boolean": "`true`, `false`", "string": "text"}
    return " ".join([kind.get(str(told.get("type")), "table"), ", ".join(bounds)]).strip()


def _profiles(method: Any) -> Iterator[str]:
    profiles = method.traits.profiles
    usual = {key: told.get("default") for key, told in options_model(method).model_json_schema()["properties"].items()}
    flat = {profile: dict(_flat(values)) for profile, values in profiles.items()}
    yield f"| setting | {' | '.join(f'`{profile}`' for profile in flat)} |\n|---|{'---|' * len(flat)}"
    for key in dict.fromkeys(key for values in flat.values() for key in values):
        other = usual.get(key, "as elsewhere")
        yield f"| `{key}` | {' | '.join(_shown(values.get(key, other)) for values in flat.values())} |"


def _flat(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if key in ("train", "model"):
            yield from ((f"{key}.{inner}", given) for inner, given in value.items())
        else:
            yield key, value


def _messages(module: Any) -> Iterator[str]:
    for direction, title in (("down", "Broadcast"), ("up", "Update")):
        kind = vars(module).get(title)
        if inspect.isclass(kind):
            told = (kind.__doc__ or "").strip().rstrip(".")
            fields = ", ".join(f"`{field}`" for field in kind.__annotations__) or "nothing"
            yield f"- **{direction}**: {told[:1].lower()}{told[1:]}. Fields: {fields}."


def _shown(value: Any) -> str:
    if isinstance(value, IfServerData):
        return f"{_shown(value.yes)} where the server holds data, else {_shown(value.no)}"
    if isinstance(value, Mapping):
        return "`{ " + ", ".join(f"{key} = {_shown(inner).strip('`')}" for key, inner in value.items()) + " }`"
    if value is None:
        return "not set"
    if value == "as elsewhere":
        return value  # type: ignore[no-any-return]
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"
