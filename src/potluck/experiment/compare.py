"""Several methods on the same data, partition and fleet: one run a method and seed, each in its own folder.

A comparison that was stopped goes on where it stopped; a method that fails is named with its reason, and the others
go on.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potluck.core.errors import ConfigError, PotluckError
from potluck.experiment import run as runs
from potluck.experiment import store
from potluck.experiment.config import Experiment, Model
from potluck.experiment.listener import Listener
from potluck.experiment.resolve import resolve
from potluck.experiment.run_reader import Run
from potluck.methods import METHODS
from potluck.nets import NETS


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One run of a comparison: its folder, and the reason where it failed."""

    method: str
    seed: int
    path: Path
    reason: str = ""
    note: str = ""


def variants(experiment: Experiment, methods: Sequence[str], seeds: Sequence[int]) -> list[tuple[Experiment, str]]:
    """(experiment, note) for each method and seed; all are resolved once, so that a wrong option stops us now."""
    if not methods:
        raise ConfigError("--methods: expected at least one method")
    for name in [*methods, *experiment.methods]:
        METHODS[name]
    found = [(_variant(experiment, name, seed)) for seed in seeds for name in methods]
    for variant, _ in found:
        resolve(variant)
    return found


def _variant(experiment: Experiment, name: str, seed: int) -> tuple[Experiment, str]:
    """The experiment with another method: its table ``[methods.NAME]``, or ``[method]`` where that is the method."""
    table = dict(experiment.methods.get(name, {}))
    if not table and experiment.method.get("name") == name:
        table = {key: value for key, value in experiment.method.items() if key != "name"}
    model, note = experiment.model, ""
    if "model" in table:
        given = table.pop("model")
        given = {"name": given} if isinstance(given, str) else given
        model = Experiment.of({"model": {**model.model_dump(exclude_unset=True), **given}}).model
    else:
        model, note = _suited(name, model)
    changed = {
        "name": f"{name.replace(':', '.')}-{seed}",
        "seed": seed,
        "model": model,
        "method": {"name": name, **table},
        "methods": {},
    }
    return experiment.model_copy(update=changed), note


OWN = {
    "ode": "its stages are potluck.nets.odenet.OdeStage",
    "deq": "it returns a potluck.nets.deqnet.DeqNet",
}
"""What such a function must make."""


def _suited(method: str, model: Model) -> tuple[Model, str]:
    """The model, or the method's own preset where it needs a net of another kind."""
    traits = METHODS[method].traits
    if traits.kind == "any" or "name" not in model.model_fields_set or NETS[model.name].kind == traits.kind:
        return model, ""
    note = f"{method} needs a net of kind {traits.kind!r}: it takes {traits.preset} instead of {model.name}; "
    note += f'for a net of your own: [methods.{method}] model = "package.module:function"; {OWN[traits.kind]}'
    return model.model_copy(update={"name": traits.preset}), note


def compare(
    variants: Sequence[tuple[Experiment, str]],
    out: Path,
    listener: Callable[[int, Experiment], Listener],
) -> Iterator[Outcome]:
    """Runs each variant that is not finished into ``out/<method>-<seed>`` and yields how it went.

    ``out/comparison.json`` names what was compared, and why what failed did.
    """
    outcomes: list[Outcome] = []
    for number, (experiment, note) in enumerate(variants):
        path = out / experiment.name
        name = str(experiment.method["name"])
        reason = ""
        try:
            _run_or_resume(experiment, path, listener(number, experiment))
        except PotluckError as error:
            reason = str(error)
        except Exception as error:  # a net or a loss of one's own: the other methods go on
            reason = f"{type(error).__name__}: {error}"
        outcomes.append(Outcome(method=name, seed=experiment.seed, path=path, reason=reason, note=note))
        _keep(outcomes, out)
        yield outcomes[-1]


def _keep(outcomes: Sequence[Outcome], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    found = [{**dataclasses.asdict(one), "path": one.path.name} for one in outcomes]
    store.write_whole(out / "comparison.json", (json.dumps({"runs": found}, indent=1) + "\n").encode())


def _run_or_resume(experiment: Experiment, path: Path, listener: Listener) -> Run:
    if not (path / "experiment.toml").exists():
        return runs.run(experiment, path, listener)
    _require_equal(experiment, path)
    if (path / "summary.json").exists():
        done = Run.load(path)
        _ = done.summary, done.rounds, done.ledger  # damaged files are told now
        return done
    return runs.resume(path, listener=listener)


def _require_equal(experiment: Experiment, path: Path) -> None:
    """A folder that is gone on with must hold the same experiment."""
    held, now = _settings(store.read_experiment(path)), _settings(resolve(experiment).experiment)
    if held["rounds"] != now["rounds"] and not experiment.train.schedule_rounds:  # which follows the rounds
        held["train"]["schedule_rounds"] = now["train"]["schedule_rounds"]
    if held != now:
        odd = sorted(key for key in now if held.get(key) != now[key])
        more = f", or add rounds to each run: potluck resume {path} --rounds 1" if odd == ["rounds"] else ""
        raise ConfigError(
            f"{path} holds a run of other settings ({', '.join(odd)} differ): choose another --out, or remove it{more}"
        )


def _settings(experiment: Experiment) -> dict[str, Any]:
    """What must agree: everything but where it ran."""
    return experiment.model_dump(mode="json", exclude={"engine", "methods"})
