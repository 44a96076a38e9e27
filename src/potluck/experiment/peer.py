"""One peer of a mesh: its own data, its own run folder, and the posts of the others over real links.

Each peer runs the same experiment file. What a simulated peer computes, a real one does: the same post, the same own
state. The command that started a peer goes on where it stopped.
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
from potluck.data.shard import Shares
from potluck.data.split import read_shard
from potluck.engines.course import Course, Played, Snapshot, notes_of, row
from potluck.engines.device import DeviceSide
from potluck.engines.inprocess import InProcess, torch_threads
from potluck.engines.links import Links
from potluck.engines.measure import measure
from potluck.engines.memory import peak_rss_bytes
from potluck.engines.mesh import Answer, Mesh, open_mesh
from potluck.engines.peers import absorb_order, spec_of_posts
from potluck.engines.seam import Order
from potluck.experiment import build, record, store
from potluck.experiment.config import Experiment
from potluck.experiment.loaded import Run
from potluck.experiment.resolve import config_digest, given_options, method_name, resolved
from potluck.experiment.run import SILENCE, Listener, Prepared, facts_of, finish
from potluck.methods import METHODS

RUN_LETTERS = 16
MANY = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What is local to a peer: its links and its files, as ``npz:FILE``. ``test`` and ``public`` may be empty."""

    links: Links
    data: str
    public: str
    test: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Here:
    """A peer at work: the run as it is found sound, the peer's device, its side, and the run with it alone."""

    ready: Prepared
    me: Device
    side: DeviceSide
    alone: Course
    deadline_s: float


def run_peer(experiment: Experiment, place: Place, out: str | Path | None = None, listener: Listener = SILENCE) -> Run:
    """Plays this peer's part into ``out`` (default ``runs/<name>-peer-<id>``), or goes on with what is there."""
    path = Path("runs") / f"{experiment.name}-peer-{place.links.id}" if out is None else Path(out)
    with torch_threads(experiment.engine.threads):
        ready = prepare_peer(experiment, place)
        going_on = (path / "experiment.toml").exists()
        with store.RunFolder.open(path) if going_on else store.RunFolder.create(path, ready.experiment) as folder:
            snapshot = _go_on_from(folder, ready, place) if going_on else Snapshot(round=0, state={})
            if not going_on:
                folder.checkpoint(snapshot, facts=_facts(ready, place, 0.0), line=None, rows=())
            return _play(_here(ready, place, folder), place, folder, snapshot, listener)


def run_of(experiment: Experiment) -> str:
    """What the keys of the mesh begin with: peers of another experiment do not hear one another."""
    return f"potluck/{config_digest(experiment)[:RUN_LETTERS]}"


def prepare_peer(experiment: Experiment, place: Place) -> Prepared:
    """The experiment found sound for this peer, with its own data. Raises ConfigError, DataError or ModelError."""
    asked, experiment = experiment, resolved(experiment)
    name = method_name(experiment)
    if not METHODS[name].traits.peers or experiment.engine.relay:
        raise ConfigError(f'method.name = "{name}": potluck peer is for methods among peers, without a relay')
    devices = sum(tier.devices for tier in experiment.fleet.tier)
    if experiment.engine.min_peers > devices - 1:
        raise ConfigError(f"engine.min_peers = {experiment.engine.min_peers}: expected 0 to {devices - 1}")
    place.links.check(devices)
    shares = _shares(experiment, place, devices)
    warnings = [*build.check(experiment, shares, given_options(asked)), *_many(devices)]
    nets = build.make_nets(experiment, shares.test.shape, shares.test.classes)
    course = build.make_course(experiment, shares, build.make_method(experiment, nets))
    return Prepared(experiment=experiment, shares=shares, course=course, warnings=warnings)


def _many(devices: int) -> list[str]:
    """A warning where a mesh costs much more than a relay would."""
    if devices <= MANY:
        return []
    return [
        f"{devices} peers: each sends its post {devices - 1} times a round. On thin up-links a relay is cheaper, which "
        "takes one post of each and sends one sum back: [engine] relay = true, with potluck serve and potluck join"
    ]


def _shares(experiment: Experiment, place: Place, devices: int) -> Shares:
    """This peer's share in its place, nothing in the others'."""
    data = read_shard(place.data)
    nothing = data.take(torch.arange(0))
    public = read_shard(place.public, like=data) if place.public else build.make_shares(experiment).public
    test = read_shard(place.test, part="test", like=data) if place.test else nothing
    train = tuple(data if peer == place.links.id else nothing for peer in range(devices))
    return Shares(train=train, public=public, held=None, test=test, tests=None)


def _here(ready: Prepared, place: Place, folder: store.RunFolder) -> Here:
    course, me = ready.course, ready.course.fleet.devices[place.links.id]
    return Here(
        ready=ready,
        me=me,
        side=build.make_side(ready.experiment, ready.shares, folder.own.folder),
        alone=replace(course, fleet=replace(course.fleet, devices=(me,))),
        deadline_s=ready.experiment.engine.deadline_s or course.fleet.deadline_s,
    )


def _facts(ready: Prepared, place: Place, wall_seconds: float) -> dict[str, Any]:
    return {**facts_of(ready, wall_seconds), "peer": place.links.id}


