"""The options of a method, or the settings of a task, as a typed table, made from the fields of its class."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from potluck.core.errors import ConfigError, PotluckError
from potluck.core.options import Ladder, NetChoice
from potluck.experiment.explain import explain, unknown

BUILT = ("net", "fit", "facts")
"""Fields of a method or a task that are filled when the run is built; all others are options."""


@cache
def options_model(method: Any) -> type[BaseModel]:
    """A pydantic model of the options of a method, given its class."""
    hints = typing.get_type_hints(method, include_extras=True)
    fields: dict[str, Any] = {
        field.name: (hints[field.name], field.default)
        for field in dataclasses.fields(method)
        if field.name not in BUILT
    }
    config = ConfigDict(extra="forbid", strict=True, frozen=True)
    made: type[BaseModel] = create_model(f"{method.__name__} options", __config__=config, **fields)
    return made


def default_options(method: Any) -> dict[str, Any]:
    """The options as they are where nothing is set."""
    return {key: field.default for key, field in options_model(method).model_fields.items()}


def option_marks(method: Any) -> dict[str, Ladder | NetChoice]:
    """The per-tier options of a method and how they are marked."""
    found: dict[str, Ladder | NetChoice] = {}
    for key, field in options_model(method).model_fields.items():
        for mark in field.metadata:
            if isinstance(mark, (Ladder, NetChoice)):
                found[key] = mark
    return found


def check_options(
    section: str, name: str, member: Any, options: Mapping[str, Any], catalogue: Mapping[str, Any]
) -> dict[str, Any]:
    """All options of the member called ``name`` of a catalogue, checked. Raises ConfigError: one line a fault."""
    model = options_model(member)
    for key in options:
        if key not in model.model_fields:
            owners = [other for other in catalogue if _has(catalogue, other, key)]
            if owners:
                raise ConfigError(f"{section}.{key}: an option of {', '.join(owners)}, not of {name}; remove it")
            raise ConfigError(unknown(f"{section}.{key}", [*model.model_fields, NAMED_BY[section]]))
    try:
        checked = model.model_validate(dict(options))
    except ValidationError as error:
        raise ConfigError(explain(error, model, section)) from None
    return {key: getattr(checked, key) for key in model.model_fields}


NAMED_BY = {"method": "name", "task": "kind"}
"""The key of a section that names the member."""


def _has(catalogue: Mapping[str, Any], name: str, option: str) -> bool:
    try:
        return option in options_model(catalogue[name]).model_fields
    except PotluckError:  # a plug-in that does not load
        return False
