"""A real mesh: the same state as in one process, whatever the order of starts; deaths, freezes and wrong keys."""

from __future__ import annotations

import signal
import socket
import time
from pathlib import Path

import pytest
from tests.fleet_real.conftest import PEERS, MakeWorld, World, told

from potluck.core.errors import RunFolderError
from potluck.engines.security.certificates import write_certificates
from potluck.experiment import run
from potluck.experiment.config import Experiment
from potluck.experiment.run_reader import Run
from potluck.report import peers, runs

pytestmark = [pytest.mark.fleet, pytest.mark.timeout(300)]


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
    with pytest.raises(RunFolderError, match="of one peer of a mesh"):
        run.resume(world.out(0))
    (together,) = peers.whole([runs.read(world.out(peer)) for peer in range(PEERS)])
    one = runs.read(world.folder / "native")
    assert together.finished
    assert together.scores
    assert one.scores
    assert together.scores.ad == pytest.approx(one.scores.ad)
    assert together.scores.al == pytest.approx(one.scores.al)
    for peer in range(PEERS):
        ups = [row for row in world.lines(peer) if row["direction"] == "up" and row["verb"] != "evaluate"]
        assert together.ledger.traffic[peer].up == sum(row["encoded_bytes"] for row in ups)


@pytest.mark.timeout(600)
def test_six_peers_equal_the_pool_and_the_relay(make_world: MakeWorld) -> None:
    tiers = [{"name": "small", "devices": 3}, {"name": "large", "devices": 3}]
    engine = {"min_peers": 5, "join_timeout_s": 200.0, "deadline_s": 100.0}
    world = make_world(rounds=2, fleet={"tier": tiers}, engine=engine)
    native, digests = world.native(), set()
    for name, other in (("relay", {"relay": True}), ("pool", {"kind": "pool", "workers": 2})):
        changed = {**world.experiment.model_dump(), "engine": {**world.experiment.model_dump()["engine"], **other}}
        digests.add(run.run(Experiment.of(changed), world.folder / name).summary["state_sha256"])
    processes = [world.start(peer) for peer in range(6)]
    for process in processes:
        code, said = told(process, 400.0)
        assert code == 0, said
    assert {peer: world.digest(peer) for peer in range(6)} == native
    assert digests == {Run.load(world.folder / "native").summary["state_sha256"]}


def test_a_peer_that_is_killed_costs_only_itself(make_world: MakeWorld) -> None:
    world = make_world(rounds=12, engine={"deadline_s": 8.0, "linger_s": 1.0})
    processes = [world.start(peer) for peer in range(PEERS)]
    wait_for_round(world, 2, 2)
    processes[2].kill()
    for process in processes[:2]:
        code, said = told(process)
        assert code == 0, said
    for peer in (0, 1):
        lines = world.lines(peer, "rounds")
        assert len(lines) == 12
        assert lines[-1]["status"] == {"lost": [2]}
        assert any(notes.get("peers") == 1.0 for notes in lines[-1]["notes"].values())
        lost = [row for row in world.lines(peer) if row["status"] == "lost"]
        assert {row["device"] for row in lost} == {2}
        assert all("device 2" in row["reason"] for row in lost)


def test_a_frozen_peer_holds_a_round_up_to_the_deadline_and_comes_back(make_world: MakeWorld) -> None:
    world = make_world(rounds=40, engine={"deadline_s": 4.0, "linger_s": 5.0})
    processes = [world.start(peer) for peer in range(PEERS)]
    wait_for_round(world, 1, 1)
    processes[2].send_signal(signal.SIGSTOP)
    try:
        frozen_at = max(line["round"] for line in world.lines(1, "rounds"))
        wait_for_round(world, 1, min(frozen_at + 3, 39))
    finally:
        processes[2].send_signal(signal.SIGCONT)
    for process in processes:
        code, said = told(process)
        assert code == 0, said
    missed = [line for line in world.lines(1, "rounds") if line["status"].get("lost") == [2]]
    assert missed
    for line in missed:
        assert line["seconds"] < 4.0 + 2.5  # the deadline and its own work: not the five seconds more of a push
    assert len(world.lines(2, "rounds")) == 40


