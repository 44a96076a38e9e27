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
from potluck.core.types import Desk, Reply, Task
from potluck.engines.inprocess import InProcess
from potluck.engines.round import begin, play
from potluck.engines.seam import Delivery, Order
from potluck.experiment import build, run
from potluck.experiment.config import Experiment
from potluck.experiment.loaded import Run
from potluck.experiment.run import Prepared, prepare
from potluck.methods import METHODS
from potluck.wire import frame

MakeExperiment = Callable[..., Experiment]
every_method = pytest.mark.parametrize("method", METHODS)
every_star = pytest.mark.parametrize("method", [name for name, found in METHODS.items() if not found.traits.peers])
every_mesh = pytest.mark.parametrize("method", [name for name, found in METHODS.items() if found.traits.peers])


def desk_of(ready: Prepared, round: int) -> Desk:
    course = ready.course
    return Desk(round=round, devices=course.fleet.devices, held=course.held, public=course.public, seed=course.seed)


def task_of(ready: Prepared, round: int, device: int) -> Task:
    shares = ready.shares
    found = ready.course.fleet.devices[device]
    return Task(round=round, device=found, data=shares.train[device], public=shares.public, seed=ready.course.seed)


def one_exchange(ready: Prepared, device: int = 0) -> dict[str, Any]:
    """State, Down, Own and Up of a device in the first round."""
    method, desk = ready.course.method, desk_of(ready, 1)
    state = method.start(desk_of(ready, 0))
    down = method.cast(state, ready.course.fleet.devices[device], desk)
    own, up = method.train(None, down, task_of(ready, 1, device))
    return {"state": state, "down": down, "own": own or {}, "up": up}


@every_star
def test_inputs_are_not_mutated(small: MakeExperiment, method: str) -> None:
    ready = prepare(small(method))
    made, course = one_exchange(ready), ready.course
    before = copy.deepcopy(made)
    desk, device = desk_of(ready, 2), course.fleet.devices[0]
    course.method.cast(made["state"], device, desk)
    course.method.train(made["own"] or None, made["down"], task_of(ready, 2, 0))
    course.method.expect(made["state"], device, desk)
    course.method.merge(made["state"], [Reply(device=device, round=1, up=made["up"])], desk)
    course.method.model(made["state"], made["own"] or None, device)
    for name, value in made.items():
        assert tree.equal(value, before[name]), name


def peers_of(ready: Prepared, count: int) -> dict[int, dict[str, Any]]:
    """Own before and after posting, and the post, of the first peers in the first round."""
    found, method = {}, ready.course.method
    for peer in range(count):
        task = task_of(ready, 1, peer)
        own = method.start(task)
        after, up = method.post(own, task)
        found[peer] = {"own": own, "after": after, "up": up}
    return found


@every_mesh
def test_inputs_among_peers_are_not_mutated(small: MakeExperiment, method: str) -> None:
    ready = prepare(small(method))
    course, made, task = ready.course, peers_of(ready, 3), task_of(ready, 1, 0)
    before = copy.deepcopy(made)
    inbox = {peer: found["up"] for peer, found in made.items() if peer}
    course.method.absorb(made[0]["after"], inbox, task)
    course.method.expect(made[0]["after"], task)
    course.method.post(made[0]["after"], task_of(ready, 2, 0))
    course.method.model(made[0]["own"], course.fleet.devices[0])
    pool = course.method.pool([found["up"] for found in made.values()])
    course.method.absorb_pool(made[0]["after"], pool, made[0]["up"], task)
    assert tree.equal({str(k): v for k, v in made.items()}, {str(k): v for k, v in before.items()})


@every_mesh
def test_trees_among_peers_survive_their_frames_bitwise(small: MakeExperiment, method: str) -> None:
    ready = prepare(small(method))
    made = peers_of(ready, 3)
    pool = ready.course.method.pool([found["up"] for found in made.values()])
    for name, value in {**made[0], "pool": pool}.items():
        assert tree.equal(frame.decode(frame.encode(value))[0], value), name


@every_mesh
def test_posts_do_not_depend_on_what_ran_before_nor_absorbing_on_the_order(small: MakeExperiment, method: str) -> None:
    ready = prepare(small(method))
    made, task = peers_of(ready, 3), task_of(ready, 1, 0)
    torch.manual_seed(12345)
    again = peers_of(ready, 3)
    assert all(tree.equal(made[peer]["up"], again[peer]["up"]) for peer in made)
    results = [
        ready.course.method.absorb(made[0]["after"], {peer: made[peer]["up"] for peer in order}, task)
        for order in ([1, 2], [2, 1])
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

    def exchange(self, orders: Iterable[Order], deadline_s: float | None) -> Iterator[Delivery]:
        asked = list(orders)
        answered = [next(iter(self.inner.exchange([order], deadline_s))) for order in reversed(asked)]
        yield from reversed(answered)


@every_method
def test_the_order_of_devices_does_not_matter(small: MakeExperiment, method: str, tmp_path: Path) -> None:
    digests = []
    for name, wrap in {"forwards": lambda engine: engine, "backwards": Backwards}.items():
        ready = prepare(small(method))
        engine = wrap(InProcess(side=build.make_side(ready.experiment, ready.shares, tmp_path / name)))
        *_, last = play(ready.course, engine, begin(ready.course), 2)
        digests.append(last.snapshot.digest())
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
    state = ready.course.method.start(desk_of(ready, 0))
    merged = ready.course.method.merge(state, iter(()), desk_of(ready, 1))
    assert tree.digest({"state": merged}) == tree.digest({"state": state})


@dataclass(frozen=True)
class NobodyAnswers:
    """An engine whose devices are all lost, as it knows after so many seconds."""

    seconds: float

    def exchange(self, orders: Iterable[Order], deadline_s: float | None) -> Iterator[Delivery]:
        for order in orders:
            yield Delivery(order=order, status="lost", reason="no answer", seconds=self.seconds)


@every_method
def test_a_round_without_answers_ends_and_says_so(small: MakeExperiment, method: str) -> None:
    course = prepare(small(method)).course
    before = begin(course)
    (played,) = play(course, NobodyAnswers(math.inf), before, 1)
    assert played.snapshot.digest() == before.digest()
    assert {row.status for row in played.rows} == {"lost"}
    assert played.seconds == course.fleet.deadline_s


def test_a_round_lasts_until_a_loss_is_known(small: MakeExperiment) -> None:
    course = prepare(small("fedavg")).course
    (played,) = play(course, NobodyAnswers(45.0), begin(course), 1)
    assert played.seconds == 45.0 < course.fleet.deadline_s


@every_method
def test_a_frozen_value_with_a_line_about_it(method: str) -> None:
    found = METHODS[method]
    assert found.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert 10 < len((found.__doc__ or "").splitlines()[0]) < 100
