"""The relay: its bytes, crashes and late devices; and posts among peers that are late, lost or damaged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from potluck.core.contexts import DeviceContext, Reply, ServerContext
from potluck.engines.contract import Engine, Request, Response
from potluck.engines.local.inprocess import InProcess
from potluck.engines.relay import Relay
from potluck.engines.result import RoundResult
from potluck.engines.round import initial_checkpoint, run_rounds
from potluck.experiment import build, run
from potluck.experiment.config import Experiment
from potluck.experiment.prepare import prepare

MakeExperiment = Callable[..., Experiment]
SEEDS, CLASSES, PEERS = 26, 10, 4
EVERYBODY = (
    "model.name=mlp",
    "fleet.participation=1.0",
    'fleet.tier=[{name="small",devices=2},{name="large",devices=2}]',
)


class Lossy:
    """An engine that changes what one device delivers in one round."""

    def __init__(self, inner: Engine, device: int, round: int, verbs: Sequence[str], **changed: Any) -> None:
        self.inner, self.hit, self.verbs, self.changed = inner, (device, round), verbs, changed

    def exchange(self, requests: Iterable[Request], deadline_s: float | None) -> Iterator[Response]:
        for response in self.inner.exchange(requests, deadline_s):
            request = response.request
            hit = request.verb in self.verbs and (request.device.id, request.round) == self.hit
            yield replace(response, **self.changed) if hit else response


def played_with(experiment: Experiment, own: Path, *, rounds: int = 3, **lossy: Any) -> list[RoundResult]:
    ready = prepare(experiment)
    engine: Engine = InProcess(runtime=build.make_runtime(ready.resolved, ready.shares, own))
    engine = Lossy(engine, **lossy) if lossy else engine
    return list(run_rounds(ready.federation, engine, initial_checkpoint(ready.federation), rounds))


@pytest.mark.parametrize(("posts", "value", "summed"), [("fixed16", 2, 4), ("fixed8", 1, 2), ("float32", 4, 0)])
def test_bytes_through_a_relay(small: MakeExperiment, tmp_path: Path, posts: str, value: int, summed: int) -> None:
    """Up S C b; down (N - 1) S C b, or one sum."""
    found = run.run(small("fedh2l", *EVERYBODY, "engine.relay=true", f"method.posts={posts}"), tmp_path / "run")
    down = SEEDS * CLASSES * summed if summed else (PEERS - 1) * SEEDS * CLASSES * value
    for row in found.ledger:
        if row["verb"] == "train" and row["direction"] == "up":
            assert row["tensor_bytes"] == SEEDS * CLASSES * value
        elif row["verb"] in ("train", "settle") and row["direction"] == "down":
            assert row["tensor_bytes"] == (0 if row["round"] == 1 and row["verb"] == "train" else down)
    assert len([row for row in found.ledger if row["verb"] == "settle"]) == 2 * PEERS


@pytest.mark.parametrize("posts", ["fixed16", "float32"])
def test_forwarding_equals_pooling(small: MakeExperiment, tmp_path: Path, posts: str) -> None:
    digests = set()
    for pools in (True, False):
        ready = prepare(small("fedh2l", "engine.relay=true", f"method.posts={posts}"))
        runtime = build.make_runtime(ready.resolved, ready.shares, tmp_path / str(pools))
        federation = replace(ready.federation, method=replace(ready.federation.method, combines=pools))
        *_, last = run_rounds(federation, InProcess(runtime=runtime), initial_checkpoint(federation), 3)
        digests.add(last.checkpoint.digest())
    assert len(digests) == 1


class StopError(Exception):
    """A crash between two rounds."""


class StopAfter:
    def __init__(self, round: int) -> None:
        self.round = round

    def begins(self, experiment: Experiment, folder: Path, first_round: int, warnings: Sequence[str]) -> None:
        return

    def round_done(self, line: dict[str, Any]) -> None:
        if line["round"] == self.round:
            raise StopError


def test_a_relayed_run_is_resumed_and_prolonged(small: MakeExperiment, tmp_path: Path) -> None:
    settings = ("engine.relay=true", "train.schedule_rounds=4")
    native = run.run(small("fedh2l", "rounds=4", "train.schedule_rounds=4"), tmp_path / "native").summary
    with pytest.raises(StopError):
        run.run(small("fedh2l", "rounds=4", *settings), tmp_path / "broken", StopAfter(2))
    assert run.resume(tmp_path / "broken").summary["state_sha256"] == native["state_sha256"]
    run.run(small("fedh2l", "rounds=2", *settings), tmp_path / "short")
    assert run.resume(tmp_path / "short", more_rounds=2).summary["state_sha256"] == native["state_sha256"]


@pytest.mark.parametrize("status", ["late", "lost", "rejected"])
def test_a_post_that_did_not_arrive_did_not_happen(small: MakeExperiment, tmp_path: Path, status: str) -> None:
    """Natively and through the relay alike: the peer sits the round out, the others go on without it."""
    digests = []
    for name, verbs in {"false": ["post"], "true": ["train"]}.items():
        experiment = small("fedh2l", *EVERYBODY, f"engine.relay={name}")
        lossy = {"device": 1, "round": 2, "verbs": verbs, "status": status, "reason": "as told", "frame": b""}
        result = played_with(experiment, tmp_path / name, **lossy)
        rows = [row for row in result[1].rows if row.device == 1 and row.verb in ("post", "absorb", "train")]
        assert {row.status for row in rows} == {status}
        assert result[1].notes.keys() == {0, 2, 3}
        digests.append(result[-1].checkpoint.digest())
    assert digests[0] == digests[1]
    assert digests[0] != played_with(small("fedh2l", *EVERYBODY), tmp_path / "whole")[-1].checkpoint.digest()


def test_a_damaged_post_costs_only_its_peer(small: MakeExperiment, tmp_path: Path) -> None:
    result = played_with(
        small("fedh2l", *EVERYBODY), tmp_path, device=2, round=1, verbs=["post"], frame=bytes(range(256)) * 9
    )
    (row,) = [row for row in result[0].rows if row.device == 2 and row.verb == "post"]
    assert (row.status, row.reason.startswith("device 2: ")) == ("rejected", True)
    assert {row.device for row in result[0].rows if row.verb == "absorb"} == {0, 1, 3}
    assert result[0].checkpoint.acks.keys() == {0, 1, 3}
    assert {notes["peers"] for notes in result[0].notes.values()} == {2.0}


def test_a_peer_whose_absorbing_failed_starts_from_before_the_round(small: MakeExperiment, tmp_path: Path) -> None:
    lossy = {"device": 1, "round": 2, "verbs": ["absorb"], "status": "rejected", "reason": "no memory"}
    result = played_with(small("fedh2l", *EVERYBODY), tmp_path, **lossy)
    assert result[1].checkpoint.acks == {0: 2, 1: 1, 2: 2, 3: 2}
    assert result[1].checkpoint.local_states[1] == result[0].checkpoint.local_states[1]
    assert result[2].checkpoint.acks[1] == 3


def test_posts_of_a_round_wait_for_peers_that_sit_out(small: MakeExperiment) -> None:
    ready = prepare(small("fedh2l", "engine.relay=true", *EVERYBODY))
    relay, devices = ready.federation.method, ready.federation.fleet.devices
    assert isinstance(relay, Relay)
    state: Any = {}
    for round, cohort in ((1, (0, 1)), (2, (1, 2))):
        server_context = ready.federation.server_context(round)
        replies = [Reply(device=devices[k], round=round, update=up_of(relay, ready, k, round)) for k in cohort]
        state = relay.aggregate(state, replies, server_context)
    assert {number: list(held) for number, held in state["rounds"].items()} == {"1": ["pool"], "2": ["pool"]}
    assert [relay.pending(state, device) for device in devices] == [1, 2, 2, 0]
    assert relay.without(state, [0])["rounds"].keys() == {"2"}
    assert relay.without(state, [0, 1, 2]) == {}
    assert relay.aggregate(state, [], ready.federation.server_context(3)) is state


def up_of(relay: Relay, ready: Any, number: int, round: int) -> Any:
    federation, shares = ready.federation, ready.shares
    device = federation.fleet.devices[number]
    task = DeviceContext(
        round=round, device=device, data=shares.train[number], public=shares.public, seed=federation.seed
    )
    return relay.inner.publish(relay.inner.initial_state(task), task)[1]


def test_a_relay_checks_posts_as_a_peer_does(small: MakeExperiment) -> None:
    ready = prepare(small("fedh2l", "engine.relay=true", *EVERYBODY))
    server_context: ServerContext = ready.federation.server_context(1)
    expected = ready.federation.method.update_spec({}, ready.federation.fleet.devices[0], server_context)
    assert (
        expected["seed_digest"].value
        == ready.federation.method.update_spec({}, server_context.devices[3], server_context)["seed_digest"].value
    )
