"""Peers' own folders: together they are one run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from potluck.report import peers, runs

MakeRun = Callable[..., Path]
ROUNDS = 2


def peer_folder(make_run: MakeRun, peer: int, wrong: Mapping[int, str], config: str = "c0") -> Path:
    """A peer's part: its own rows and figures, and a row for each other that it missed."""
    path: Path = make_run(f"peer-{peer}", method="fedh2l", rounds=ROUNDS, personal=True, domains=True)
    lines = [json.loads(line) for line in (path / "rounds.jsonl").read_text().splitlines()]
    for line in lines:
        found = line["accuracy"]
        value = found["devices"][str(peer)]
        found |= {"mean": value, "worst": value, "devices": {str(peer): value}}
        found["domains"] = {str(peer): found["domains"][str(peer)]}
        found |= {"ad": {"mean": value, "devices": {str(peer): value}}, "al": {"devices": {str(peer): value / 2}}}
    rows = [json.loads(line) for line in (path / "ledger.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["device"] == peer]
    base = {"direction": "up", "verb": "post", "tensor_bytes": 0, "encoded_bytes": 0, "seconds": 1.0, "status": "lost"}
    rows += [base | {"round": 1, "device": d, "tier": "phone", "reason": reason} for d, reason in wrong.items()]
    (path / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (path / "ledger.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lengths = {name: (path / f"{name}.jsonl").stat().st_size for name in ("rounds", "ledger")}
    (path / "state").mkdir()
    (path / "state" / "manifest.json").write_text(
        json.dumps({"lengths": lengths, "facts": {"peer": peer, "config": config}})
    )
    return path


def test_peers_are_put_together(make_run: MakeRun) -> None:
    parts = [runs.read(peer_folder(make_run, 0, {1: "no post within 4 s"})), runs.read(peer_folder(make_run, 1, {}))]
    parts.append(runs.read(peer_folder(make_run, 2, {1: "no post within 4 s"})))
    (found,) = peers.whole(parts)
    assert found.finished
    assert found.traffic.up == sum(part.traffic.up for part in parts)
    assert found.scores is not None
    assert found.scores.devices == pytest.approx({0: 0.2, 1: 0.21, 2: 0.22})
    assert found.scores.mean == pytest.approx(0.21)
    assert found.scores.worst == pytest.approx(0.2)
    assert found.scores.tiers == pytest.approx({"phone": 0.205, "laptop": 0.22})
    assert found.scores.al == pytest.approx({0: 0.1, 1: 0.105, 2: 0.11})
    (trouble,) = found.ledger.troubles
    assert (trouble.device, list(trouble.rounds)) == (1, [1])
    assert trouble.reason == "no post within 4 s (told by peer 0, peer 2)"
    page = peers.by_peer(found)
    assert all(word in page for word in ("device 0", "device 2", "(AD)", "(AL)", "all"))


def test_other_runs_stay_apart(make_run: MakeRun) -> None:
    first, second = peer_folder(make_run, 0, {}), peer_folder(make_run, 1, {}, config="c1")
    plain = runs.read(make_run("plain"))
    found = peers.whole([runs.read(first), runs.read(second), plain])
    assert [run.peer for run in found] == [0, 1, None]
    assert peers.by_peer(plain) == ""
    assert [run.peer for run in peers.whole([runs.read(first), runs.read(first)])] == [0, 0]


def test_a_part_of_the_fleet_is_not_finished(make_run: MakeRun) -> None:
    (found,) = peers.whole([runs.read(peer_folder(make_run, peer, {})) for peer in (0, 2)])
    assert not found.finished
    assert sorted(found.ledger.traffic) == [0, 2]