def _go_on_from(folder: store.RunFolder, ready: Prepared, place: Place) -> Snapshot:
    """The last checkpoint, which must be of this experiment and this peer. Raises RunFolderError."""
    facts, snapshot = store.read_manifest(folder.path)["facts"], store.read_snapshot(folder.path)
    now = config_digest(ready.experiment)
    if (facts.get("peer"), facts["config"]) != (place.links.id, now):
        raise RunFolderError(
            f"{folder.path} is of peer {facts.get('peer')} and config {facts['config'][:12]}, this is peer "
            f"{place.links.id} and config {now[:12]}: choose another --out"
        )
    for device, round in snapshot.acks.items():
        folder.own.demand(device, round, snapshot.own.get(device, ""), "")
    folder.rewind()
    return snapshot


def _play(here: Here, place: Place, folder: store.RunFolder, snapshot: Snapshot, listener: Listener) -> Run:
    """The rounds that are left, a checkpoint after each; then stays for the others."""
    experiment, course = here.ready.experiment, here.ready.course
    engine, parts = experiment.engine, {here.me.id: record.own_parts(here.ready.shares)[here.me.id]}
    others = [device.id for device in course.fleet.devices if device != here.me]
    before, start = store.read_manifest(folder.path)["facts"]["wall_seconds"], time.perf_counter()
    _demand_small(here, place)
    with open_mesh(place.links, run_of(experiment), len(others) + 1) as mesh:
        listener.begins(experiment, folder.path, snapshot.round, here.ready.warnings)
        if snapshot.round < experiment.rounds:
            mesh.join(engine.min_peers, engine.join_timeout_s)
        while snapshot.round < experiment.rounds:
            played = _round(here, mesh, snapshot)
            snapshot = played.snapshot
            final = snapshot.round == experiment.rounds
            if len(here.ready.shares.test) and (final or snapshot.round % course.evaluate_every == 0):
                measure(here.alone, InProcess(side=here.side), played, samples=0 if final else course.evaluate_samples)
            wall = before + time.perf_counter() - start
            line = record.round_line(played, [here.me], True, wall, parts)
            rows = record.ledger_rows(played.rows)
            folder.checkpoint(snapshot, facts=_facts(here.ready, place, wall), line=line, rows=rows)
            listener.round_done(line)
        finish(here.ready, folder, snapshot, peak_rss_bytes())
        mesh.linger(others, engine.linger_s)
    return Run.load(folder.path)


def _demand_small(here: Here, place: Place) -> None:
    """Raises ConfigError for posts beyond ``max_frame_mb``."""
    course = here.ready.course
    size = course.letters.up.limit(spec_of_posts(course, here.me, 1))
    if size > place.links.max_frame_mb * 2**20:
        raise ConfigError(
            f"engine.max_frame_mb = {place.links.max_frame_mb}: a post may have {size / 2**20:.1f} MB; raise it"
        )


def _round(here: Here, mesh: Mesh, before: Snapshot) -> Played:
    """One round of this peer. Raises TrainingError where its own training fails."""
    number, me, course, start = before.round + 1, here.me, here.ready.course, time.perf_counter()
    cohort = [device.id for device in course.fleet.cohort(number)]
    played = Played(snapshot=replace(before, round=number), cohort=cohort)
    if me.id not in cohort:
        return played
    ask, _ = course.letters.write_down({}, number)
    ack = before.acks.get(me.id, 0)
    posted = here.side.answer(Order(device=me, round=number, verb="post", frame=ask, ack=ack))
    if posted.status != "ok":
        raise TrainingError(posted.reason)
    frame = bytes(posted.frame)
    mesh.hold(number, frame)
    spec = spec_of_posts(course, me, number)
    _, header = course.letters.read_up(frame, number, me.id, spec)

    def check(peer: int, data: bytes) -> str:
        try:
            course.letters.read_up(data, number, peer, spec)
        except WireError as error:
            return str(error)
        return ""

    others = [peer for peer in cohort if peer != me.id]
    answers = mesh.gather(number, others, here.deadline_s, check)
    inbox = {peer: answer.frame for peer, answer in answers.items() if answer.status == "ok"}
    order = absorb_order(me, number, ack, inbox)
    absorbed = here.side.answer(order)
    if absorbed.status != "ok":
        raise TrainingError(absorbed.reason)
    _, reply = course.letters.read_up(absorbed.frame, number, me.id, {})
    played.notes[me.id] = notes_of({}, reply.facts, me)
    played.seconds = time.perf_counter() - start
    copies = len(others)
    sizes = copies * header.tensor_bytes, copies * len(frame)
    played.rows.append(row(replace(order, verb="post"), "up", *sizes, played.seconds, "ok", ""))
    received = len(inbox) * header.tensor_bytes, sum(len(data) for data in inbox.values())
    played.rows.append(row(order, "down", *received, played.seconds, "ok", ""))
    _note_missing(here, played, order, answers)
    acks, own = {me.id: number}, {me.id: str(reply.facts.get("own", ""))}
    seconds = before.simulated_seconds + played.seconds
    played.snapshot = Snapshot(round=number, state={}, acks=acks, own=own, simulated_seconds=seconds)
    return played


def _note_missing(here: Here, played: Played, order: Order, answers: Mapping[int, Answer]) -> None:
    """A ledger row, in the other peer's name, for each post that did not come."""
    for peer, answer in answers.items():
        if answer.status != "ok":
            asked = replace(order, device=here.ready.course.fleet.devices[peer], verb="post")
            played.rows.append(row(asked, "up", 0, 0, answer.seconds, answer.status, answer.reason))
