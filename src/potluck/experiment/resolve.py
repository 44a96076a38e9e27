"""From what the file says to what runs: the method's options, its profile, and the ladders over the tiers."""

from __future__ import annotations

import dataclasses
import hashlib
import typing
from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from potluck.core.errors import ConfigError
from potluck.core.types import Ladder, NetChoice
from potluck.experiment.config import Experiment
from potluck.experiment.explain import explain, unknown
from potluck.fleet.devices import by_strength
from potluck.methods import METHODS
from potluck.methods.protocol import IfServerData
from potluck.wire.frame import canonical

BUILT = ("net", "fit")
"""Fields of a method that are filled when the run is built; all others are options."""
LEAST_HELD = 2
"""So many samples the server must hold to fit on one half and judge on the other."""
LOCAL = ("name", "rounds", "engine", "track", "evaluate", "stop", "methods")
"""Sections that do not change what a device computes, so that a digest leaves them out."""


def resolved(experiment: Experiment) -> Experiment:
    """The experiment with every option of its method set. Resolving twice changes nothing. Raises ConfigError."""
    name = method_name(experiment)
    given = {key: value for key, value in experiment.method.items() if key != "name"}
    profile = _profile(experiment, name, given)
    options = {**_defaults(name), **{k: v for k, v in profile.items() if k not in ("train", "model")}, **given}
    checked = _check(name, options)
    for option, marks in option_marks(name).items():
        checked[option] = _per_tier(experiment, f"method.{option}", checked[option], marks)
    experiment = _with(experiment, "train", profile.get("train", {}))
    experiment = _with(experiment, "model", profile.get("model", {}))
    if isinstance(experiment.model.steps, dict):
        _demand_tiers(experiment, "model.steps", experiment.model.steps)
    train = experiment.train.model_copy(
        update={
            "epochs": _epochs(experiment),
            "schedule_rounds": experiment.train.schedule_rounds or experiment.rounds,
        }
    )
    method = {"name": name, **{key: value for key, value in checked.items() if value is not None}}
    return experiment.model_copy(update={"method": method, "train": train})


def method_name(experiment: Experiment) -> str:
    """The method's name, which must be known."""
    name = experiment.method.get("name")
    if not isinstance(name, str):
        raise ConfigError(f"method.name: missing; expected one of {', '.join(METHODS)}")
    if name not in METHODS:
        raise ConfigError(f'method.name = "{name}": {unknown(name, list(METHODS), "method").partition(": ")[2]}')
    return name


def option_values(experiment: Experiment) -> dict[str, Any]:
    """The options of a resolved experiment's method, as the keyword arguments of its class."""
    given = {key: value for key, value in experiment.method.items() if key != "name"}
    return _check(method_name(experiment), given)


def given_options(experiment: Experiment) -> dict[str, Any]:
    """The options of ``[method]`` that a person set; of a resolved file, which holds all, those unlike the defaults."""
    name = method_name(experiment)
    given = {key: value for key, value in experiment.method.items() if key != "name"}
    usual = {**_defaults(name), **_profile(experiment, name, given)}
    if any(key not in given for key, value in usual.items() if key not in ("train", "model") and value is not None):
        return given
    return {key: value for key, value in given.items() if value != usual.get(key)}


def config_digest(experiment: Experiment) -> str:
    """SHA-256 of what a device, a peer and a resumed run must agree on."""
    table = experiment.model_dump(mode="json")
    kept = {key: value for key, value in table.items() if key not in LOCAL}
    kept["threads"] = experiment.engine.threads
    kept["data"] = {**kept["data"], "source": kept["data"]["source"].partition(":")[0]}
    return hashlib.sha256(canonical(kept).encode()).hexdigest()


