"""Hostile devices in a whole run: evaluation frames, false digests, a cohort of nothing but enemies."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from potluck.core.errors import RunFolderError, TrainingError
from potluck.engines.contract import Request, Response
from potluck.engines.local.inprocess import InProcess
from potluck.engines.result import RoundResult
from potluck.engines.round import initial_checkpoint, run_rounds
from potluck.experiment import build, run
from potluck.experiment.config import Experiment
from potluck.experiment.prepare import Prepared, prepare
from potluck.wire import frame

MakeExperiment = Callable[..., Experiment]
Change = Callable[[Response], Response]


class Tampering:
    """An engine that changes what some devices deliver."""

    def __init__(self, inner: InProcess, change: Change) -> None:
        self.inner, self.change = inner, change

    def exchange(self, requests: Iterable[Request], deadline_s: float | None) -> Iterator[Response]:
        for response in self.inner.exchange(requests, deadline_s):
            yield self.change(response)


def result(ready: Prepared, change: Change, folder: Path, rounds: int = 2) -> list[RoundResult]:
    engine = InProcess(runtime=build.make_runtime(ready.resolved, ready.shares, folder))
    return list(run_rounds(ready.federation, Tampering(engine, change), initial_checkpoint(ready.federation), rounds))


def rewritten(response: Response, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> Response:
    """The delivery with its tree and facts changed."""
    tree, facts = frame.decode(response.frame)
    known = json.loads(json.dumps(dict(facts)))
    change(tree, known)
    return replace(response, frame=frame.encode(tree, known))


def no_change(response: Response) -> Response:
    return response


@pytest.mark.parametrize(
    ("name", "value"),
    [("right", 2**60), ("right", -1), ("total", -5), ("total", 2**62 + 1), ("said", -1), ("nll", float("nan"))],
)
def test_a_false_evaluation_is_named_and_left_out(
    small: MakeExperiment, tmp_path: Path, name: str, value: float
) -> None:
    ready = prepare(small("local", "model.name=mlp"))

    def change(response: Response) -> Response:
        def lie(tree: dict[str, Any], facts: dict[str, Any]) -> None:
            kind = torch.float64 if math.isnan(value) else torch.int64
            tree["all"][name] = torch.full(tree["all"][name].shape, value, dtype=kind)

        hostile = response.request.verb == "evaluate" and response.request.device.id == 1
        return rewritten(response, lie) if hostile else response

    for round in result(ready, change, tmp_path):
        assert 1 not in round.scores
        assert {0, 2, 3} <= round.scores.keys()
        rejected = [row for row in round.rows if row.status == "rejected"]
        assert {(row.device, row.verb) for row in rejected} == {(1, "evaluate")}
        assert "device 1" in rejected[0].reason


def test_junk_in_place_of_an_evaluation(small: MakeExperiment, tmp_path: Path) -> None:
    ready = prepare(small("local", "model.name=mlp"))

    def change(response: Response) -> Response:
        return replace(response, frame=b"junk") if response.request.verb == "evaluate" else response

    for round in result(ready, change, tmp_path):
        assert round.scores == {}
        assert all(row.status == "rejected" for row in round.rows if row.verb == "evaluate")


def test_a_claimed_state_that_is_not_there_costs_only_its_device(small: MakeExperiment, tmp_path: Path) -> None:
    ready = prepare(small("fedavg", "model.name=mlp", "fleet.participation=1.0", "fleet.tier=[{name='a',devices=3}]"))

    def change(response: Response) -> Response:
        def claim(tree: dict[str, Any], facts: dict[str, Any]) -> None:
            facts["own"] = "f" * 64

        hostile = response.request.verb == "train" and response.request.device.id == 2 and response.status == "ok"
        return rewritten(response, claim) if hostile else response

    _, second, _ = result(ready, change, tmp_path, rounds=3)
    assert {row.device for row in second.rows if row.status == "rejected"} == {2}
    assert "unusable" in next(row.reason for row in second.rows if row.status == "rejected")


def test_a_cohort_of_enemies_does_not_end_the_run(small: MakeExperiment, tmp_path: Path) -> None:
    ready = prepare(small("fedavg", "model.name=mlp"))
    first = initial_checkpoint(ready.federation)

    def change(response: Response) -> Response:
        return replace(response, frame=b"junk") if response.request.verb == "train" else response

    *_, last = result(ready, change, tmp_path)
    assert last.checkpoint.round == 2
    assert torch.equal(
        next(iter(last.checkpoint.state["weights"].values())), next(iter(first.state["weights"].values()))
    )


def test_a_round_in_which_everybody_gives_up_ends_the_run(small: MakeExperiment, tmp_path: Path) -> None:
    ready = prepare(small("fedavg", "model.name=mlp", "train.lr=1e30"))
    with pytest.raises(TrainingError, match=r"every device of the round gave up.*round 1, tier '\w+', device \d"):
        result(ready, no_change, tmp_path)


def test_a_damaged_own_state_is_told_at_the_resume(small: MakeExperiment, tmp_path: Path) -> None:
    found = run.run(small("local", "model.name=mlp"), tmp_path / "run")
    state = sorted((found.path / "state" / "own").glob("*.safetensors"))[0]
    data = bytearray(state.read_bytes())
    data[-1] ^= 1
    state.write_bytes(data)
    with pytest.raises(RunFolderError, match=f"{state.name}: damaged"):
        run.resume(found.path, more_rounds=1)
    state.unlink()
    with pytest.raises(RunFolderError, match=state.name):
        run.resume(found.path, more_rounds=1)
