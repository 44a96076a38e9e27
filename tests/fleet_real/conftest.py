"""Three peers in processes of their own, on loopback, with certificates made on the spot."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from potluck.deploy.split import write_split
from potluck.engines.security.certificates import write_certificates
from potluck.experiment import build, run, store
from potluck.experiment.config import Experiment
from potluck.experiment.resolve import resolve

PEERS = 3
TABLE: dict[str, Any] = {
    "name": "peers",
    "rounds": 3,
    "data": {"source": "synthetic:200,1,8,8", "public": 0.1},
    "model": {"name": "mlp"},
    "method": {"name": "fedh2l"},
    "train": {"batch_size": 16},
    "fleet": {"tier": [{"name": "small", "devices": 2}, {"name": "large", "devices": 1}]},
    "engine": {"kind": "inprocess", "deadline_s": 60.0, "min_peers": 1, "join_timeout_s": 30.0, "linger_s": 20.0},
}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@dataclass(slots=True)
class World:
    """A folder with the experiment, the shares and the keys; starts peers, and ends those that are left."""

    folder: Path
    experiment: Experiment
    ports: list[int]
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def native(self) -> dict[int, str]:
        """Each peer's own state after a run in one process, as a digest."""
        run.run(self.experiment, self.folder / "native")
        return store.read_checkpoint(self.folder / "native").local_states  # type: ignore[return-value]

    def out(self, peer: int) -> Path:
        return self.folder / f"peer-{peer}"

    def command(self, peer: int, **other: str) -> list[str]:
        keys = Path(other.pop("keys", str(self.folder / "keys")))
        dialled = [f"{k}=tls/127.0.0.1:{self.ports[k]}" for k in range(peer)]
        return [
            *(sys.executable, "-m", "potluck.cli", "peer", str(self.folder / "peers.toml"), "--id", str(peer)),
            *("--data", f"npz:{self.folder}/shares/device-{peer:03d}.npz"),
            *("--public", f"npz:{self.folder}/shares/public.npz", "--test", f"npz:{self.folder}/shares/test.npz"),
            *("--listen", f"tls/127.0.0.1:{self.ports[peer]}", "--out", str(self.out(peer)), "--quiet"),
            *(word for end in dialled for word in ("--connect", end)),
            *("--cert", str(keys / f"peer-{peer}.pem"), "--key", str(keys / f"peer-{peer}.key")),
            *("--ca", str(keys / "ca.pem")),
            *(word for name, value in other.items() for word in ("--set", f"{name.replace('__', '.')}={value}")),
        ]

    def start(self, peer: int, *words: str, **other: str) -> subprocess.Popen[str]:
        path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
        process = subprocess.Popen(
            [*self.command(peer, **other), *words],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def digest(self, peer: int) -> str:
        return store.read_checkpoint(self.out(peer)).local_states[peer]

    def lines(self, peer: int, name: str = "ledger") -> list[dict[str, Any]]:
        path = self.out(peer) / f"{name}.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def told(process: subprocess.Popen[str], timeout_s: float = 100.0) -> tuple[int, str]:
    """(exit code, what the process said)."""
    out, err = process.communicate(timeout=timeout_s)
    return process.returncode, out + err


MakeWorld = Callable[..., World]


@pytest.fixture
def make_world(tmp_path: Path) -> Iterator[MakeWorld]:
    made: list[World] = []

    def make(**changed: Any) -> World:
        table = {
            key: {**value, **changed.get(key, {})} if isinstance(value, dict) else value for key, value in TABLE.items()
        }
        table |= {key: value for key, value in changed.items() if key not in table or not isinstance(value, dict)}
        experiment = Experiment.of(table)
        (tmp_path / "peers.toml").write_text(store.to_toml(experiment))
        write_split(build.make_shares(resolve(experiment)), tmp_path / "shares")
        peers = sum(tier.devices for tier in experiment.fleet.tier)
        write_certificates(tmp_path / "keys", peers, {})
        world = World(tmp_path, experiment, [free_port() for _ in range(peers)])
        made.append(world)
        return world

    yield make
    for world in made:
        for process in world.started:
            if process.poll() is None:
                process.kill()
            process.communicate()
