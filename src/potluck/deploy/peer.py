"""One peer of a mesh: its own data, its own run folder, and the updates of the others over real links.

Each peer runs the same experiment file. What a simulated peer computes, a real one does: the same update, the same
local state. The command that started a peer goes on where it stopped.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from potluck.core.errors import ConfigError, RunFolderError, TrainingError, WireError
from potluck.core.types import Device
from potluck.data.shares import Shares
from potluck.deploy.split import read_shard
from potluck.engines.contract import Request
from potluck.engines.device import DeviceRuntime
from potluck.engines.evaluation import evaluate_models
from potluck.engines.federation import Checkpoint, Federation
from potluck.engines.local.inprocess import InProcess, torch_threads
from potluck.engines.mesh.links import Links
from potluck.engines.mesh.mesh import Answer, Mesh, open_mesh
from potluck.engines.peer_round import receive_request, spec_of_updates
from potluck.engines.process_memory import peak_rss_bytes
from potluck.engines.result import RoundResult, ledger_row, notes_of
from potluck.experiment import build, ledger, store, summary
from potluck.experiment.config import Experiment
from potluck.experiment.listener import SILENCE, Listener
from potluck.experiment.prepare import Prepared, found_sound
from potluck.experiment.resolve import Resolved, resolve
from potluck.experiment.run import facts_of, finish
from potluck.experiment.run_reader import Run

RUN_LETTERS = 16
MANY = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerOptions:
    """What is local to a peer: its links and its files, as ``npz:FILE``. ``test`` and ``public`` may be empty."""

    links: Links
    data: str
    public: str
    test: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalPeer:
    """A peer at work: the run as it is found sound, the peer's device, its runtime, and the run with it alone."""

    ready: Prepared
    me: Device
    runtime: DeviceRuntime
    alone: Federation
    deadline_s: float


def run_peer(
    experiment: Experiment, options: PeerOptions, out: str | Path | None = None, listener: Listener = SILENCE
) -> Run:
    """Plays this peer's part into ``out`` (default ``runs/<name>-peer-<id>``), or goes on with what is there."""
    path = Path("runs") / f"{experiment.name}-peer-{options.links.id}" if out is None else Path(out)
    with torch_threads(experiment.engine.threads):
        ready = prepare_peer(experiment, options)
        going_on = (path / "experiment.toml").exists()
        with store.RunFolder.open(path) if going_on else store.RunFolder.create(path, ready.experiment) as folder:
            checkpoint = _go_on_from(folder, ready, options) if going_on else Checkpoint(round=0, state={})
            if not going_on:
                folder.save_checkpoint(checkpoint, facts=_facts(ready, options, 0.0), line=None, rows=())
            return _go_on(_here(ready, options, folder), options, folder, checkpoint, listener)


def run_of(resolved: Resolved) -> str:
    """What the keys of the mesh begin with: peers of another experiment do not hear one another."""
    return f"potluck/{resolved.digest[:RUN_LETTERS]}"


def prepare_peer(experiment: Experiment, options: PeerOptions) -> Prepared:
    """The experiment found sound for this peer, with its own data. Raises ConfigError, DataError or ModelError."""
    resolved = resolve(experiment)
    if not resolved.traits.peers or resolved.experiment.engine.relay:
        raise ConfigError(
            f'method.name = "{resolved.method_name}": potluck peer is for methods among peers, without a relay'
        )
    devices, least = resolved.devices, resolved.experiment.engine.min_peers
    if least > devices - 1:
        raise ConfigError(f"engine.min_peers = {least}: expected 0 to {devices - 1}")
    options.links.check(devices)
    ready = found_sound(resolved, _shares(resolved, options))
    return replace(ready, warnings=[*ready.warnings, *_many(devices)])


def _many(devices: int) -> list[str]:
    """A warning where a mesh costs much more than a relay would."""
    if devices <= MANY:
        return []
    return [
        f"{devices} peers: each sends its post {devices - 1} times a round. On thin up-links a relay is cheaper, which "
        "takes one post of each and sends one sum back: [engine] relay = true, with potluck serve and potluck join"
    ]


def _shares(resolved: Resolved, options: PeerOptions) -> Shares:
    """This peer's share in its place, nothing in the others'."""
    data = read_shard(options.data)
    nothing = data.take(torch.arange(0))
    public = read_shard(options.public, like=data) if options.public else build.make_shares(resolved).public
    test = read_shard(options.test, part="test", like=data) if options.test else nothing
    train = tuple(data if peer == options.links.id else nothing for peer in range(resolved.devices))
    return Shares(train=train, public=public, held=None, test=test, tests=None)


def _here(ready: Prepared, options: PeerOptions, folder: store.RunFolder) -> LocalPeer:
    federation, me = ready.federation, ready.federation.fleet.devices[options.links.id]
    return LocalPeer(
        ready=ready,
        me=me,
        runtime=build.make_runtime(ready.resolved, ready.shares, folder.local_states.folder),
        alone=replace(federation, fleet=replace(federation.fleet, devices=(me,))),
        deadline_s=ready.experiment.engine.deadline_s or federation.fleet.deadline_s,
    )


def _facts(ready: Prepared, options: PeerOptions, wall_seconds: float) -> dict[str, Any]:
    return {**facts_of(ready, wall_seconds), "peer": options.links.id}


