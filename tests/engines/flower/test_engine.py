"""The engine on Flower: the same state as in one process, and what it makes of faults. No network, no processes."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Array, ArrayRecord, Message, RecordDict
from tests.engines.flower.grid import Fault, HereGrid, failed, grid_of, one_task, serve

from potluck.core.errors import ConfigError, EngineError, WireError
from potluck.deploy.server_app import events_of
from potluck.engines.flower import engine
from potluck.engines.flower.frames import HELLO, STYPE, pack, unpack
from potluck.engines.flower.private import size_of
from potluck.experiment import run, store
from potluck.experiment.config import Experiment
from potluck.experiment.run_reader import Run
from potluck.methods import METHODS

MakeExperiment = Callable[..., Experiment]
DEADLINE_S = 15.0
pytestmark = pytest.mark.timeout(300)  # each answer builds its device's side anew, as a real one does


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting between two looks; a deadline passes as soon as nothing has come."""
    monkeypatch.setattr(
        engine.FlowerEngine.__init__, "__defaults__", (0.001, *engine.FlowerEngine.__init__.__defaults__[1:])
    )  # type: ignore[misc]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that runs a second at each look, so that a deadline is over at once."""
    now = [0.0]

    class Clock:
        @staticmethod
        def monotonic() -> float:
            now[0] += 0.05
            return now[0]

        @staticmethod
        def sleep(seconds: float) -> None:
            now[0] += 1.0

    monkeypatch.setattr(engine, "time", Clock)


def summary(folder: Path) -> dict[str, Any]:
    return Run.load(folder / "run").summary


def ledger(folder: Path, round: int, verb: str = "train") -> dict[int, dict[str, Any]]:
    rows = Run.load(folder / "run").ledger
    return {row["device"]: row for row in rows if (row["round"], row["verb"], row["direction"]) == (round, verb, "up")}


@pytest.mark.parametrize("method", METHODS)
def test_flower_equals_this_process(small: MakeExperiment, method: str, tmp_path: Path) -> None:
    here = run.run(small(method), tmp_path / "here")
    serve(grid_of(small(method), tmp_path))
    there = summary(tmp_path)
    assert there["state_sha256"] == here.summary["state_sha256"]
    assert there["accuracy"] == here.summary["accuracy"]
    assert there["parameters"] == here.summary["parameters"]


def play(make: MakeExperiment, folder: Path, fault: Fault, method: str = "fedavg", **faults: Any) -> HereGrid:
    """Three rounds in which device 1 has a fault in the second."""
    experiment = make(
        method,
        "rounds=3",
        "model.name=mlp",
        "fleet.participation=1.0",
        "engine.join_timeout_s=5",
        f"fleet.deadline_s={DEADLINE_S}",
    )
    tiers = [tier.model_copy(update={"availability": 1.0}) for tier in experiment.fleet.tier]
    experiment = experiment.model_copy(update={"fleet": experiment.fleet.model_copy(update={"tier": tiers})})
    grid = grid_of(experiment, folder, faults={(1, 2, "train"): fault}, **faults)
    serve(grid)
    return grid


def other_type(request: Message, reply: Message) -> Message:
    array = Array("uint8", (3,), "numpy.ndarray", b"abc")
    content = RecordDict({"frame": ArrayRecord({"frame": array}), "reply": reply.content["reply"]})
    return Message(content, reply_to=request)


def two_arrays(request: Message, reply: Message) -> Message:
    array = Array("uint8", (3,), STYPE, b"abc")
    content = RecordDict({"frame": ArrayRecord({"frame": array, "more": array}), "reply": reply.content["reply"]})
    return Message(content, reply_to=request)


def truncated(request: Message, reply: Message) -> Message:
    frame = unpack(reply.content)
    return Message(RecordDict({"frame": pack(frame[:-1]), "reply": reply.content["reply"]}), reply_to=request)


def no_facts(request: Message, reply: Message) -> Message:
    return Message(RecordDict({"frame": pack(unpack(reply.content))}), reply_to=request)


