"""The two apps that Flower starts from this package: the run at the server, and a device's answers.

Flower finds ``server_app`` and ``client_app`` by name, in apps.py (see ``write_app``). Both read the experiment from
the run's configuration; what is local to a device (its number, data and folder) stands in its node's configuration.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import tomli_w
import torch

from potluck import __version__
from potluck.core.errors import ConfigError, PotluckError
from potluck.core.types import Device
from potluck.data.shard import Shares
from potluck.data.split import read_shard
from potluck.engines.device import DeviceSide
from potluck.engines.flower import FlowerEngine, make_server_app
from potluck.engines.flower_device import make_client_app
from potluck.engines.flower_hello import Fleetwide
from potluck.engines.inprocess import torch_threads
from potluck.engines.round import begin
from potluck.engines.superlink import APPS
from potluck.experiment import build, store
from potluck.experiment.config import Experiment
from potluck.experiment.resolve import config_digest, method_name, resolved
from potluck.experiment.run import SILENCE, demand_same, facts_of, go_on, prepare
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


def on_flower(experiment: Experiment) -> Experiment:
    """The resolved experiment as it runs on Flower: a method among peers goes through a relay. Raises ConfigError."""
    if experiment.fleet.deadline_s < LEAST_DEADLINE_S:
        raise ConfigError(
            f"fleet.deadline_s = {experiment.fleet.deadline_s:g}: on Flower a round of empty messages alone takes 6 to "
            f"10 s; expected {LEAST_DEADLINE_S:g} at least"
        )
    relay = METHODS[method_name(experiment)].traits.peers
    engine = experiment.engine.model_copy(update={"kind": "flower", "relay": relay})
    experiment = resolved(experiment.model_copy(update={"engine": engine}))
    devices = sum(tier.devices for tier in experiment.fleet.tier)
    if engine.min_devices > devices:
        raise ConfigError(f"engine.min_devices = {engine.min_devices}: the fleet has {devices}")
    return experiment


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


def begin_run(experiment: Experiment, path: Path) -> None:
    """A new run folder with the checkpoint of round 0. Raises PotluckError, writing nothing, if it is not sound."""
    store.demand_free(path)
    with torch_threads(experiment.engine.threads):
        ready = prepare(experiment)
        first = begin(ready.course)
        with store.RunFolder.create(path, ready.experiment) as folder:
            folder.checkpoint(first, facts=facts_of(ready, 0.0), line=None, rows=())


def events_of(path: Path) -> Path:
    """Where the app of a run folder tells what happens: a JSON line an event."""
    return path / "superlink" / "events.jsonl"


def _serve(grid: Any, config: Mapping[str, Any]) -> None:
    """The ServerApp: goes on with the run folder, over the grid."""
    experiment, path = Experiment.of(json.loads(str(config["experiment"]))), Path(str(config["folder"]))
    if not (path / "experiment.toml").exists():
        begin_run(experiment, path)
    events_of(path).parent.mkdir(exist_ok=True)

    def tell(event: Mapping[str, Any]) -> None:
        with events_of(path).open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(dict(event)) + "\n")

    tell({"event": "begins", "pid": os.getpid()})
    try:
        _play(grid, experiment, path, tell)
    except Exception as error:
        ours = isinstance(error, PotluckError)
        tell({"event": "failed", "reason": str(error) if ours else f"{type(error).__name__}: {error}"})
        raise
    tell({"event": "done"})


def _play(grid: Any, experiment: Experiment, path: Path, tell: Any) -> None:
    with torch_threads(experiment.engine.threads), store.RunFolder.open(path) as folder:
        ready, snapshot = prepare(experiment), store.read_snapshot(path)
        demand_same(ready, store.read_manifest(path), path)
        folder.rewind()
        folder.write_experiment(ready.experiment)
        nodes = path / "superlink" / "nodes.json"
        numbers = json.loads(nodes.read_text()) if nodes.exists() else {}
        fleet = Fleetwide(
            devices=ready.course.fleet.devices,
            digest=config_digest(experiment),
            version=__version__,
            numbers={int(node): number for node, number in numbers.items()},
            deadline_s=ready.course.fleet.deadline_s,
            least=experiment.engine.min_devices,
            join_timeout_s=experiment.engine.join_timeout_s,
        )
        side = build.make_side(ready.experiment, ready.shares, folder.own.folder)
        engine = FlowerEngine(grid=grid, fleet=fleet, side=side, tell=tell)
        if snapshot.round < experiment.rounds:
            engine.join()
        go_on(ready, folder, snapshot, SILENCE, nullcontext(engine))


def _hello(config: Mapping[str, Any], node: Mapping[str, Any]) -> dict[str, Any]:
    """Which device this is; ``fault`` says what would keep it from working, before any training."""
    said = {"device": int(node.get("partition-id", -1)), "tier": str(node.get("tier", "")), "version": __version__}
    said |= {"python": platform.python_version(), "digest": "", "fault": ""}
    try:
        experiment = Experiment.of(json.loads(str(config["experiment"])))
        digest = str(node.get("digest", "")) or config_digest(experiment)
        tiers = [tier.name for tier in experiment.fleet.tier]
        said["digest"] = digest
        if said["tier"] and said["tier"] not in tiers:
            raise ConfigError(f"--tier {said['tier']}: the experiment knows {', '.join(tiers)}")
        if digest == config_digest(experiment):
            _work(config, node)
    except (PotluckError, ImportError, ValueError) as error:
        said["fault"] = str(error)
    return said


def _work(config: Mapping[str, Any], node: Mapping[str, Any]) -> tuple[DeviceSide, Device, int]:
    experiment = Experiment.of(json.loads(str(config["experiment"])))
    devices, number = build.make_fleet(experiment).devices, int(node["partition-id"])
    if not 0 <= number < len(devices):
        raise ConfigError(f"device {number}: the fleet has 0 to {len(devices) - 1}")
    kept = str(node.get("store", "")) or f"{config['folder']}/devices"
    folder = Path(kept) / str(config["run"]) / f"{number:06d}"
    side = build.make_side(experiment, _shares(experiment, node, number, len(devices)), folder)
    return side, devices[number], experiment.engine.threads


def _shares(experiment: Experiment, node: Mapping[str, Any], number: int, devices: int) -> Shares:
    """This device's own data in its place; without any, as in a simulation, those of ``[data]``."""
    if not node.get("data"):
        return build.make_shares(experiment)
    data = read_shard(str(node["data"]))
    nothing = data.take(torch.arange(0))
    public = None
    if node.get("public"):
        public = read_shard(str(node["public"]), like=data)
    elif experiment.data.public:
        raise ConfigError("the experiment has a public share: name it with --public npz:FILE")
    test = read_shard(str(node["test"]), part="test", like=data) if node.get("test") else nothing
    train = tuple(data if device == number else nothing for device in range(devices))
    return Shares(train=train, public=public, held=None, test=test, tests=None)


def _note(node: Mapping[str, Any], line: Mapping[str, Any]) -> None:
    """Adds a line about a piece of work to the device's own record, where it has a folder."""
    if node.get("store"):
        folder = Path(str(node["store"]))
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "work.jsonl").open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(dict(line)) + "\n")


server_app = make_server_app(_serve)
client_app = make_client_app(_hello, _work, _note)
