"""Settings that fit: each tier that does not fit is given less depth, rank or width, and then fewer epochs.

A tier that fits keeps its setting. The steps are those of the option's own ladder (steps 2, 4, 8: half as many; rank
factor 8, 4, 1: twice as large), downwards from what the file says, and each is planned anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from potluck.core.errors import ConfigError, ModelError, PotluckError
from potluck.core.options import Ladder
from potluck.experiment.compare import variants
from potluck.experiment.config import Experiment
from potluck.experiment.options import option_marks
from potluck.experiment.resolve import resolve
from potluck.methods import METHODS
from potluck.planning.plan import TierPlan, plan_one

MOST_STEPS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """What one method was given: options by name and tier, epochs by tier, and a line for what does not fit still."""

    method: str
    options: Mapping[str, Mapping[str, Any]]
    epochs: Mapping[str, int]
    changes: Sequence[str]
    misfits: Sequence[str]


def fit(experiment: Experiment, begins: Callable[[str], None] = lambda name: None) -> Fitted:
    """What fits one method of a comparison (``compare.variants`` makes them). Raises PotluckError if it cannot run."""
    name, changes, misfits = str(experiment.method["name"]), list[str](), list[str]()
    asked = resolve(experiment).experiment
    made = asked
    for tier in plan_one(asked).tiers:
        if tier.fits:
            continue
        begins(f"{name}, {tier.tier}")
        last, tried, told = tier, made, "what it has"
        for smaller, said in _smaller(made, tier):
            try:
                (last,) = plan_one(smaller, tiers=[tier.tier]).tiers
            except (ConfigError, ModelError):
                break  # below the least that the option, or the net, allows
            tried, told = smaller, said
            if last.fits:
                made = smaller
                changes.append(f"{name}, {tier.tier}: {said}")
                break
        if not last.fits:
            misfits.append(f"{name}, {tier.tier}, even with {told}: {_why(last, tried)}")
    ladders = _ladders(name)
    options = {key: made.method[key] for key in ladders if made.method[key] != asked.method[key]}
    epochs = made.train.epochs if made.train.epochs != asked.train.epochs else {}
    assert isinstance(epochs, dict), "the experiment is resolved"
    return Fitted(method=name, options=options, epochs=epochs, changes=changes, misfits=misfits)


def _ladders(method: str) -> dict[str, Ladder]:
    return {key: mark for key, mark in option_marks(METHODS[method]).items() if isinstance(mark, Ladder)}


def _smaller(experiment: Experiment, tier: TierPlan) -> Iterator[tuple[Experiment, str]]:
    """Ever less for one tier, with what was changed in words: along the method's ladder, then fewer epochs."""
    told: list[str] = []
    for key, mark in _ladders(str(experiment.method["name"])).items():
        ratio = mark.rungs[0] / mark.rungs[1]
        first = experiment.method[key][tier.tier]
        value = first
        for _ in range(MOST_STEPS):
            less = _times(value, ratio)
            if less == value:
                break
            value = less
            table = {**experiment.method[key], tier.tier: value}
            experiment = experiment.model_copy(update={"method": {**experiment.method, key: table}})
            yield experiment, f"{key} {_plain(first)} -> {_plain(value)}"
        told.append(f"{key} {_plain(first)} -> {_plain(value)}")
    epochs = experiment.train.epochs
    assert isinstance(epochs, dict), "the experiment is resolved"
    count = first = epochs[tier.tier]
    while count > 1 and not tier.fits_deadline:
        count //= 2
        train = experiment.train.model_copy(update={"epochs": {**epochs, tier.tier: count}})
        yield experiment.model_copy(update={"train": train}), ", ".join([*told, f"epochs {first} -> {count}"])


def _times(value: Any, ratio: float) -> Any:
    if isinstance(value, list):
        return [_times(part, ratio) for part in value]
    return max(1, int(value * ratio)) if isinstance(value, int) else value * ratio


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _why(tier: TierPlan, experiment: Experiment) -> str:
    """What is still too much, and what a person can do."""
    section = next(found for found in experiment.fleet.tier if found.name == tier.tier)
    said = []
    if not tier.fits_memory:
        said.append(
            f"needs {tier.memory_bytes / 1e6:.1f} MB of {section.memory_mb:g}: lower train.batch_size "
            f"(now {experiment.train.batch_size}), or choose a smaller net"
        )
    if not tier.fits_deadline:
        said.append(
            f"needs {tier.seconds:.0f} s of {experiment.fleet.deadline_s:g}, {tier.work_seconds:.0f} of them work: "
            "raise fleet.deadline_s, choose a smaller net, or put codecs into [wire]"
        )
    return "; ".join(said)


def fit_all(
    experiment: Experiment, methods: Sequence[str], begins: Callable[[str], None] = lambda name: None
) -> tuple[Experiment, list[Fitted]]:
    """(the experiment with what fits each method, what was found). A method that cannot run is left out."""
    found: list[Fitted] = []
    for variant, _ in variants(experiment, methods, [experiment.seed]):
        begins(f"fitting {variant.method['name']}")
        try:
            found.append(fit(variant, begins))
        except PotluckError:
            continue  # the plan of the same methods says why
    return Experiment.of(_table(experiment, found)), found


def _table(experiment: Experiment, fits: Sequence[Fitted]) -> dict[str, Any]:
    """The experiment's own table, with what was fitted: a tier's epochs are the fewest that any method needs."""
    table = experiment.model_dump(mode="json", exclude_unset=True)
    for found in fits:
        if not found.options:
            continue
        options = {key: dict(value) for key, value in found.options.items()}
        own = experiment.method.get("name") == found.method
        if own:
            table["method"] = {**experiment.method, **options}
        if found.method in experiment.methods or not own:
            tables = table.setdefault("methods", {})
            tables[found.method] = {**tables.get(found.method, {}), **options}
    epochs: dict[str, int] = {}
    for found in fits:
        for tier, count in found.epochs.items():
            epochs[tier] = min(count, epochs.get(tier, count))
    if epochs:
        table["train"] = {**table.get("train", {}), "epochs": epochs}
    return table


def require_place(place: Path, *, overwrite: bool) -> None:
    """Raises ConfigError where there is a file already and ``overwrite`` is not set."""
    if place.exists() and not overwrite:
        raise ConfigError(f"{place} exists already: choose another with --out, or say --overwrite")


def write_fitted(experiment: Experiment, source: Path, place: Path, *, overwrite: bool) -> None:
    """Writes a new experiment file. Raises ConfigError as ``demand_place`` does, or where it cannot be written."""
    require_place(place, overwrite=overwrite)
    text = f"# {source.name} with settings that fit each tier's memory and the deadline (potluck plan --fit).\n"
    try:
        place.write_text(text + tomli_w.dumps(experiment.model_dump(mode="json", exclude_unset=True)), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--out {place}: cannot be written: {error.strerror or error}") from None
