"""Reading run folders: finished, interrupted, damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from potluck.core.errors import RunFolderError
from potluck.report import runs

MakeRun = Callable[..., Path]


def test_a_finished_run(make_run: MakeRun) -> None:
    run = runs.read(make_run(personal=True))
    assert (run.name, run.method, run.seed, run.planned, run.done, run.finished) == ("digits", "fedavg", 0, 3, 3, True)
    assert (run.traffic.up, run.traffic.down, run.traffic.total) == (9000, 18000, 27000)
    assert run.traffic.evaluate == 9 * 30
    assert run.tier_of == {0: "phone", 1: "phone", 2: "laptop"}
    assert run.ledger.aggregated == {0: 3, 1: 3, 2: 3}
    assert run.scores is not None
    assert run.scores.devices == pytest.approx({0: 0.3, 1: 0.31, 2: 0.32})
    assert all(not line.scores.devices for line in run.rounds[:-1] if line.scores)


def test_an_interrupted_run_has_no_summary(make_run: MakeRun) -> None:
    run = runs.read(make_run(done=2))
    assert (run.done, run.planned, run.finished) == (2, 3, False)


def test_a_run_that_has_not_begun(make_run: MakeRun) -> None:
    path = make_run(done=0)
    (path / "rounds.jsonl").unlink()
    (path / "ledger.jsonl").unlink()
    run = runs.read(path)
    assert (run.done, run.scores, run.traffic.total) == (0, None, 0)


def test_a_last_line_that_was_cut_off_is_left_out(make_run: MakeRun) -> None:
    path = make_run(done=2)
    for name in ("rounds.jsonl", "ledger.jsonl"):
        with (path / name).open("a") as handle:
            handle.write('{"round":3,"dev')
    run = runs.read(path)
    assert (run.done, run.traffic.total) == (2, 18000)


def test_what_lies_beyond_the_checkpoint_is_left_out(make_run: MakeRun) -> None:
    path = make_run(done=2)
    whole = {name: (path / f"{name}.jsonl").stat().st_size for name in ("rounds", "ledger")}
    (path / "state").mkdir()
    (path / "state" / "manifest.json").write_text(json.dumps({"lengths": whole}))
    for name in ("rounds", "ledger"):
        log = path / f"{name}.jsonl"
        log.write_text(log.read_text() + log.read_text().splitlines()[-1].replace('"round": 2', '"round": 3') + "\n")
    run = runs.read(path)
    assert (run.done, run.traffic.total) == (2, 18000)


def test_a_summary_of_fewer_rounds_than_planned_is_old(make_run: MakeRun) -> None:
    path = make_run(rounds=3)
    toml = path / "experiment.toml"
    toml.write_text(toml.read_text().replace("rounds = 3", "rounds = 5"))
    assert not runs.read(path).finished


def test_late_lost_and_rejected_are_counted_once_with_their_reason(make_run: MakeRun) -> None:
    wrong = {(1, 0): ("late", "took 9 s"), (3, 0): ("late", "took 8 s"), (2, 2): ("lost", "no answer")}
    ledger = runs.read(make_run(wrong=wrong)).ledger
    found = [(t.device, t.tier, t.status, list(t.rounds), t.reason) for t in ledger.troubles]
    assert found == [(0, "phone", "late", [1, 3], "took 8 s"), (2, "laptop", "lost", [2], "no answer")]
    assert ledger.aggregated == {0: 1, 1: 3, 2: 2}


@pytest.mark.parametrize(
    ("name", "line", "says"),
    [
        ("rounds.jsonl", "not json\n", "rounds.jsonl, line 4: damaged, not JSON"),
        ("rounds.jsonl", "[]\n", "rounds.jsonl, line 4: damaged, expected a JSON object"),
        ("rounds.jsonl", '{"round":4}\n', "rounds.jsonl, line 4: damaged, 'bytes' is missing"),
        ("ledger.jsonl", '{"round":4,"verb":"train"}\n', "ledger.jsonl, line 19: damaged, 'direction' is missing"),
        ("ledger.jsonl", "\x00\xff\n", "ledger.jsonl, line 19: damaged"),
    ],
)
def test_a_damaged_line_is_named(make_run: MakeRun, name: str, line: str, says: str) -> None:
    path = make_run()
    with (path / name).open("a") as handle:
        handle.write(line)
    with pytest.raises(RunFolderError) as caught:
        runs.read(path)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("experiment.toml", "name = ", "experiment.toml: damaged"),
        ("experiment.toml", "name = 'a'", "experiment.toml: damaged, 'method' is missing"),
        ("experiment.toml", "seed = 1\nrounds = 2\nmethod = 'x'\n", "experiment.toml: damaged"),
        ("summary.json", "{", "summary.json: damaged"),
        ("summary.json", "[]", "summary.json: damaged"),
    ],
)
def test_a_damaged_file_is_named(make_run: MakeRun, name: str, content: str, says: str) -> None:
    path = make_run()
    (path / name).write_text(content)
    with pytest.raises(RunFolderError, match=says):
        runs.read(path)


def test_find_takes_run_folders_and_folders_of_them(make_run: MakeRun, tmp_path: Path) -> None:
    one, two = make_run("all/one"), make_run("all/two")
    (tmp_path / "all" / "other").mkdir()
    assert runs.find([tmp_path / "all"]) == [one, two]
    assert runs.find([two, tmp_path / "all"]) == [two, one]


def test_find_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="no such run folder"):
        runs.find([tmp_path / "nothing"])
    with pytest.raises(RunFolderError, match=r"it has no experiment\.toml"):
        runs.find([tmp_path])
