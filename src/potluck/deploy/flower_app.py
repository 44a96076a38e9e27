"""An experiment as it runs on Flower, and the app that Flower's own commands take."""

from __future__ import annotations

from pathlib import Path

import tomli_w

from potluck.core.errors import ConfigError
from potluck.engines.flower.superlink import APPS, require_flower
from potluck.experiment.config import Experiment
from potluck.experiment.resolve import Resolved, method_name, resolve
from potluck.methods import METHODS
from potluck.wire.frame import canonical

LEAST_DEADLINE_S = 15.0
"""A round of empty messages takes 6 s on Flower, and up to 10."""
PROJECT = {
    "name": "potluck-run",
    "version": "1.0.0",
    "description": "One Potluck experiment",
    "license": {"file": "LICENSE"},
    "dependencies": ["flwr>=1.41,<1.43"],
}


def on_flower(experiment: Experiment) -> Resolved:
    """The experiment as it runs on Flower, resolved: a method among peers goes through a relay.

    Raises ConfigError, or MissingExtraError without Flower.
    """
    require_flower()
    if experiment.fleet.deadline_s < LEAST_DEADLINE_S:
        raise ConfigError(
            f"fleet.deadline_s = {experiment.fleet.deadline_s:g}: on Flower a round of empty messages alone takes 6 to "
            f"10 s; expected {LEAST_DEADLINE_S:g} at least"
        )
    relay = METHODS[method_name(experiment)].traits.peers
    engine = experiment.engine.model_copy(update={"kind": "flower", "relay": relay})
    resolved = resolve(experiment.model_copy(update={"engine": engine}))
    if engine.min_devices > resolved.devices:
        raise ConfigError(f"engine.min_devices = {engine.min_devices}: the fleet has {resolved.devices}")
    return resolved


def write_app(folder: Path, experiment: Experiment, out: Path, run: str) -> None:
    """Writes the app that ``flwr run`` takes: two files, no code. ``out`` is the run folder, on the server."""
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty: name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    config = {"experiment": canonical(experiment.model_dump(mode="json")), "folder": str(out.resolve()), "run": run}
    components = {"serverapp": f"{APPS}:server_app", "clientapp": f"{APPS}:client_app"}
    app = {"publisher": "potluck", "fab-format-version": 1, "flwr-version-target": "1.41.0"}
    table = {"project": PROJECT, "tool": {"flwr": {"app": {**app, "components": components, "config": config}}}}
    (folder / "pyproject.toml").write_text(tomli_w.dumps(table), encoding="utf-8")
    (folder / "LICENSE").write_text("The code of this run is the installed package potluck (Apache-2.0).\n")
