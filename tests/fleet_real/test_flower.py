"""A real SuperLink and four SuperNodes on loopback, with TLS and node authentication, on real data.

Each device is a process of its own, killed, frozen and started again by its process id.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from potluck.data.split import write_split
from potluck.engines.certificates import write_certificates
from potluck.engines.superlink import descendants, free_port
from potluck.experiment import build, run, store
from potluck.experiment.config import Experiment
from potluck.experiment.loaded import Run
from potluck.experiment.resolve import resolved

pytestmark = pytest.mark.fleet
DEVICES, WITHIN_S = 4, 800.0
TABLE: dict[str, Any] = {
    "name": "flower",
    "rounds": 3,
    "data": {"source": "digits", "public": 0.1},
    "model": {"name": "mlp"},
    "train": {"batch_size": 16},
    "fleet": {
        "tier": [{"name": "phone", "devices": 2}, {"name": "laptop", "devices": 2, "gflops": 50.0}],
        "deadline_s": 600.0,
    },
    "engine": {"kind": "inprocess", "join_timeout_s": 300.0},
}


@dataclass(slots=True)
class Fleet:
    """A folder with experiment, shares and keys; starts a server and devices, and ends those that are left."""

    folder: Path
    experiment: Experiment
    port: int = field(default_factory=free_port)
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def out(self) -> Path:
        return self.folder / "served"

    def call(self, *words: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "potluck.cli", *words],
            cwd=self.folder,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.started.append(process)
        return process

    def serve(self) -> subprocess.Popen[str]:
        where = ("--address", f"127.0.0.1:{self.port}", "--certificates", "keys")
        return self.call("serve", "flower.toml", *where, "--out", str(self.out))

    def join(self, device: int, *, keys: str = "keys", **other: str) -> subprocess.Popen[str]:
        named = {
            "data": f"npz:shares/device-{device:03d}.npz",
            "public": "npz:shares/public.npz",
            "test": "npz:shares/test.npz",
            "tier": "phone" if device < 2 else "laptop",
            "key": f"{keys}/peer-{device}.key",
            "ca": f"{keys}/ca.pem",
            "store": f"store-{device}",
            **other,
        }
        return self.call("join", f"127.0.0.1:{self.port}", *(w for k, v in named.items() for w in (f"--{k}", v)))

    def wait(self, what: Callable[[], bool], within_s: float = WITHIN_S) -> None:
        until = time.monotonic() + within_s
        while not what():
            assert time.monotonic() < until, (self.out / "superlink/superlink.log").read_text()[-2000:]
            time.sleep(0.2)

    def round_done(self, round: int) -> bool:
        return any(line["round"] >= round for line in store.read_lines(self.out / "rounds.jsonl"))

    def working(self, device: int, round: int) -> bool:
        """Whether the device's process of the round has been started."""
        log = self.folder / f"store-{device}/supernode.log"
        return log.exists() and log.read_text(errors="replace").count("train.round") >= round

    def ledger(self, round: int, verb: str = "train") -> dict[int, dict[str, Any]]:
        rows = Run.load(self.out).ledger
        return {r["device"]: r for r in rows if (r["round"], r["verb"], r["direction"]) == (round, verb, "up")}


def told(process: subprocess.Popen[str], timeout_s: float = WITHIN_S) -> tuple[int, str]:
    out, _ = process.communicate(timeout=timeout_s)
    return process.returncode, out


def kill(process: subprocess.Popen[str], number: int = signal.SIGKILL) -> None:
    """A signal to a process and all it started."""
    for pid in [process.pid, *descendants(process.pid)]:
        os.kill(pid, number)


MakeFleet = Callable[..., Fleet]


@pytest.fixture
def make_fleet(tmp_path: Path) -> Iterator[MakeFleet]:
    made: list[Fleet] = []

    def make(method: str = "fedavg", **changed: Any) -> Fleet:
        table = {**TABLE, **changed, "method": {"name": method}}
        experiment = Experiment.of(table)
        (tmp_path / "flower.toml").write_text(store.to_toml(experiment))
        write_split(build.make_shares(resolved(experiment)), tmp_path / "shares")
        write_certificates(tmp_path / "keys", DEVICES, {})
        made.append(Fleet(tmp_path, experiment))
        return made[-1]

    yield make
    for fleet in made:
        for process in fleet.started:
            if process.poll() is None:
                process.terminate()
        for process in fleet.started:
            family = descendants(process.pid)
            try:
                process.communicate(timeout=30)
            except subprocess.TimeoutExpired:
                for pid in family:
                    os.kill(pid, signal.SIGKILL)
                process.kill()
                process.communicate()
        assert not left(tmp_path), "a process was left behind"