def test_a_crashed_peer_goes_on_while_the_others_wait(make_world: MakeWorld) -> None:
    world = make_world(rounds=6)
    native = world.native()
    processes = [world.start(peer) for peer in range(PEERS)]
    wait_for_round(world, 0, 2)
    processes[0].kill()
    processes[0].communicate()
    code, said = told(world.start(0))
    assert code == 0, said
    for process in processes[1:]:
        code, said = told(process)
        assert code == 0, said
    assert [line["round"] for line in world.lines(0, "rounds")] == [1, 2, 3, 4, 5, 6]
    complete = all(not line["status"] for peer in range(PEERS) for line in world.lines(peer, "rounds"))
    assert not complete or {peer: world.digest(peer) for peer in range(PEERS)} == native


def test_all_crash_and_go_on(make_world: MakeWorld) -> None:
    world = make_world(rounds=5)
    native = world.native()
    processes = [world.start(peer) for peer in range(PEERS)]
    wait_for_round(world, 1, 2)
    for process in processes:
        process.kill()
        process.communicate()
    for process in [world.start(peer) for peer in range(PEERS)]:
        code, said = told(process)
        assert code == 0, said
    last = [world.lines(peer, "rounds")[-1]["round"] for peer in range(PEERS)]
    assert last == [5, 5, 5]
    complete = all(not line["status"] for peer in range(PEERS) for line in world.lines(peer, "rounds"))
    assert not complete or {peer: world.digest(peer) for peer in range(PEERS)} == native


def alone(world: World, keys: Path, listener_keys: Path | None = None) -> str:
    """What peer 1 says that dials peer 0, each with keys of a folder."""
    first = world.start(0, keys=str(listener_keys or world.folder / "keys"), engine__join_timeout_s="20.0")
    time.sleep(4)
    code, said = told(world.start(1, keys=str(keys), engine__join_timeout_s="4.0"))
    first.kill()
    assert code != 0
    assert "no peer linked within 4 s" in said
    return said


def test_keys_of_another_authority_are_told(make_world: MakeWorld, tmp_path: Path) -> None:
    write_certificates(tmp_path / "other", PEERS, {})
    assert "unknown CA" in alone(make_world(), tmp_path / "other")


def test_an_expired_certificate_is_told(make_world: MakeWorld, tmp_path: Path) -> None:
    world = make_world()
    write_certificates(tmp_path / "old", PEERS, {}, days=-1, authority_from=world.folder / "keys")
    assert "expired" in alone(world, world.folder / "keys", tmp_path / "old")


def test_a_certificate_for_another_host_is_told(make_world: MakeWorld, tmp_path: Path) -> None:
    world = make_world()
    hosts = {peer: ["elsewhere.example"] for peer in range(PEERS)}
    write_certificates(tmp_path / "away", PEERS, hosts, authority_from=world.folder / "keys")
    assert "another name" in alone(world, world.folder / "keys", tmp_path / "away")


def test_nobody_there_is_told(make_world: MakeWorld) -> None:
    world = make_world()
    code, said = told(world.start(1, engine__join_timeout_s="2.0"))
    assert code != 0
    assert "refused: nothing listens there" in said


def test_a_port_that_is_taken_is_told(make_world: MakeWorld) -> None:
    world = make_world()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", world.ports[0]))
        taken.listen()
        code, said = told(world.start(0))
    assert code != 0
    assert "is the port taken" in said


def test_an_exception_in_training_ends_the_process(make_world: MakeWorld) -> None:
    world = make_world()
    code, said = told(world.start(0, train__lr="1e30", engine__min_peers="0", engine__deadline_s="1.0"))
    assert code != 0
    assert "the loss became" in said


def test_certificates_of_another_id_or_readable_keys_are_refused(make_world: MakeWorld) -> None:
    world = make_world()
    keys = world.folder / "keys"
    assert all((path.stat().st_mode & 0o777) == 0o600 for path in keys.glob("*.key"))
    (keys / "peer-0.pem").write_bytes((keys / "peer-1.pem").read_bytes())
    code, said = told(world.start(0))
    assert (code, "expected 'peer-0'" in said) == (2, True)
    (keys / "peer-1.key").chmod(0o644)
    code, said = told(world.start(1))
    assert (code, "readable by others" in said) == (2, True)
