"""A real mesh: the same state as in one process, whatever the order of starts; deaths, freezes and wrong keys."""

from __future__ import annotations

import time

import pytest
from tests.fleet_real.conftest import PEERS, MakeWorld, World, told

pytestmark = pytest.mark.fleet


def wait_for_round(world: World, peer: int, round: int, within_s: float = 60.0) -> None:
    """Waits until the peer has finished a round."""
    until = time.monotonic() + within_s
    while not any(line["round"] >= round for line in world.lines(peer, "rounds")):
        assert time.monotonic() < until, f"peer {peer} did not finish round {round}"
        time.sleep(0.05)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_a_mesh_equals_one_process(make_world: MakeWorld, order: tuple[int, ...]) -> None:
    world = make_world()
    native = world.native()
    processes = [world.start(peer) for peer in order]
    for process in processes:
        code, said = told(process)
        assert code == 0, said
    assert {peer: world.digest(peer) for peer in range(PEERS)} == native
    for peer in range(PEERS):
        rows = [row for row in world.lines(peer) if row["verb"] in ("post", "absorb")]
        assert {row["status"] for row in rows} == {"ok"}
        assert {row["tensor_bytes"] for row in rows} == {(PEERS - 1) * 20 * 10 * 2}
        assert world.lines(peer, "rounds")[-1]["accuracy"]["devices"].keys() == {str(peer)}