def left(folder: Path) -> list[str]:
    """The command lines of processes that name this folder."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = place.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in line:
            found.append(line)
    return found


@pytest.mark.timeout(900)
@pytest.mark.parametrize("method", ["fedavg", "fedhm", "fedh2l"])
def test_a_real_fleet_equals_one_process(make_fleet: MakeFleet, method: str) -> None:
    fleet = make_fleet(method)
    native = run.run(fleet.experiment, fleet.folder / "native").summary
    for device in range(DEVICES):
        fleet.join(device)
    code, said = told(fleet.serve())
    assert code == 0, said
    found = Run.load(fleet.out)
    assert found.summary["state_sha256"] == native["state_sha256"]
    assert found.summary["accuracy"]["mean"] == native["accuracy"]["mean"]
    assert {row["status"] for row in found.ledger} == {"ok"}
    counted = json.loads((fleet.out / "superlink/bytes.json").read_text())["runs"][0]["network-traffic"]
    frames = sum(row["encoded_bytes"] for row in found.ledger)
    assert 0 < counted["total-bytes"] - frames < 8_000 * len(found.ledger)


@pytest.mark.timeout(900)
def test_deaths_and_a_freeze_are_told_and_the_run_ends(make_fleet: MakeFleet) -> None:
    """Device 3 is killed in its training of round 2 and started again; device 2 is frozen in round 2 for a while."""
    fleet = make_fleet(rounds=4, fleet={**TABLE["fleet"], "deadline_s": 90.0})
    devices = [fleet.join(device) for device in range(DEVICES)]
    server = fleet.serve()
    fleet.wait(lambda: fleet.round_done(1))
    frozen = [devices[2].pid, *descendants(devices[2].pid)]
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    kill(devices[3])
    fleet.join(3)
    fleet.wait(lambda: fleet.round_done(2))
    for pid in frozen:
        if Path(f"/proc/{pid}").exists():
            os.kill(pid, signal.SIGCONT)
    code, said = told(server)
    assert code == 0, said
    second = fleet.ledger(2)
    assert {device: row["status"] for device, row in second.items() if device < 2} == {0: "ok", 1: "ok"}
    for device in (2, 3):
        assert second[device]["status"] in ("lost", "late"), second[device]
        assert f"device {device}" in second[device]["reason"]
    assert Run.load(fleet.out).summary["rounds"] == 4


@pytest.mark.timeout(900)
def test_a_killed_server_goes_on_where_it_stopped(make_fleet: MakeFleet) -> None:
    """With states of their own on the devices, which keep running."""
    fleet = make_fleet("fedmd", rounds=4)
    native = run.run(fleet.experiment, fleet.folder / "native").summary
    for device in range(DEVICES):
        fleet.join(device)
    server = fleet.serve()
    fleet.wait(lambda: fleet.round_done(2))
    kill(server)
    server.communicate()
    code, said = told(fleet.call("resume", str(fleet.out)))
    assert code == 0, said
    assert "from round" in said
    assert Run.load(fleet.out).summary["state_sha256"] == native["state_sha256"]
    assert [line["round"] for line in Run.load(fleet.out).rounds] == [1, 2, 3, 4]


@pytest.mark.timeout(600)
def test_wrong_keys_and_authorities_are_told(make_fleet: MakeFleet, tmp_path: Path) -> None:
    fleet = make_fleet()
    write_certificates(tmp_path / "other", DEVICES, {})
    write_certificates(tmp_path / "fresh", DEVICES, {}, authority_from=tmp_path / "keys")
    server = fleet.serve()
    fleet.wait((fleet.out / "superlink/nodes.json").exists)
    code, said = told(fleet.join(0, keys="other"))
    assert (code, "is of another CA than" in said) == (2, True), said
    code, said = told(fleet.join(0, keys="fresh"))
    assert (code, "refuses this device: its key is not of the server's" in said) == (2, True), said
    assert server.poll() is None
    second = fleet.call("serve", "flower.toml", "--address", f"127.0.0.1:{fleet.port}", "--certificates", "keys")
    code, said = told(second)
    assert (code, "cannot listen there" in said) == (2, True), said
    server.terminate()
    code, said = told(server)
    assert "the last checkpoint is whole" in said