FAULTS: dict[str, tuple[Fault, str, str]] = {
    "unknown": (failed(0), "rejected", "a reason"),
    "an exception": (failed(2, "Traceback\nValueError: odd"), "rejected", "ValueError: odd"),
    "a message that is gone": (failed(3), "lost", "a reason"),
    "a reply that is gone": (failed(4), "lost", "a reason"),
    "a node that is gone": (failed(5), "lost", "it is gone"),
    "a mod": (failed(6), "rejected", "a reason"),
    "a crash": (failed(8), "rejected", "a reason"),
    "nothing": (lambda request, reply: None, "late", f"no answer within {DEADLINE_S:g} s"),
    "another type": (other_type, "rejected", "'numpy.ndarray'"),
    "two arrays": (two_arrays, "rejected", "expected one array"),
    "a cut frame": (truncated, "rejected", "truncated or padded"),
    "no facts": (no_facts, "rejected", "not of the expected form"),
}


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_costs_one_device_one_round(small: MakeExperiment, tmp_path: Path, name: str) -> None:
    fault, status, reason = FAULTS[name]
    play(small, tmp_path, fault)
    row = ledger(tmp_path, 2)[1]
    assert (row["status"], "device 1: " in row["reason"], reason in row["reason"]) == (status, True, True), row
    others = [
        row["status"]
        for round in (1, 2, 3)
        for device, row in ledger(tmp_path, round).items()
        if (device, round) != (1, 2)
    ]
    assert others == ["ok"] * 11


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("method", ["local", "feddlr", "fedmd"])
def test_what_did_not_merge_did_not_happen_on_the_device(small: MakeExperiment, tmp_path: Path, method: str) -> None:
    """The order after a reply that came to nothing names the older round, and the state is as if it had not trained."""
    digests = []
    for name, fault in {"nothing": FAULTS["nothing"][0], "gone": failed(5)}.items():
        (tmp_path / name).mkdir()
        grid = play(small, tmp_path / name, fault, method)
        acks = [
            message.content.config_records["order"]["ack"]
            for message in grid.sent
            if "order" in message.content.config_records
            and message.content.config_records["order"]["verb"] == "train"
            and message.metadata.dst_node_id == 1007
        ]
        assert acks in ([0, 1, 1], [0, 0, 0])
        digests.append(summary(tmp_path / name)["state_sha256"])
    assert digests[0] == digests[1]


@pytest.mark.parametrize("code", [1, 7])
def test_an_app_that_does_not_start_stops_the_run(small: MakeExperiment, tmp_path: Path, code: int) -> None:
    with pytest.raises(EngineError, match="does not start there: a reason"):
        play(small, tmp_path, failed(code))
    events = [json.loads(line) for line in (tmp_path / "run/superlink/events.jsonl").read_text().splitlines()]
    assert events[-1]["event"] == "failed"


def test_a_stopped_run_goes_on_to_the_same_state(small: MakeExperiment, tmp_path: Path) -> None:
    whole = run.run(small("feddlr", "rounds=3"), tmp_path / "whole").summary
    grid = grid_of(small("feddlr", "rounds=3"), tmp_path)
    first = next(iter(Run.load(tmp_path / "whole").rounds[1]["cohort"]))
    grid.faults[first, 2, "train"] = failed(7)
    with pytest.raises(EngineError):
        serve(grid)
    grid.faults.clear()
    serve(grid)
    assert summary(tmp_path)["state_sha256"] == whole["state_sha256"]
    assert [line["round"] for line in Run.load(tmp_path / "run").rounds] == [1, 2, 3]


def test_a_lost_state_is_told(small: MakeExperiment, tmp_path: Path) -> None:
    def forget(request: Message, reply: Message) -> Message:
        for path in (tmp_path / "store-1").rglob("*.safetensors"):
            path.unlink()
        return reply

    play(small, tmp_path, forget, "local")
    row = ledger(tmp_path, 3)[1]
    assert row["status"] == "ok"
    assert row["reason"] == "device 1 had lost its state of round 2: it began anew"


@pytest.mark.usefixtures("clock")
def test_three_failures_in_a_row_are_two_rounds_of_rest(small: MakeExperiment, tmp_path: Path) -> None:
    experiment = small("fedavg", "rounds=6", "engine.join_timeout_s=5")
    tiers = [tier.model_copy(update={"availability": 1.0}) for tier in experiment.fleet.tier]
    fleet = experiment.fleet.model_copy(update={"tier": tiers, "participation": 1.0})
    grid = grid_of(experiment.model_copy(update={"fleet": fleet}), tmp_path)
    grid.faults |= {(1, round, "train"): failed(2) for round in (1, 2, 3)}
    serve(grid)
    found = [ledger(tmp_path, round)[1]["status"] for round in range(1, 7)]
    assert found == ["rejected"] * 3 + ["lost"] * 2 + ["ok"]
    assert "sits out" in ledger(tmp_path, 4)[1]["reason"]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another number": ({"partition-id": 9}, "device 9: the fleet has 0 to 3"),
    "a number twice": ({"partition-id": 0}, "two nodes say they are device 0"),
    "another tier": ({"tier": "large"}, "tier 'large', device 1 is a 'small' of large, small"),
    "an unknown tier": ({"tier": "fridge"}, "--tier fridge: the experiment knows small, large"),
    "another digest": ({"digest": "d" * 64}, "has the digest dddddddddddd, the server's"),
    "no data": ({"data": "/nowhere.npz"}, "/nowhere.npz"),
}


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("name", REFUSED)
def test_a_device_that_does_not_fit_is_refused_by_name(small: MakeExperiment, tmp_path: Path, name: str) -> None:
    changed, reason = REFUSED[name]
    grid = grid_of(small("fedavg", "engine.join_timeout_s=5"), tmp_path)
    grid.nodes[1007] |= changed
    with pytest.raises(EngineError, match="3 of 4 devices joined within 5 s") as raised:
        serve(grid)
    assert reason in str(raised.value)
    assert "missing 1" in str(raised.value)


