"""From what the file says to what runs: the method's options, its profile, its net, and the ladders over the tiers.

An experiment is resolved once, into a value that is then only read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from potluck.core.errors import ConfigError
from potluck.core.options import IfServerData, Ladder, NetChoice
from potluck.data.sources import kind_of
from potluck.experiment.config import Experiment
from potluck.experiment.explain import unknown
from potluck.experiment.options import check_options, default_options, option_marks
from potluck.fleet.devices import by_strength
from potluck.methods import METHODS
from potluck.methods.protocol import Traits
from potluck.tasks import TASKS
from potluck.wire.frame import canonical

LEAST_HELD = 2
"""So many samples the server must hold to fit on one half and judge on the other."""
LOCAL = ("name", "rounds", "engine", "track", "evaluate", "stop", "methods")
"""Sections that do not change what a device computes, so that a digest leaves them out."""
SECTIONS = ("train", "model")
"""What a profile may set beside the method's options."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """An experiment in which every setting is known."""

    experiment: Experiment
    """With every option of its method set: what a run folder keeps. Resolving it again changes nothing."""
    method_name: str
    method: Any
    options: Mapping[str, Any]
    """The keyword arguments of the method, but for its nets and its training."""
    given: Mapping[str, Any]
    """The options that a person set."""
    nets: Mapping[str, str]
    """The name of the net of each tier."""
    depths: Mapping[str, int]
    """What ``[model] steps`` says of each tier; 0: the net's own depth."""
    epochs: Mapping[str, int]
    digest: str
    """SHA-256 of what a device, a peer and a resumed run must agree on."""

    @property
    def traits(self) -> Traits:
        """Those of the method."""
        found: Traits = self.method.traits
        return found

    @property
    def tiers(self) -> list[str]:
        """The names of the tiers."""
        return [tier.name for tier in self.experiment.fleet.tier]

    @property
    def devices(self) -> int:
        """How many there are."""
        return sum(tier.devices for tier in self.experiment.fleet.tier)


def resolve(asked: Experiment) -> Resolved:
    """The experiment with nothing left open. Raises ConfigError."""
    name = method_name(asked)
    _check_task(asked)
    method = METHODS[name]
    given = {key: value for key, value in asked.method.items() if key != "name"}
    profile = _profile(asked, method, given)
    usual = {**default_options(method), **{key: value for key, value in profile.items() if key not in SECTIONS}}
    options = check_options("method", name, method, {**usual, **given}, METHODS)
    marks = option_marks(method)
    for option, mark in marks.items():
        options[option] = _per_tier(asked, f"method.{option}", options[option], mark)
    for section in SECTIONS:
        asked = _with(asked, section, profile.get(section, {}))
    if "name" not in asked.model.model_fields_set and method.traits.preset:
        asked = _with(asked, "model", {"name": method.traits.preset})
    epochs = _by_tier(asked, "train.epochs", asked.train.epochs)
    schedule_rounds = asked.train.schedule_rounds or asked.rounds
    train = asked.train.model_copy(update={"epochs": epochs, "schedule_rounds": schedule_rounds})
    table = {"name": name, **{key: value for key, value in options.items() if value is not None}}
    experiment = asked.model_copy(update={"method": table, "train": train})
    tiers = [tier.name for tier in experiment.fleet.tier]
    chosen: Mapping[str, str] = next(
        (options[key] for key, mark in marks.items() if isinstance(mark, NetChoice) and options[key]), {}
    )
    return Resolved(
        experiment=experiment,
        method_name=name,
        method=method,
        options=options,
        given=_set_by_hand(given, usual),
        nets={tier: chosen.get(tier, experiment.model.name) for tier in tiers},
        depths=_by_tier(asked, "model.steps", asked.model.steps),
        epochs=epochs,
        digest=_digest(experiment),
    )


def _check_task(experiment: Experiment) -> None:
    """Raises ConfigError for a task that does not exist, or a setting that it has not, where ``[task]`` names one."""
    table = dict(experiment.task)
    kind = table.pop("kind", None)
    if kind is None:
        return
    if not isinstance(kind, str):
        raise ConfigError(f"task.kind = {kind!r}: expected one of {', '.join(TASKS)}")
    check_options("task", kind, TASKS[kind], table, TASKS)


def method_name(experiment: Experiment) -> str:
    """What ``[method] name`` says. Raises ConfigError where it says nothing."""
    name = experiment.method.get("name")
    if not isinstance(name, str):
        raise ConfigError(f"method.name: missing; expected one of {', '.join(METHODS)}")
    return name


def _set_by_hand(given: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    """The options that a person set; of a resolved file, which holds all, those unlike the usual ones."""
    if any(key not in given for key, value in usual.items() if value is not None):
        return dict(given)
    return {key: value for key, value in given.items() if value != usual.get(key)}


def _digest(experiment: Experiment) -> str:
    table = experiment.model_dump(mode="json")
    kept = {key: value for key, value in table.items() if key not in LOCAL}
    kept["threads"] = experiment.engine.threads
    if experiment.evaluate.on != "common":  # it changes what a device trains on
        kept["own_test"] = experiment.evaluate.own_test
    kept["data"] = {**kept["data"], "source": kind_of(kept["data"]["source"])[0]}
    return hashlib.sha256(canonical(kept).encode()).hexdigest()


def _profile(experiment: Experiment, method: Any, given: Mapping[str, Any]) -> Mapping[str, Any]:
    profiles = method.traits.profiles
    if not profiles:
        return {}
    chosen = given.get("profile", default_options(method)["profile"])
    if chosen not in profiles:
        raise ConfigError(f'method.profile = "{chosen}": expected one of {", ".join(profiles)}')
    holds = experiment.data.server_samples >= LEAST_HELD
    return {
        key: (value.yes if holds else value.no) if isinstance(value, IfServerData) else value
        for key, value in profiles[chosen].items()
    }


def _per_tier(experiment: Experiment, key: str, value: Any, mark: Ladder | NetChoice) -> Any:
    if value is not None:
        _require_tiers(experiment, key, value)
        return value
    if isinstance(mark, NetChoice):
        return None
    order = by_strength([tier.plain() for tier in experiment.fleet.tier])
    return {tier: mark.rungs[_rung(place, len(order), len(mark.rungs))] for place, tier in enumerate(order)}


def _rung(place: int, tiers: int, rungs: int) -> int:
    """The ladder stretched to the number of tiers: the weakest on the first rung, the strongest on the last."""
    return rungs - 1 if tiers == 1 else round(place * (rungs - 1) / (tiers - 1))


def _by_tier(experiment: Experiment, key: str, value: int | dict[str, int]) -> dict[str, int]:
    """One number a tier."""
    if isinstance(value, dict):
        _require_tiers(experiment, key, value)
        return value
    return {tier.name: value for tier in experiment.fleet.tier}


def _require_tiers(experiment: Experiment, key: str, value: Mapping[str, Any]) -> None:
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
    """The experiment with these values in a section, where its file does not set them itself."""
    held: BaseModel = getattr(experiment, section)
    update = {key: value for key, value in values.items() if key not in held.model_fields_set}
    changed = type(held).model_validate({**held.model_dump(exclude_unset=True), **update}) if update else held
    return experiment.model_copy(update={section: changed})
