"""The laws that every method obeys. They run over METHODS: a new method is tested by being added there.

Those of a Star and those of a Mesh differ only in what a round consists of.

1 inputs are not mutated; 2 every tree survives its frame bitwise; 3 the order of devices does not matter; 4 a resumed
run equals an unbroken one; 6 measured bytes are the bytes of the message; 7 no replies change nothing. Law 5 stands in
test_engines_agree.py, the reductions (law 8) with the methods, hostile bytes (law 9) in attacks/.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from potluck.core import tree
from potluck.core.contexts import DeviceContext, Reply, ServerContext
from potluck.engines.contract import Request, Response
from potluck.engines.local.inprocess import InProcess
from potluck.engines.round import initial_checkpoint, run_rounds
from potluck.experiment import build, run
from potluck.experiment.config import Experiment
from potluck.experiment.prepare import Prepared, prepare
from potluck.experiment.run_reader import Run
from potluck.methods import METHODS
from potluck.wire import frame

MakeExperiment = Callable[..., Experiment]
every_method = pytest.mark.parametrize("method", METHODS)
every_star = pytest.mark.parametrize("method", [name for name, found in METHODS.items() if not found.traits.peers])
every_mesh = pytest.mark.parametrize("method", [name for name, found in METHODS.items() if found.traits.peers])


def desk_of(ready: Prepared, round: int) -> ServerContext:
    federation = ready.federation
    return ServerContext(
        round=round,
        devices=federation.fleet.devices,
        held=federation.held,
        public=federation.public,
        seed=federation.seed,
    )


def task_of(ready: Prepared, round: int, device: int) -> DeviceContext:
    shares = ready.shares
    found = ready.federation.fleet.devices[device]
    return DeviceContext(
        round=round, device=found, data=shares.train[device], public=shares.public, seed=ready.federation.seed
    )


def one_exchange(ready: Prepared, device: int = 0) -> dict[str, Any]:
    """State, Down, Own and Up of a device in the first round."""
    method, context = ready.federation.method, desk_of(ready, 1)
    state = method.initial_state(desk_of(ready, 0))
    down = method.broadcast(state, ready.federation.fleet.devices[device], context)
    own, up = method.train(None, down, task_of(ready, 1, device))
    return {"state": state, "down": down, "own": own or {}, "up": up}


@every_star
def test_inputs_are_not_mutated(small: MakeExperiment, method: str) -> None:
    ready = prepare(small(method))
    made, federation = one_exchange(ready), ready.federation
    before = copy.deepcopy(made)
    context, device = desk_of(ready, 2), federation.fleet.devices[0]
    federation.method.broadcast(made["state"], device, context)
    federation.method.train(made["own"] or None, made["down"], task_of(ready, 2, 0))
    federation.method.update_spec(made["state"], device, context)
    federation.method.aggregate(made["state"], [Reply(device=device, round=1, update=made["up"])], context)
    federation.method.model(made["state"], made["own"] or None, device)
    for name, value in made.items():
        assert tree.equal(value, before[name]), name


def peers_of(ready: Prepared, count: int) -> dict[int, dict[str, Any]]:
    """Own before and after posting, and the post, of the first peers in the first round."""
    found, method = {}, ready.federation.method
    for peer in range(count):
        context = task_of(ready, 1, peer)
        own = method.initial_state(context)
        after, up = method.publish(own, context)
        found[peer] = {"own": own, "after": after, "up": up}
    return found


@every_mesh
def test_inputs_among_peers_are_not_mutated(small: MakeExperiment, method: str) -> None:
    ready = prepare(small(method))
    federation, made, context = ready.federation, peers_of(ready, 3), task_of(ready, 1, 0)
    before = copy.deepcopy(made)
    inbox = {peer: found["up"] for peer, found in made.items() if peer}
    federation.method.receive(made[0]["after"], inbox, context)
    federation.method.update_spec(made[0]["after"], context)
    federation.method.publish(made[0]["after"], task_of(ready, 2, 0))
    federation.method.model(made[0]["own"], federation.fleet.devices[0])
    pool = federation.method.combine([found["up"] for found in made.values()])
    federation.method.receive_combined(made[0]["after"], pool, made[0]["up"], context)
    assert tree.equal({str(k): v for k, v in made.items()}, {str(k): v for k, v in before.items()})


@every_mesh
def test_trees_among_peers_survive_their_frames_bitwise(small: MakeExperiment, method: str) -> None:
    ready = prepare(small(method))
    made = peers_of(ready, 3)
    pool = ready.federation.method.combine([found["up"] for found in made.values()])
    for name, value in {**made[0], "pool": pool}.items():
        assert tree.equal(frame.decode(frame.encode(value))[0], value), name


@every_mesh
def test_posts_do_not_depend_on_what_ran_before_nor_absorbing_on_the_order(small: MakeExperiment, method: str) -> None:
    ready = prepare(small(method))
    made, context = peers_of(ready, 3), task_of(ready, 1, 0)
    torch.manual_seed(12345)
    again = peers_of(ready, 3)
    assert all(tree.equal(made[peer]["up"], again[peer]["up"]) for peer in made)
    results = [
        ready.federation.method.receive(made[0]["after"], {peer: made[peer]["up"] for peer in request}, context)
        for request in ([1, 2], [2, 1])
    ]
    assert tree.equal(*results)


@every_mesh
def test_measured_bytes_are_those_of_the_posts(small: MakeExperiment, method: str, tmp_path: Path) -> None:
    found = run.run(small(method, "rounds=1"), tmp_path / "run")
    peers = found.rounds[0]["cohort"]
    post = tree.nbytes(peers_of(prepare(small(method, "rounds=1")), 1)[0]["up"])
    rows = [row for row in found.ledger if row["verb"] in ("post", "absorb")]
    assert [row["tensor_bytes"] for row in rows] == [(len(peers) - 1) * post] * 2 * len(peers)
    for direction in ("up", "down"):
        sent = [row["encoded_bytes"] for row in rows if row["direction"] == direction]
        assert found.summary["bytes"][direction] == sum(sent)
        assert len(sent) == len(peers)


@every_star
def test_trees_survive_their_frames_bitwise(small: MakeExperiment, method: str) -> None:
    for name, value in one_exchange(prepare(small(method))).items():
        assert tree.equal(frame.decode(frame.encode(value))[0], value), name


@every_star
def test_training_does_not_depend_on_what_ran_before(small: MakeExperiment, method: str) -> None:
    ready = prepare(small(method))
    first = one_exchange(ready, device=1)["up"]
    torch.manual_seed(12345)
    one_exchange(ready, device=3)
    assert tree.equal(one_exchange(ready, device=1)["up"], first)


class Backwards:
    """Answers the orders of a round from the last to the first, and delivers them in order."""

    def __init__(self, inner: InProcess) -> None:
        self.inner = inner

    def exchange(self, requests: Iterable[Request], deadline_s: float | None) -> Iterator[Response]:
        asked = list(requests)
        answered = [next(iter(self.inner.exchange([request], deadline_s))) for request in reversed(asked)]
        yield from reversed(answered)


@every_method
def test_the_order_of_devices_does_not_matter(small: MakeExperiment, method: str, tmp_path: Path) -> None:
    digests = []
    for name, wrap in {"forwards": lambda engine: engine, "backwards": Backwards}.items():
        ready = prepare(small(method))
        engine = wrap(InProcess(runtime=build.make_runtime(ready.resolved, ready.shares, tmp_path / name)))
        *_, last = run_rounds(ready.federation, engine, initial_checkpoint(ready.federation), 2)
        digests.append(last.checkpoint.digest())
    assert digests[0] == digests[1]


class StopError(Exception):
    """A crash between two rounds."""


class StopAfter:
    """A listener that crashes the run after a round."""

    def __init__(self, round: int) -> None:
        self.round = round

    def begins(self, experiment: Experiment, folder: Path, first_round: int, warnings: Sequence[str]) -> None:
        return

    def round_done(self, line: dict[str, Any]) -> None:
        if line["round"] == self.round:
            raise StopError


@pytest.fixture(scope="module")
def whole_runs() -> dict[str, Run]:
    """By method, filled by ``whole``."""
    return {}


@pytest.fixture
def whole(
    small: MakeExperiment, method: str, whole_runs: dict[str, Run], tmp_path_factory: pytest.TempPathFactory
) -> Run:
    """An unbroken run of four rounds, made once, to compare with."""
    if method not in whole_runs:
        whole_runs[method] = run.run(small(method, "rounds=4"), tmp_path_factory.mktemp(method) / "whole")
    return whole_runs[method]


@every_method
def test_a_resumed_run_equals_an_unbroken_one(small: MakeExperiment, method: str, whole: Run, tmp_path: Path) -> None:
    with pytest.raises(StopError):
        run.run(small(method, "rounds=4"), tmp_path / "broken", StopAfter(2))
    broken = run.resume(tmp_path / "broken")
    assert broken.summary["state_sha256"] == whole.summary["state_sha256"]
    assert [line["round"] for line in broken.rounds] == [1, 2, 3, 4]
    assert broken.ledger == whole.ledger
    assert broken.summary["accuracy"] == whole.summary["accuracy"]


@every_method
def test_added_rounds_equal_planned_ones(small: MakeExperiment, method: str, whole: Run, tmp_path: Path) -> None:
    run.run(small(method, "rounds=3", "train.schedule_rounds=4"), tmp_path / "short")
    longer = run.resume(tmp_path / "short", more_rounds=1)
    assert longer.summary["state_sha256"] == whole.summary["state_sha256"]
    assert longer.summary["rounds"] == 4


@every_star
def test_measured_bytes_are_those_of_the_messages(small: MakeExperiment, method: str, tmp_path: Path) -> None:
    found = run.run(small(method, "rounds=1"), tmp_path / "run")
    first = next(row["device"] for row in found.ledger if row["verb"] == "train")
    ready = prepare(small(method, "rounds=1"))
    made = one_exchange(ready, device=first)
    rows = [row for row in found.ledger if row["device"] == first and row["verb"] == "train"]
    assert {row["direction"]: row["tensor_bytes"] for row in rows} == {
        "down": tree.nbytes(made["down"]),
        "up": tree.nbytes(made["up"]),
    }
    for row in rows:
        assert 0 < row["encoded_bytes"] - row["tensor_bytes"] < 64 * 1024
    ups = [row["encoded_bytes"] for row in found.ledger if row["direction"] == "up" and row["verb"] == "train"]
    assert found.summary["bytes"]["up"] == sum(ups)


@every_star
def test_no_replies_leave_the_state_as_it_is(small: MakeExperiment, method: str) -> None:
    ready = prepare(small(method))
    state = ready.federation.method.initial_state(desk_of(ready, 0))
    merged = ready.federation.method.aggregate(state, iter(()), desk_of(ready, 1))
    assert tree.digest({"state": merged}) == tree.digest({"state": state})


@dataclass(frozen=True)
class NobodyAnswers:
    """An engine whose devices are all lost, as it knows after so many seconds."""

    seconds: float

    def exchange(self, requests: Iterable[Request], deadline_s: float | None) -> Iterator[Response]:
        for request in requests:
            yield Response(request=request, status="lost", reason="no answer", seconds=self.seconds)


@every_method
def test_a_round_without_answers_ends_and_says_so(small: MakeExperiment, method: str) -> None:
    federation = prepare(small(method)).federation
    before = initial_checkpoint(federation)
    (result,) = run_rounds(federation, NobodyAnswers(math.inf), before, 1)
    assert result.checkpoint.digest() == before.digest()
    assert {row.status for row in result.rows} == {"lost"}
    assert result.seconds == federation.fleet.deadline_s


def test_a_round_lasts_until_a_loss_is_known(small: MakeExperiment) -> None:
    federation = prepare(small("fedavg")).federation
    (result,) = run_rounds(federation, NobodyAnswers(45.0), initial_checkpoint(federation), 1)
    assert result.seconds == 45.0 < federation.fleet.deadline_s


@every_method
def test_a_frozen_value_with_a_line_about_it(method: str) -> None:
    found = METHODS[method]
    assert found.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert 10 < len((found.__doc__ or "").splitlines()[0]) < 100
