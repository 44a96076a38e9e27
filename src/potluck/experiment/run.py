"""Runs an experiment: prepares it, runs its rounds on an engine, and keeps the run folder."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch

from potluck.core.errors import ConfigError, RunFolderError
from potluck.core.version import VERSION
from potluck.engines.contract import Engine
from potluck.engines.federation import Checkpoint
from potluck.engines.local.inprocess import InProcess, torch_threads
from potluck.engines.local.pool import Pool
from potluck.engines.process_memory import keep_freed_memory, peak_rss_bytes
from potluck.engines.round import initial_checkpoint, run_rounds
from potluck.experiment import build, ledger, store, summary
from potluck.experiment.config import Experiment, Stop
from potluck.experiment.deadline import require_deadline
from potluck.experiment.listener import SILENCE, Listener
from potluck.experiment.prepare import Prepared, prepare
from potluck.experiment.resolve import Resolved
from potluck.experiment.run_reader import Run
from potluck.experiment.stop import StopRules
from potluck.experiment.trackers import tracking
from potluck.experiment.worker_setup import PackedShares, make_runtime_in_worker
from potluck.methods.protocol import deployed
from potluck.nets.weights import weights_of
from potluck.nets.zoo import count_parameters


def run(experiment: Experiment, out: str | Path | None = None, listener: Listener = SILENCE) -> Run:
    """Runs the experiment into ``out`` (default ``runs/<name>``). Raises PotluckError; a wrong one writes nothing."""
    path = default_folder(experiment) if out is None else Path(out)
    store.require_free(path)
    with torch_threads(experiment.engine.threads):
        ready = prepare(experiment)
        first = initial_checkpoint(ready.federation)
        require_deadline(ready, first)
        with store.RunFolder.create(path, ready.experiment) as folder:
            if ready.shares.layout is not None:
                folder.write_json("layout.json", dict(ready.shares.layout))
            folder.save_checkpoint(first, facts=facts_of(ready, 0.0), line=None, rows=())
            return go_on(ready, folder, first, listener, engine_of(ready, folder))


def default_folder(experiment: Experiment) -> Path:
    """``runs/<name>``."""
    return Path("runs") / experiment.name


def resume(out: str | Path, more_rounds: int = 0, listener: Listener = SILENCE) -> Run:
    """Goes on after a crash, or for ``more_rounds`` more: bitwise what an unbroken run would have done."""
    path = Path(out)
    experiment, manifest = store.read_experiment(path), store.read_manifest(path)
    if "peer" in manifest["facts"]:
        raise RunFolderError(f"{path} is of one peer of a mesh: the potluck peer command that began it goes on with it")
    if more_rounds:  # asked for in so many words: no rule stops them
        base = manifest["round"] if manifest["facts"]["stopped"] else experiment.rounds
        experiment = experiment.model_copy(update={"rounds": base + more_rounds, "stop": Stop()})
    with torch_threads(experiment.engine.threads), store.RunFolder.open(path) as folder:
        ready = prepare(experiment)
        checkpoint = store.read_checkpoint(path)
        require_same(ready.resolved, manifest, path)
        for device, round in checkpoint.acks.items():
            digests = checkpoint.local_states.get(device, ""), checkpoint.codec.get(device, "")
            folder.local_states.require(device, round, *digests)
        folder.rewind()
        folder.write_experiment(ready.experiment)
        return go_on(ready, folder, checkpoint, listener, engine_of(ready, folder))


def require_same(resolved: Resolved, manifest: dict[str, Any], path: Path) -> None:
    """Raises RunFolderError where the folder is of another experiment."""
    held, now = manifest["facts"]["config"], resolved.digest
    wrote = manifest["facts"].get("version", "an older version")
    if held != now and wrote != VERSION:
        raise RunFolderError(
            f"{path} was written by potluck {wrote}, this is {VERSION}, and they read its experiment.toml unlike "
            f"(config digest {now[:12]}, the run's {held[:12]}): go on with the version that began it, or start anew"
        )
    if held != now:
        raise RunFolderError(
            f"{path}: experiment.toml was changed since the run began (config digest {now[:12]}, "
            f"the run's {held[:12]}); restore it, or start a new run"
        )


def facts_of(ready: Prepared, wall_seconds: float, stopped: str = "") -> dict[str, Any]:
    """What the manifest of a checkpoint says beside it."""
    test = ready.shares.test
    return {
        "version": VERSION,
        "config": ready.resolved.digest,
        "shape": list(test.inputs.shape),
        "classes": test.facts.outputs,
        "problem": ready.problem.as_table(),
        "normalisation": {"mean": test.mean.flatten().tolist(), "deviation": test.deviation.flatten().tolist()},
        "wall_seconds": wall_seconds,
        "stopped": stopped,
    }


def go_on(
    ready: Prepared,
    folder: store.RunFolder,
    checkpoint: Checkpoint,
    listener: Listener,
    engine_here: AbstractContextManager[Engine],
) -> Run:
    """Runs the rounds that are left on an engine, a checkpoint after each, and writes the summary."""
    experiment, federation = ready.experiment, ready.federation
    listener.begins(experiment, folder.path, checkpoint.round, ready.warnings)
    before = store.read_manifest(folder.path)["facts"]
    start, peak = time.perf_counter(), 0
    devices, personal = federation.fleet.devices, federation.method.traits.personal
    parts = summary.own_parts(ready.shares)
    rules = StopRules.of(experiment.stop, ready.measure, devices, store.read_lines(folder.path / "rounds.jsonl"))
    last = checkpoint.round if before["stopped"] and experiment.stop != Stop() else experiment.rounds
    with engine_here as engine, tracking(experiment, folder.path) as track:
        for result in run_rounds(federation, engine, checkpoint, last, rules.enough):
            wall = before["wall_seconds"] + time.perf_counter() - start
            line = summary.round_line(result, devices, ready.measure, personal, wall, parts)
            rows = ledger.as_json(result.rows)
            folder.save_checkpoint(result.checkpoint, facts=facts_of(ready, wall, rules.reason), line=line, rows=rows)
            checkpoint = result.checkpoint
            track(line)
            listener.round_done(line)
        peak = peak_rss_bytes() + (engine.peak_rss_bytes if isinstance(engine, Pool) else 0)
    finish(ready, folder, checkpoint, peak)
    return Run.load(folder.path)


def finish(ready: Prepared, folder: store.RunFolder, checkpoint: Checkpoint, peak: int) -> None:
    """Writes what each tier deploys, and the summary."""
    federation, run = ready.federation, Run.load(folder.path)
    personal, parameters = federation.method.traits.personal, {}
    for tier in ready.resolved.tiers:
        first = next(device for device in federation.fleet.devices if device.tier == tier)
        # A personal net may live on a real device: its size is known all the same.
        net = deployed(federation.method, None, None, first) if personal else run.model(tier)
        parameters[tier] = count_parameters(net)
        if not personal:
            folder.write_frame(f"model/{tier}.safetensors", weights_of(net))
    facts = store.read_manifest(folder.path)["facts"]
    said = {
        "name": ready.experiment.name,
        "method": ready.resolved.method_name,
        "seed": ready.experiment.seed,
        "rounds": checkpoint.round,
        "devices": len(federation.fleet.devices),
        **summary.last_of(run.rounds, ready.measure),
        "parameters": parameters,
        "bytes": ledger.traffic(run.ledger),
        "simulated_seconds": checkpoint.simulated_seconds,
        "wall_seconds": facts["wall_seconds"],
        "peak_rss_bytes": peak,
        "state_sha256": checkpoint.digest(),
        "stopped": facts["stopped"],
    }
    engine_bytes = ledger.engine_traffic(run.ledger)
    folder.write_json("summary.json", {**said, "engine_bytes": engine_bytes} if engine_bytes else said)


@contextmanager
def engine_of(ready: Prepared, folder: store.RunFolder) -> Iterator[Engine]:
    """The engine of ``[engine]``, running."""
    engine, place = ready.experiment.engine, folder.local_states.folder
    if engine.kind == "mesh":
        raise ConfigError('engine.kind = "mesh": each peer runs the same file with potluck peer; here choose "pool"')
    if engine.kind == "flower":
        raise ConfigError('engine.kind = "flower": real devices join what potluck serve starts; here choose "pool"')
    keep_freed_memory()
    if engine.kind == "inprocess":
        yield InProcess(runtime=build.make_runtime(ready.resolved, ready.shares, place))
        return
    arguments = (ready.experiment.model_dump(mode="json"), PackedShares.of(ready.shares), str(place))
    workers = worker_count(ready.resolved)
    with Pool(make_runtime_in_worker, arguments, workers=workers, threads=engine.threads) as pool:
        yield pool


def worker_count(resolved: Resolved) -> int:
    """Processes of the pool: as told, or one per GPU, or one per core this process may use; never more than devices."""
    wanted = resolved.experiment.engine.workers
    if wanted == "auto":
        wanted = torch.cuda.device_count() if build.compute_device(resolved.experiment) == "cuda" else _cores()
    return max(1, min(wanted, resolved.devices))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if "sched_getaffinity" in dir(os) else (os.cpu_count() or 1)
