"""A fleet on Flower on this machine: the server and every device a process of its own, on loopback, with TLS and keys.

What the scripts flower_*.py and tests/fleet_real/test_flower.py share: a folder with an experiment, shares and keys;
processes that are started, frozen and killed by their ids; and what the run folder says of them afterwards.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from potluck.deploy.split import write_split
from potluck.engines.flower.superlink import descendants, free_port
from potluck.engines.security.certificates import write_certificates
from potluck.experiment import build, store
from potluck.experiment.config import Experiment
from potluck.experiment.resolve import resolve
from potluck.experiment.run_reader import Run

WITHIN_S, STOP_S, MARK = 400.0, 30.0, "POTLUCK_FLEET"
TABLE: dict[str, Any] = {
    "name": "flower",
    "rounds": 3,
    "data": {"source": "digits", "public": 0.1},
    "model": {"name": "mlp"},
    "train": {"batch_size": 16},
    "fleet": {
        "tier": [{"name": "phone", "devices": 2}, {"name": "laptop", "devices": 2, "gflops": 50.0}],
        "deadline_s": 240.0,
    },
    "engine": {"kind": "inprocess", "join_timeout_s": 240.0},
}
"""The digits, all of them, shared out among two kinds of devices."""


@dataclass(slots=True)
class Fleet:
    """A folder with an experiment, shares and keys, and what was started in it."""

    folder: Path
    experiment: Experiment
    port: int = field(default_factory=free_port)
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def out(self) -> Path:
        """The run folder."""
        return self.folder / "served"

    def call(self, *words: str, program: tuple[str, ...] = ("-m", "potluck.cli")) -> subprocess.Popen[bytes]:
        """A command of Potluck's as a process; what it says stands in a file, see ``said``."""
        with (self.folder / f"process-{len(self.started)}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, *program, *words],
                cwd=self.folder,
                env={**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1", MARK: str(self.folder)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.started.append(process)
        return process

    def said(self, process: subprocess.Popen[bytes]) -> str:
        """All that a process has said, with single spaces."""
        log = self.folder / f"process-{self.started.index(process)}.log"
        return " ".join(log.read_text(errors="replace").split())

    def told(self, process: subprocess.Popen[bytes], within_s: float = WITHIN_S) -> tuple[int, str]:
        """(exit code, what it said) of a process that ends by itself. Raises subprocess.TimeoutExpired."""
        return process.wait(within_s), self.said(process)

    def serve(self) -> subprocess.Popen[bytes]:
        """The server; it makes no report, which would take longer than a round."""
        where = ("--address", f"127.0.0.1:{self.port}", "--certificates", "keys", "--out", str(self.out))
        return self.call("serve", "flower.toml", "--quiet", *where)

    def join_words(self, device: int, **other: str) -> list[str]:
        """The arguments of ``potluck join`` for a device; ``other`` replaces some."""
        keys = other.pop("keys", "keys")
        tiers = [tier.name for tier in self.experiment.fleet.tier for _ in range(tier.devices)]
        named = {
            "data": f"npz:shares/device-{device:03d}.npz",
            "public": "npz:shares/public.npz",
            "test": "npz:shares/test.npz",
            "tier": tiers[device],
            "key": f"{keys}/peer-{device}.key",
            "ca": f"{keys}/ca.pem",
            "store": f"store-{device}",
            **other,
        }
        return ["join", f"127.0.0.1:{self.port}", *(w for k, v in named.items() for w in (f"--{k}", v))]

    def join(self, device: int, **other: str) -> subprocess.Popen[bytes]:
        """A device."""
        return self.call(*self.join_words(device, **other))

    def wait(self, what: Callable[[], bool], within_s: float = WITHIN_S) -> None:
        """Until it is so. Raises TimeoutError with the last lines of all that was started."""
        until = time.monotonic() + within_s
        while not what():
            if time.monotonic() > until:
                tails = "\n".join(self.said(process)[-500:] for process in self.started)
                raise TimeoutError(f"not within {within_s:g} s; the processes said:\n{tails}")
            time.sleep(0.1)

    def rounds(self) -> int:
        """How many rounds are done."""
        return len(store.read_lines(self.out / "rounds.jsonl"))

    def work(self, device: int, kept: str = "") -> list[dict[str, Any]]:
        """The device's own record: a line for each message that it has answered since it was started."""
        return store.read_lines(self.folder / (kept or f"store-{device}") / "work.jsonl")

    def busy(self, device: int, round: int) -> bool:
        """Whether the device has been given the round's training, and has not answered yet."""
        log = self.folder / f"store-{device}" / "supernode.log"
        text = log.read_text(errors="replace") if log.exists() else ""
        asked = text.rpartition(f"ROUND {round}]")[2]
        return text != asked and "Receiving: train.round" in asked and "Sending:" not in asked

    def ledger(self, round: int, verb: str = "train") -> dict[int, dict[str, Any]]:
        """The row of each device's reply in a round."""
        rows = Run.load(self.out).ledger
        return {r["device"]: r for r in rows if (r["round"], r["verb"], r["direction"]) == (round, verb, "up")}

    def end(self) -> list[str]:
        """Ends what is left of all that was started, gently; the command lines of those that stayed."""
        for process in self.started:
            send(process, signal.SIGCONT)
            if process.poll() is None:
                process.terminate()
        for process in self.started:
            family = descendants(process.pid)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_S)
            for pid in [process.pid, *family] if process.poll() is None else ():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()
        until = time.monotonic() + STOP_S  # what Flower starts looks after its parent now and then
        while (left := marked(self.folder)) and time.monotonic() < until:
            time.sleep(0.1)
        return left


LONG = {"phone": 1, "laptop": 1000}
"""Epochs: a laptop trains for more than the three seconds that pass between two looks of a device for work."""
Blows = Mapping[int, tuple[subprocess.Popen[bytes], signal.Signals]]
"""A device's process, and the signal that it gets."""


def hurt_when_busy(fleet: Fleet, blows: Blows, round: int) -> None:
    """Sends each device its signal as soon as it is at work on the round: they begin at different moments."""
    left = dict(blows)

    def somebody() -> int | None:
        return next((device for device in left if fleet.busy(device, round)), None)

    while left:
        fleet.wait(lambda: somebody() is not None)
        device = somebody()
        if device is not None:
            send(*left.pop(device))


def send(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """A signal to a process and to all it started, each by its id."""
    for pid in [process.pid, *descendants(process.pid)] if process.poll() is None else ():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def marked(folder: Path) -> list[str]:
    """The command lines of the processes that were started in this folder, and of all that those started."""
    found, mark = [], f"{MARK}={folder}\0".encode()
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (place / "environ").read_bytes():
                found.append((place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return [line for line in found if line]


@contextlib.contextmanager
def fleet_in(folder: Path, changed: Mapping[str, Any]) -> Iterator[Fleet]:
    """A fleet in a folder of its own; afterwards all its processes are gone. Raises RuntimeError if one stays."""
    folder.mkdir(parents=True, exist_ok=True)
    experiment = Experiment.of({**TABLE, **changed})
    (folder / "flower.toml").write_text(store.to_toml(experiment))
    if not (folder / "keys").exists():
        write_split(build.make_shares(resolve(experiment)), folder / "shares")
        write_certificates(folder / "keys", sum(tier.devices for tier in experiment.fleet.tier), {})
    fleet = Fleet(folder, experiment)
    try:
        yield fleet
    finally:
        left = fleet.end()
    if left:
        raise RuntimeError(f"processes were left behind: {left}")
