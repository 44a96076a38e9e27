"""Peers that post what they should not, as processes of their own: named in every ledger, and nobody else is hurt."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.fleet_real.conftest import PEERS, MakeWorld, World, told

from potluck.core import tree
from potluck.engines.local_state import LocalStateStore

pytestmark = [pytest.mark.fleet, pytest.mark.timeout(600)]
DEADLINE_S, PATIENCE_S = 20.0, 280.0
SAYS = {
    "sums": "posteriors",
    "nan": "posteriors",
    "shape": "posteriors",
    "seeds": "seed_digest",
    "old": "round",
}


def start_rogue(world: World, fault: str) -> subprocess.Popen[str]:
    ports = ",".join(str(port) for port in world.ports)
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).parent / "rogue.py"), str(world.folder), ports, fault],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    world.started.append(process)
    return process


def finite(world: World, peer: int) -> bool:
    """Whether all that the peer's net has learnt is finite."""
    own = LocalStateStore(world.out(peer) / "state" / "own").load(peer, len(world.lines(peer, "rounds")))["own"]
    return all(bool(torch.isfinite(leaf).all()) for leaf in tree.tensors(own).values() if leaf.is_floating_point())


@pytest.mark.parametrize("fault", list(SAYS))
def test_a_post_of_no_use_is_named_and_absorbed_by_nobody(make_world: MakeWorld, fault: str) -> None:
    engine = {"min_peers": PEERS - 1, "deadline_s": DEADLINE_S, "linger_s": 5.0, "join_timeout_s": 90.0}
    world = make_world(rounds=2, method={"posts": "float32"}, engine=engine)
    rogue = start_rogue(world, fault)
    healthy = [world.start(peer) for peer in (0, 1)]
    for process in healthy:
        code, said = told(process, PATIENCE_S)
        assert code == 0, said
    rogue.kill()
    for peer in (0, 1):
        rejected = [row for row in world.lines(peer) if row["status"] != "ok"]
        assert {(row["device"], row["status"]) for row in rejected} == {(2, "rejected")}
        assert [row["round"] for row in rejected] == [1, 2]
        assert all("device 2" in row["reason"] and SAYS[fault] in row["reason"] for row in rejected)
        assert all(row["seconds"] < DEADLINE_S + 1 for row in rejected)
        assert finite(world, peer)


def test_an_answer_on_the_key_of_another_is_not_heard(make_world: MakeWorld) -> None:
    engine = {"min_peers": 1, "deadline_s": 6.0, "linger_s": 0.0, "join_timeout_s": 90.0}
    world = make_world(rounds=1, method={"posts": "float32"}, engine=engine)
    rogue, healthy = start_rogue(world, "other"), world.start(0)
    code, said = told(healthy, PATIENCE_S)
    assert code == 0, said
    rogue.kill()
    wrong = [row for row in world.lines(0) if row["status"] != "ok"]
    assert [(row["device"], row["status"]) for row in wrong] == [(1, "lost")]
    assert wrong[0]["seconds"] < 6.0 + 1
    assert finite(world, 0)