@pytest.mark.usefixtures("clock")
def test_a_device_that_was_refused_and_is_mended_is_let_in(
    small: MakeExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = grid_of(small("fedavg", "engine.join_timeout_s=300"), tmp_path)
    grid.nodes[1007]["tier"] = "fridge"
    looks = itertools.count()
    nodes = grid.get_node_ids

    def look() -> Iterable[int]:
        if next(looks) == 20:
            grid.nodes[1007]["tier"] = "small"
        return nodes()

    monkeypatch.setattr(grid, "get_node_ids", look)
    serve(grid)
    events = store.read_lines(events_of(tmp_path / "run"))
    assert [line["event"] for line in events].count("refused") == 1, "said once, though it is asked again"
    assert [line["device"] for line in events if line["event"] == "joined"][-1] == 1
    assert summary(tmp_path)["rounds"] == 2
    asked = [message for message in grid.sent if message.metadata.message_type == HELLO]
    assert len(asked) < 10


@pytest.mark.usefixtures("clock")
def test_a_limit_lets_a_run_start_without_all(small: MakeExperiment, tmp_path: Path) -> None:
    grid = grid_of(
        small("fedavg", "engine.join_timeout_s=5", "engine.min_devices=3", "fleet.participation=1.0"), tmp_path
    )
    grid.offline.add(1007)
    serve(grid)
    rows = [row for row in Run.load(tmp_path / "run").ledger if row["device"] == 1 and row["verb"] == "train"]
    assert {row["reason"] for row in rows} <= {"device 1 is not connected"}


@pytest.mark.usefixtures("clock")
def test_the_ledger_tells_the_messages_around_the_frames(small: MakeExperiment, tmp_path: Path) -> None:
    """Of the message that was made; what never left, or never came, has no bytes."""
    grid = play(small, tmp_path, FAULTS["nothing"][0], "local")
    requests = [message for message in grid.sent if "order" in message.content.config_records]
    with one_task():
        found = sorted(size_of(message) for message in requests)
    rows = Run.load(tmp_path / "run").ledger
    assert sorted(row["engine_bytes"] for row in rows if row["direction"] == "down") == found
    for row in rows:
        around = row["engine_bytes"] - row["encoded_bytes"]
        assert (700 < around < 2000) if row["status"] == "ok" or row["direction"] == "down" else around == 0, row
    late = ledger(tmp_path, 2)[1]
    assert (late["status"], late["encoded_bytes"], late["engine_bytes"]) == ("late", 0, 0)
    told = summary(tmp_path)["engine_bytes"]
    ups = [row["engine_bytes"] for row in rows if row["direction"] == "up" and row["verb"] == "train"]
    assert (told["up"], told["total"]) == (sum(ups), told["up"] + told["down"])


@pytest.mark.usefixtures("clock")
def test_an_order_that_never_left_has_no_bytes(small: MakeExperiment, tmp_path: Path) -> None:
    grid = grid_of(small("fedavg", "engine.join_timeout_s=5", "engine.min_devices=3"), tmp_path)
    grid.offline.add(1007)
    serve(grid)
    rows = [row for row in Run.load(tmp_path / "run").ledger if row["device"] == 1]
    assert {(row["encoded_bytes"], row["tensor_bytes"], row["engine_bytes"]) for row in rows} == {(0, 0, 0)}
    missed = [line["seconds"] for line in Run.load(tmp_path / "run").rounds if 1 in line["status"].get("lost", [])]
    assert missed
    assert max(missed) < 15.0, "nobody waited for it until the deadline"


def test_a_message_is_its_frame_and_a_fixed_rest() -> None:
    with one_task():
        small, large, chunks = (
            size_of(Message(RecordDict({"frame": pack(b"x" * size)}), dst_node_id=1, message_type="train.round"))
            for size in (1_000, 9_000, 6 * 2**20)
        )
    assert large - small == 8_000
    assert 0 < chunks - 6 * 2**20 - (large - 9_000) < 200  # a second object, for more than 5 MiB


@pytest.mark.usefixtures("clock")
def test_nobody_there_ends_with_a_line(small: MakeExperiment, tmp_path: Path) -> None:
    grid = grid_of(small("fedavg", "engine.join_timeout_s=5"), tmp_path)
    grid.offline |= set(grid.nodes)
    with pytest.raises(EngineError, match="0 of 4 devices joined within 5 s, expected 4: missing 0, 1, 2, 3"):
        serve(grid)


def test_only_our_array_is_a_frame() -> None:
    assert unpack(RecordDict({"frame": pack(b"frame")})) == b"frame"
    assert pack(b"x" * 1000).count_bytes() == 1005
    with pytest.raises(WireError, match="expected one array"):
        unpack(RecordDict())


def test_run_says_which_command_serves(small: MakeExperiment, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="potluck serve"):
        run.run(small("fedavg", "engine.kind=flower"), tmp_path / "run")


def test_a_deadline_below_the_floor_is_refused(small: MakeExperiment, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="6 to 10 s"):
        grid_of(small("fedavg", "fleet.deadline_s=5"), tmp_path)