def _go_on_from(folder: store.RunFolder, ready: Prepared, options: PeerOptions) -> Checkpoint:
    """The last checkpoint, which must be of this experiment and this peer. Raises RunFolderError."""
    facts, checkpoint = store.read_manifest(folder.path)["facts"], store.read_checkpoint(folder.path)
    now = ready.resolved.digest
    if (facts.get("peer"), facts["config"]) != (options.links.id, now):
        raise RunFolderError(
            f"{folder.path} is of peer {facts.get('peer')} and config {facts['config'][:12]}, this is peer "
            f"{options.links.id} and config {now[:12]}: choose another --out"
        )
    for device, round in checkpoint.acks.items():
        folder.local_states.require(device, round, checkpoint.local_states.get(device, ""), "")
    folder.rewind()
    return checkpoint


def _go_on(
    here: LocalPeer, options: PeerOptions, folder: store.RunFolder, checkpoint: Checkpoint, listener: Listener
) -> Run:
    """The rounds that are left, a checkpoint after each; then stays for the others."""
    experiment, federation = here.ready.experiment, here.ready.federation
    engine, parts = (
        experiment.engine,
        {device: part for device, part in summary.own_parts(here.ready.shares).items() if device == here.me.id},
    )
    others = [device.id for device in federation.fleet.devices if device != here.me]
    before, start = store.read_manifest(folder.path)["facts"]["wall_seconds"], time.perf_counter()
    _require_small(here, options)
    with open_mesh(options.links, run_of(here.ready.resolved), len(others) + 1) as mesh:
        listener.begins(experiment, folder.path, checkpoint.round, here.ready.warnings)
        if checkpoint.round < experiment.rounds:
            mesh.join(engine.min_peers, engine.join_timeout_s)
        while checkpoint.round < experiment.rounds:
            result = _round(here, mesh, checkpoint)
            checkpoint = result.checkpoint
            final = checkpoint.round == experiment.rounds
            if len(here.ready.shares.test) and (final or checkpoint.round % federation.evaluate_every == 0):
                evaluate_models(
                    here.alone,
                    InProcess(runtime=here.runtime),
                    result,
                    samples=0 if final else federation.evaluate_samples,
                )
            wall = before + time.perf_counter() - start
            line = summary.round_line(result, [here.me], here.ready.measure, True, wall, parts)
            rows = ledger.as_json(result.rows)
            folder.save_checkpoint(checkpoint, facts=_facts(here.ready, options, wall), line=line, rows=rows)
            listener.round_done(line)
        finish(here.ready, folder, checkpoint, peak_rss_bytes())
        mesh.linger(others, engine.linger_s)
    return Run.load(folder.path)


def _require_small(here: LocalPeer, options: PeerOptions) -> None:
    """Raises ConfigError for updates beyond ``max_frame_mb``."""
    federation = here.ready.federation
    size = federation.messages.up.limit(spec_of_updates(federation, here.me, 1))
    if size > options.links.max_frame_mb * 2**20:
        raise ConfigError(
            f"engine.max_frame_mb = {options.links.max_frame_mb}: an update may have {size / 2**20:.1f} MB; raise it"
        )


def _round(here: LocalPeer, mesh: Mesh, before: Checkpoint) -> RoundResult:
    """One round of this peer. Raises TrainingError where its own training fails."""
    number, me, federation, start = before.round + 1, here.me, here.ready.federation, time.perf_counter()
    cohort = [device.id for device in federation.fleet.cohort(number)]
    result = RoundResult(checkpoint=replace(before, round=number), cohort=cohort)
    if me.id not in cohort:
        return result
    ask, _ = federation.messages.write_down({}, number)
    ack = before.acks.get(me.id, 0)
    published = here.runtime.answer(Request(device=me, round=number, verb="post", frame=ask, ack=ack))
    if published.status != "ok":
        raise TrainingError(published.reason)
    frame = bytes(published.frame)
    mesh.hold(number, frame)
    spec = spec_of_updates(federation, me, number)
    _, header = federation.messages.read_up(frame, number, me.id, spec)

    def check(peer: int, data: bytes) -> str:
        try:
            federation.messages.read_up(data, number, peer, spec)
        except WireError as error:
            return str(error)
        return ""

    others = [peer for peer in cohort if peer != me.id]
    answers = mesh.gather(number, others, here.deadline_s, check)
    inbox = {peer: answer.frame for peer, answer in answers.items() if answer.status == "ok"}
    request = receive_request(me, number, ack, inbox)
    done = here.runtime.answer(request)
    if done.status != "ok":
        raise TrainingError(done.reason)
    _, reply = federation.messages.read_up(done.frame, number, me.id, {})
    result.notes[me.id] = notes_of({}, reply.facts, me)
    result.seconds = time.perf_counter() - start
    copies = len(others)
    sizes = copies * header.tensor_bytes, copies * len(frame)
    result.rows.append(ledger_row(replace(request, verb="post"), "up", *sizes, result.seconds, "ok", ""))
    received = len(inbox) * header.tensor_bytes, sum(len(data) for data in inbox.values())
    result.rows.append(ledger_row(request, "down", *received, result.seconds, "ok", ""))
    _note_missing(here, result, request, answers)
    acks, local_states = {me.id: number}, {me.id: str(reply.facts.get("own", ""))}
    seconds = before.simulated_seconds + result.seconds
    result.checkpoint = Checkpoint(
        round=number, state={}, acks=acks, local_states=local_states, simulated_seconds=seconds
    )
    return result


def _note_missing(here: LocalPeer, result: RoundResult, request: Request, answers: Mapping[int, Answer]) -> None:
    """A ledger row, in the other peer's name, for each update that did not come."""
    for peer, answer in answers.items():
        if answer.status != "ok":
            asked = replace(request, device=here.ready.federation.fleet.devices[peer], verb="post")
            result.rows.append(ledger_row(asked, "up", 0, 0, answer.seconds, answer.status, answer.reason))