@cache
def options_model(name: str) -> type[BaseModel]:
    """A pydantic model of a method's options, made from its dataclass fields."""
    method = METHODS[name]
    hints = typing.get_type_hints(method, include_extras=True)
    fields: dict[str, Any] = {
        field.name: (hints[field.name], field.default)
        for field in dataclasses.fields(method)
        if field.name not in BUILT
    }
    config = ConfigDict(extra="forbid", strict=True, frozen=True)
    made: type[BaseModel] = create_model(f"{name} options", __config__=config, **fields)
    return made


def _defaults(name: str) -> dict[str, Any]:
    return {key: field.default for key, field in options_model(name).model_fields.items()}


def _check(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    model = options_model(name)
    for key in options:
        if key not in model.model_fields:
            owners = [other for other in METHODS if key in options_model(other).model_fields]
            if owners:
                raise ConfigError(f"method.{key}: an option of {', '.join(owners)}, not of {name}; remove it")
            raise ConfigError(unknown(f"method.{key}", [*model.model_fields, "name"]))
    try:
        checked = model.model_validate(dict(options))
    except ValidationError as error:
        raise ConfigError(explain(error, model, "method")) from None
    return {key: getattr(checked, key) for key in model.model_fields}


def _profile(experiment: Experiment, name: str, given: Mapping[str, Any]) -> Mapping[str, Any]:
    profiles = METHODS[name].traits.profiles
    if not profiles:
        return {}
    chosen = given.get("profile", _defaults(name)["profile"])
    if chosen not in profiles:
        raise ConfigError(f'method.profile = "{chosen}": expected one of {", ".join(profiles)}')
    holds = experiment.data.server_samples >= LEAST_HELD
    return {
        key: (value.yes if holds else value.no) if isinstance(value, IfServerData) else value
        for key, value in profiles[chosen].items()
    }


def option_marks(name: str) -> dict[str, Ladder | NetChoice]:
    """The per-tier options of a method and how they are marked."""
    found: dict[str, Ladder | NetChoice] = {}
    for key, field in options_model(name).model_fields.items():
        for mark in field.metadata:
            if isinstance(mark, (Ladder, NetChoice)):
                found[key] = mark
    return found


def _per_tier(experiment: Experiment, key: str, value: Any, mark: Ladder | NetChoice) -> Any:
    tiers = [tier.plain() for tier in experiment.fleet.tier]
    if value is None and isinstance(mark, NetChoice):
        return None
    if value is None:
        order = by_strength(tiers)
        rungs = mark.rungs  # type: ignore[union-attr]
        return {tier: rungs[_rung(place, len(order), len(rungs))] for place, tier in enumerate(order)}
    _demand_tiers(experiment, key, value)
    return value


def _rung(place: int, tiers: int, rungs: int) -> int:
    """The ladder stretched to the number of tiers: the weakest on the first rung, the strongest on the last."""
    return rungs - 1 if tiers == 1 else round(place * (rungs - 1) / (tiers - 1))


def _epochs(experiment: Experiment) -> dict[str, int]:
    epochs = experiment.train.epochs
    if isinstance(epochs, dict):
        _demand_tiers(experiment, "train.epochs", epochs)
        return epochs
    return {tier.name: epochs for tier in experiment.fleet.tier}


def _demand_tiers(experiment: Experiment, key: str, value: Mapping[str, Any]) -> None:
    names = [tier.name for tier in experiment.fleet.tier]
    for name in names:
        if name not in value:
            raise ConfigError(
                f'{key}: the fleet has tier "{name}" but no entry for it; '
                f"add {name} = ..., or leave out {key} altogether"
            )
    for name in value:
        if name not in names:
            raise ConfigError(f"{key}.{name}: {unknown(name, names, 'tier').partition(': ')[2]}")


def _with(experiment: Experiment, section: str, values: Mapping[str, Any]) -> Experiment:
    """The experiment with a profile's values in a section, where its file does not set them itself."""
    held: BaseModel = getattr(experiment, section)
    update = {key: value for key, value in values.items() if key not in held.model_fields_set}
    changed = type(held).model_validate({**held.model_dump(exclude_unset=True), **update}) if update else held
    return experiment.model_copy(update={section: changed})
