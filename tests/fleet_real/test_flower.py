"""A real SuperLink and SuperNodes on loopback, with TLS and node authentication, on real data.

Each device is a process of its own, killed, frozen and started again by its process id.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from benchmarks.faults.flower_rogue import SAYS, plant
from benchmarks.fleet.flower_fleet import LONG, TABLE, Fleet, fleet_in, hurt_when_busy, send

from potluck.engines.security.certificates import write_certificates
from potluck.experiment import run, store
from potluck.experiment.run_reader import Run

pytestmark = [pytest.mark.fleet, pytest.mark.timeout(600)]
DEVICES = 4
TWO = [{"name": "phone", "devices": 1}, {"name": "laptop", "devices": 1, "gflops": 50.0}]
MakeFleet = Callable[..., Fleet]


@pytest.fixture
def make_fleet(tmp_path: Path) -> Iterator[MakeFleet]:
    """Fleets whose processes are gone afterwards, or the test fails."""
    with ExitStack() as stack:
        yield lambda **changed: stack.enter_context(fleet_in(tmp_path, changed))


def changed(key: str, **values: Any) -> dict[str, Any]:
    """A section of the experiment, with other values."""
    return {key: {**TABLE[key], **values}}


@pytest.mark.parametrize("method", ["fedavg", "fedhm", "fedh2l"])
def test_a_real_fleet_equals_one_process(make_fleet: MakeFleet, method: str) -> None:
    fleet = make_fleet(method={"name": method})
    for device in range(DEVICES):
        fleet.join(device)
    server = fleet.serve()
    native = run.run(fleet.experiment, fleet.folder / "native").summary
    code, said = fleet.told(server)
    assert code == 0, said
    found = Run.load(fleet.out)
    assert found.summary["state_sha256"] == native["state_sha256"]
    assert found.summary["accuracy"]["mean"] == native["accuracy"]["mean"]
    assert {row["status"] for row in found.ledger} == {"ok"}
    counted = json.loads((fleet.out / "superlink/bytes.json").read_text())["runs"][0]["network-traffic"]
    frames = sum(row["encoded_bytes"] for row in found.ledger)
    assert 0 < counted["total-bytes"] - frames < 8_000 * len(found.ledger)


def test_the_dead_and_the_frozen_are_named_and_come_back(make_fleet: MakeFleet, tmp_path: Path) -> None:
    """In round 2 device 3 is killed in its training, and device 2 frozen; round 3 waits until both are back.

    Meanwhile somebody whose key is not registered asks again and again, and is never let in.
    """
    fleet = make_fleet(**changed("engine", min_devices=DEVICES), **changed("train", epochs=LONG))
    write_certificates(tmp_path / "fresh", DEVICES, {}, authority_from=tmp_path / "keys")
    devices = [fleet.join(device) for device in range(DEVICES)]
    server = fleet.serve()
    fleet.wait(lambda: fleet.rounds() == 1)
    stranger = fleet.join(0, keys="fresh", store="store-stranger")
    hurt_when_busy(fleet, {2: (devices[2], signal.SIGSTOP), 3: (devices[3], signal.SIGKILL)}, round=2)
    fleet.wait(lambda: fleet.rounds() == 2, within_s=TABLE["fleet"]["deadline_s"] / 2)
    send(devices[2], signal.SIGCONT)
    fleet.join(3)
    code, said = fleet.told(server)
    assert code == 0, said
    assert {device: row["status"] for device, row in fleet.ledger(1).items()} == dict.fromkeys(range(DEVICES), "ok")
    assert {device: row["status"] for device, row in fleet.ledger(3).items()} == dict.fromkeys(range(DEVICES), "ok")
    second = fleet.ledger(2)
    assert {device: row["status"] for device, row in second.items()} == {0: "ok", 1: "ok", 2: "lost", 3: "lost"}
    assert all(f"device {device}: it is gone" in second[device]["reason"] for device in (2, 3))
    assert Run.load(fleet.out).rounds[1]["seconds"] < TABLE["fleet"]["deadline_s"] / 2
    assert "refused by the server: just cut off, or its key is not registered" in fleet.said(stranger)
    assert not fleet.work(0, "store-stranger")


def test_a_killed_server_goes_on_where_it_stopped(make_fleet: MakeFleet) -> None:
    """With states of their own on the devices, which keep running."""
    fleet = make_fleet(**changed("fleet", tier=TWO), method={"name": "fedmd"})
    devices = [fleet.join(device) for device in range(len(TWO))]
    server = fleet.serve()
    fleet.wait(lambda: fleet.rounds() == 1)
    send(server, signal.SIGKILL)
    server.wait()
    native = run.run(fleet.experiment, fleet.folder / "native").summary
    code, said = fleet.told(fleet.call("resume", str(fleet.out)))
    assert code == 0, said
    assert "from round" in said
    assert Run.load(fleet.out).summary["state_sha256"] == native["state_sha256"]
    assert [line["round"] for line in Run.load(fleet.out).rounds] == [1, 2, 3]
    assert all(device.poll() is None for device in devices)


def test_hostile_frames_are_named_and_the_run_goes_on(make_fleet: MakeFleet) -> None:
    faults = {1: "type", 2: "cut", 4: "shape", 5: "nan"}
    fleet = make_fleet(rounds=5, **changed("fleet", tier=TWO))
    plant(fleet.folder / "store-1" / "home", faults)
    fleet.join(0)
    rogue = fleet.call(*fleet.join_words(1), "--cold")
    code, said = fleet.told(fleet.serve())
    assert code == 0, said
    assert rogue.poll() is None
    for round in range(1, 6):
        rows, fault = fleet.ledger(round), faults.get(round)
        assert rows[0]["status"] == "ok"
        assert rows[1]["status"] == ("rejected" if fault else "ok"), rows[1]
        assert not fault or ("device 1" in rows[1]["reason"] and SAYS[fault] in rows[1]["reason"]), rows[1]


def test_who_does_not_fit_is_told_in_a_line(make_fleet: MakeFleet, tmp_path: Path) -> None:
    """On a server that has all in vain been waited for: at the device, and at the server."""
    tiers = [{"name": "phone", "devices": 3}]
    fleet = make_fleet(**changed("fleet", tier=tiers), **changed("engine", join_timeout_s=60.0, min_devices=2))
    write_certificates(tmp_path / "other", 1, {})
    (tmp_path / "other.toml").write_text(store.to_toml(fleet.experiment).replace("seed = 0", "seed = 1"))
    server = fleet.serve()
    fleet.wait((fleet.out / "superlink/nodes.json").exists)
    fridge, foreign = fleet.join(0, tier="fridge"), fleet.join(1, experiment="other.toml")
    code, said = fleet.told(fleet.join(0, keys="other", store="store-other"))
    assert (code, "is of another CA than" in said) == (2, True), said
    code, said = fleet.told(fleet.serve())
    assert (code, "cannot listen there" in said, "choose another port" in said) == (2, True, True), said
    code, said = fleet.told(server)
    assert code == 2, said
    assert "0 of 3 devices joined within 60 s, expected 2: missing 0, 1, 2" in said
    assert "--tier fridge: the experiment knows phone" in said
    assert "its experiment has the digest" in said
    assert "the server's" in said
    fleet.wait(lambda: bool(fleet.work(0)))
    assert "refused: --tier fridge: the experiment knows phone" in fleet.said(fridge)
    assert foreign.poll() is None


def test_a_server_that_is_ended_says_how_to_go_on(make_fleet: MakeFleet) -> None:
    fleet = make_fleet()
    server = fleet.serve()
    fleet.wait((fleet.out / "superlink/nodes.json").exists)
    server.terminate()
    code, said = fleet.told(server)
    assert (code != 0, "the last checkpoint is whole" in said) == (True, True), said
