"""Runs an experiment: builds it, plays its rounds on an engine, and keeps the run folder."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from potluck import __version__
from potluck.core.errors import ConfigError, RunFolderError
from potluck.data.shard import Shares
from potluck.engines.course import Course, Snapshot
from potluck.engines.inprocess import InProcess, torch_threads
from potluck.engines.memory import keep_freed_memory, peak_rss_bytes
from potluck.engines.pool import Pool
from potluck.engines.round import begin, play
from potluck.engines.seam import Engine
from potluck.experiment import build, record, store
from potluck.experiment.config import Experiment, Stop
from potluck.experiment.deadline import demand_deadline
from potluck.experiment.elsewhere import Packed, make_side_elsewhere
from potluck.experiment.loaded import Run
from potluck.experiment.resolve import config_digest, given_options, resolved
from potluck.experiment.stop import StopRules
from potluck.experiment.track import tracker
from potluck.methods.protocol import deployed
from potluck.models.nets import weights_of
from potluck.models.zoo import count_parameters


class Listener(Protocol):
    """Whoever wants to see a run as it goes."""

    def begins(self, experiment: Experiment, folder: Path, first_round: int, warnings: Sequence[str]) -> None:
        """The first round is about to start."""

    def round_done(self, line: dict[str, Any]) -> None:
        """A round is over and stands in the checkpoint; ``line`` is its line of rounds.jsonl."""


class Silence:
    """A listener that says nothing."""

    def begins(self, experiment: Experiment, folder: Path, first_round: int, warnings: Sequence[str]) -> None:
        return

    def round_done(self, line: dict[str, Any]) -> None:
        return


SILENCE: Listener = Silence()


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """An experiment that has been found sound, with its data."""

    experiment: Experiment
    shares: Shares
    course: Course
    warnings: Sequence[str]


def prepare(experiment: Experiment) -> Prepared:
    """Resolves, loads the data and checks everything that can be checked before a run. Writes nothing."""
    asked, experiment = experiment, resolved(experiment)
    shares = build.make_shares(experiment)
    warnings = build.check(experiment, shares, given_options(asked))
    nets = build.make_nets(experiment, shares.test.shape, shares.test.classes)
    course = build.make_course(experiment, shares, build.make_method(experiment, nets))
    return Prepared(experiment=experiment, shares=shares, course=course, warnings=warnings)


def run(experiment: Experiment, out: str | Path | None = None, listener: Listener = SILENCE) -> Run:
    """Runs the experiment into ``out`` (default ``runs/<name>``). Raises PotluckError; a wrong one writes nothing."""
    path = default_folder(experiment) if out is None else Path(out)
    store.demand_free(path)
    with torch_threads(experiment.engine.threads):
        ready = prepare(experiment)
        first = begin(ready.course)
        demand_deadline(ready.experiment, ready.course, ready.shares, first)
        with store.RunFolder.create(path, ready.experiment) as folder:
            folder.checkpoint(first, facts=facts_of(ready, 0.0), line=None, rows=())
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
        snapshot = store.read_snapshot(path)
        demand_same(ready, manifest, path)
        for device, round in snapshot.acks.items():
            folder.own.demand(device, round, snapshot.own.get(device, ""), snapshot.codec.get(device, ""))
        folder.rewind()
        folder.write_experiment(ready.experiment)
        return go_on(ready, folder, snapshot, listener, engine_of(ready, folder))


def demand_same(ready: Prepared, manifest: dict[str, Any], path: Path) -> None:
    """Raises RunFolderError where the folder is of another experiment."""
    held, now = manifest["facts"]["config"], config_digest(ready.experiment)
    wrote = manifest["facts"].get("version", "an older version")
    if held != now and wrote != __version__:
        raise RunFolderError(
            f"{path} was written by potluck {wrote}, this is {__version__}, and they read its experiment.toml unlike "
            f"(config digest {now[:12]}, the run's {held[:12]}): go on with the version that began it, or start anew"
        )
    if held != now:
        raise RunFolderError(
            f"{path}: experiment.toml was changed since the run began (config digest {now[:12]}, "
            f"the run's {held[:12]}); restore it, or start a new run"
        )


def facts_of(ready: Prepared, wall_seconds: float, stopped: str = "") -> dict[str, Any]:
    """What a checkpoint says beside the snapshot."""
    test = ready.shares.test
    return {
        "version": __version__,
        "config": config_digest(ready.experiment),
        "shape": list(test.shape),
        "classes": test.classes,
        "wall_seconds": wall_seconds,
        "stopped": stopped,
    }


def go_on(
    ready: Prepared,
    folder: store.RunFolder,
    snapshot: Snapshot,
    listener: Listener,
    engine_here: AbstractContextManager[Engine],
) -> Run:
    """Plays the rounds that are left on an engine, a checkpoint after each, and writes the summary."""
    experiment, course = ready.experiment, ready.course
    listener.begins(experiment, folder.path, snapshot.round, ready.warnings)
    before = store.read_manifest(folder.path)["facts"]
    start, peak = time.perf_counter(), 0
    devices, personal = course.fleet.devices, course.method.traits.personal
    parts = record.own_parts(ready.shares)
    rules = StopRules.of(experiment.stop, devices, store.read_lines(folder.path / "rounds.jsonl"))
    last = snapshot.round if before["stopped"] and experiment.stop != Stop() else experiment.rounds
    with engine_here as engine, tracker(experiment, folder.path) as track:
        for played in play(course, engine, snapshot, last, rules.enough):
            wall = before["wall_seconds"] + time.perf_counter() - start
            line = record.round_line(played, devices, personal, wall, parts)
            rows = record.ledger_rows(played.rows)
            folder.checkpoint(played.snapshot, facts=facts_of(ready, wall, rules.reason), line=line, rows=rows)
            snapshot = played.snapshot
            track(line)
            listener.round_done(line)
        peak = peak_rss_bytes() + (engine.peak_rss_bytes if isinstance(engine, Pool) else 0)
    finish(ready, folder, snapshot, peak)
    return Run.load(folder.path)


def finish(ready: Prepared, folder: store.RunFolder, snapshot: Snapshot, peak: int) -> None:
    """Writes what each tier deploys, and the summary."""
    experiment, course = ready.experiment, ready.course
    run = Run.load(folder.path)
    parameters = {}
    for tier in experiment.fleet.tier:
        first = next(device for device in course.fleet.devices if device.tier == tier.name)
        personal = (
            course.method.traits.personal
        )  # a personal net may live on a real device: its size is known all the same
        net = deployed(course.method, None, None, first) if personal else run.model(tier.name)
        parameters[tier.name] = count_parameters(net)
        if not personal:
            folder.write_frame(f"model/{tier.name}.safetensors", weights_of(net))
    lines, ledger = run.rounds, run.ledger
    last: dict[str, Any] = next((line for line in reversed(lines) if "accuracy" in line), {})
    accuracy = {key: last.get("accuracy", {}).get(key) for key in ("mean", "worst", "p10", "tiers")}
    accuracy |= {key: last.get("accuracy", {}).get(key, {}).get("mean") for key in ("ad", "al")}
    summary = {
        "name": experiment.name,
        "method": experiment.method["name"],
        "seed": experiment.seed,
        "rounds": snapshot.round,
        "devices": len(course.fleet.devices),
        "accuracy": accuracy,
        "parameters": parameters,
        "bytes": record.traffic(ledger),
        "simulated_seconds": snapshot.simulated_seconds,
        "wall_seconds": store.read_manifest(folder.path)["facts"]["wall_seconds"],
        "peak_rss_bytes": peak,
        "state_sha256": snapshot.digest(),
        "stopped": store.read_manifest(folder.path)["facts"]["stopped"],
    }
    engine_bytes = record.engine_traffic(ledger)
    if engine_bytes:
        summary["engine_bytes"] = engine_bytes
    folder.write_json("summary.json", summary)


@contextmanager
def engine_of(ready: Prepared, folder: store.RunFolder) -> Iterator[Engine]:
    """The engine of ``[engine]``, running."""
    experiment, shares, own = ready.experiment, ready.shares, folder.own.folder
    if experiment.engine.kind == "mesh":
        raise ConfigError('engine.kind = "mesh": each peer runs the same file with potluck peer; here choose "pool"')
    if experiment.engine.kind == "flower":
        raise ConfigError('engine.kind = "flower": real devices join what potluck serve starts; here choose "pool"')
    keep_freed_memory()
    if experiment.engine.kind == "inprocess":
        yield InProcess(side=build.make_side(experiment, shares, own))
        return
    arguments = (experiment.model_dump(mode="json"), Packed.of(shares), str(own))
    with Pool(
        make_side_elsewhere, arguments, workers=worker_count(experiment), threads=experiment.engine.threads
    ) as pool:
        yield pool


def worker_count(experiment: Experiment) -> int:
    """Processes of the pool: as told, or one per GPU, or one per core this process may use; never more than devices."""
    wanted = experiment.engine.workers
    if wanted == "auto":
        wanted = torch.cuda.device_count() if build.compute_device(experiment) == "cuda" else _cores()
    return max(1, min(wanted, sum(tier.devices for tier in experiment.fleet.tier)))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if "sched_getaffinity" in dir(os) else (os.cpu_count() or 1)
