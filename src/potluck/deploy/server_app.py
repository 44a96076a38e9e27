"""The app that Flower starts at the server: it goes on with the run folder, over Flower's grid.

It reads the experiment from the run's configuration, and tells what happens in the run folder, for who watches it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from potluck.core.errors import PotluckError
from potluck.core.version import VERSION
from potluck.engines.flower.engine import FlowerEngine, make_server_app
from potluck.engines.flower.handshake import ExpectedFleet
from potluck.engines.local.inprocess import torch_threads
from potluck.engines.round import initial_checkpoint
from potluck.experiment import build, store
from potluck.experiment.config import Experiment
from potluck.experiment.listener import SILENCE
from potluck.experiment.prepare import prepare
from potluck.experiment.run import facts_of, go_on, require_same


def begin_run(experiment: Experiment, path: Path) -> None:
    """A new run folder with the checkpoint of round 0. Raises PotluckError, writing nothing, if it is not sound."""
    store.require_free(path)
    with torch_threads(experiment.engine.threads):
        ready = prepare(experiment)
        first = initial_checkpoint(ready.federation)
        with store.RunFolder.create(path, ready.experiment) as folder:
            folder.save_checkpoint(first, facts=facts_of(ready, 0.0), line=None, rows=())


def events_of(path: Path) -> Path:
    """Where the app of a run folder tells what happens: a JSON line an event."""
    return path / "superlink" / "events.jsonl"


def _serve(grid: Any, config: Mapping[str, Any]) -> None:
    experiment, path = Experiment.of(json.loads(str(config["experiment"]))), Path(str(config["folder"]))
    if not (path / "experiment.toml").exists():
        begin_run(experiment, path)
    events_of(path).parent.mkdir(exist_ok=True)

    def tell(event: Mapping[str, Any]) -> None:
        with events_of(path).open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(dict(event)) + "\n")

    tell({"event": "begins", "pid": os.getpid()})
    try:
        _go_on(grid, experiment, path, tell)
    except Exception as error:
        ours = isinstance(error, PotluckError)
        tell({"event": "failed", "reason": str(error) if ours else f"{type(error).__name__}: {error}"})
        raise
    tell({"event": "done"})


def _go_on(grid: Any, experiment: Experiment, path: Path, tell: Any) -> None:
    with torch_threads(experiment.engine.threads), store.RunFolder.open(path) as folder:
        ready, checkpoint = prepare(experiment), store.read_checkpoint(path)
        require_same(ready.resolved, store.read_manifest(path), path)
        folder.rewind()
        folder.write_experiment(ready.experiment)
        nodes = path / "superlink" / "nodes.json"
        numbers = json.loads(nodes.read_text()) if nodes.exists() else {}
        fleet = ExpectedFleet(
            devices=ready.federation.fleet.devices,
            digest=ready.resolved.digest,
            version=VERSION,
            numbers={int(node): number for node, number in numbers.items()},
            deadline_s=ready.federation.fleet.deadline_s,
            least=experiment.engine.min_devices,
            join_timeout_s=experiment.engine.join_timeout_s,
        )
        runtime = build.make_runtime(ready.resolved, ready.shares, folder.local_states.folder)
        engine = FlowerEngine(grid=grid, fleet=fleet, runtime=runtime, tell=tell)
        if checkpoint.round < experiment.rounds:
            engine.join()
        go_on(ready, folder, checkpoint, SILENCE, nullcontext(engine))


server_app = make_server_app(_serve)
