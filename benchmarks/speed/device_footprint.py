"""What a device on Flower needs: memory and CPU of each of its processes, waiting and in a round.

    python benchmarks/speed/device_footprint.py [--rounds 6] [--idle 90] [--cold] [--python FILE] [--out DIR]

Two devices join a server that waits for a third: what they use then is what waiting costs. Then it joins, and the
rounds are played (an MLP on the digits, TLS and node keys). Resident memory (RSS) counts a shared page in each process,
proportional memory (PSS) a share of it. Printed: a row for each kind of process, and the CPU seconds. Needs root, for
control groups count the CPU time of processes that are gone.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from potluck.deploy.split import write_split
from potluck.engines.flower.superlink import descendants, free_port
from potluck.engines.security.certificates import write_certificates
from potluck.experiment import build, store
from potluck.experiment.config import Experiment
from potluck.experiment.resolve import resolve

DEVICES, LOOK_S, SETTLE_S, LONGEST_S = 3, 0.1, 10.0, 420.0
KINDS = ("flower-supernode", "flower-superexec", "flwr-clientapp", "flower-superlink", "flwr-serverapp")
WARM, CGROUPS = "potluck.engines.flower.warm", Path("/sys/fs/cgroup")


def experiment(rounds: int) -> Experiment:
    """Three devices of one tier."""
    return Experiment.of(
        {
            "name": "footprint",
            "rounds": rounds,
            "data": {"source": "digits"},
            "model": {"name": "mlp"},
            "method": {"name": "fedavg"},
            "fleet": {"tier": [{"name": "device", "devices": DEVICES}], "deadline_s": 120.0},
            "engine": {"kind": "inprocess", "join_timeout_s": 600.0},
        }
    )


@dataclass(slots=True)
class Seen:
    """The processes of one tree, as they have been seen: megabytes (RSS, PSS) by kind, and of all together."""

    root: int
    memory: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))

    def look(self) -> None:
        """Notes the memory of each process."""
        whole = [0.0, 0.0]
        for pid in [self.root, *descendants(self.root)]:
            with contextlib.suppress(OSError, IndexError, ValueError):
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
                sizes = dict(line.split()[:2] for line in lines)
                rss, pss = int(sizes["Rss:"]) / 1024, int(sizes["Pss:"]) / 1024
                self.memory[kind_of(pid)].append((rss, pss))
                whole = [whole[0] + rss, whole[1] + pss]
        self.memory["all of them"].append((whole[0], whole[1]))


def kind_of(pid: int) -> str:
    """What a process is, by its command; a fork of the warm one works on a message."""
    line, parent = command(pid), int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    if WARM in line:
        return "a message, at work" if WARM in command(parent) else "the warm process"
    return next((kind for kind in KINDS if kind in line), "potluck")


def command(pid: int) -> str:
    """The command line of a process."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A control group: the CPU seconds of all processes in it, of those that are gone too. Needs root."""

    place: Path

    def enter(self) -> None:
        """Puts the calling process in, and all it will start."""
        (self.place / "cgroup.procs").write_text(str(os.getpid()))

    def seconds(self) -> float:
        """CPU seconds so far."""
        old = self.place / "cpuacct.usage"
        if old.exists():
            return int(old.read_text()) / 1e9
        return int((self.place / "cpu.stat").read_text().split()[1]) / 1e6


@contextlib.contextmanager
def grouped(names: Sequence[str]) -> Iterator[dict[str, Group]]:
    """A control group for each name; afterwards they are gone."""
    root = next(place for place in (CGROUPS / "cpuacct", CGROUPS) if place.is_dir())
    found = {name: Group(place=root / f"potluck-{os.getpid()}-{name}") for name in names}
    try:
        for group in found.values():
            group.place.mkdir()
        yield found
    finally:
        for group in found.values():
            group.place.rmdir()


def table(what: str, seen: Seen) -> None:
    """A row for each kind of process."""
    for kind, sizes in seen.memory.items():
        rss, pss = ([size[at] for size in sizes] for at in (0, 1))
        middle = f"{statistics.median(rss):.0f} | {statistics.median(pss):.0f}"
        print(f"| {what} | {kind} | {middle} | {max(rss):.0f} | {max(pss):.0f} |")


Start = Callable[..., subprocess.Popen[bytes]]


def stand(folder: Path, made: Experiment, python: str) -> Start:
    """Writes what the run needs; a function that starts a potluck command there, in a control group."""
    (folder / "footprint.toml").write_text(store.to_toml(made))
    write_split(build.make_shares(resolve(made)), folder / "shares")
    write_certificates(folder / "keys", DEVICES, {})

    def start(group: Group | None, *words: str) -> subprocess.Popen[bytes]:
        run = [python if group and words[0] == "join" else sys.executable, "-m", "potluck.cli", *words]
        enter = group.enter if group else None
        with (folder / "log").open("ab") as log:
            return subprocess.Popen(run, cwd=folder, stdout=log, stderr=log, preexec_fn=enter)  # noqa: PLW1509

    return start


def join(start: Start, group: Group | None, device: int, port: int, *more: str) -> subprocess.Popen[bytes]:
    """A device."""
    words = ["--data", f"npz:shares/device-{device:03d}.npz", "--key", f"keys/peer-{device}.key", "--ca", "keys/ca.pem"]
    return start(group, "join", f"127.0.0.1:{port}", *words, "--store", f"store-{device}", *more)


def watched(trees: Mapping[str, int], going: Callable[[], bool], until: float) -> dict[str, Seen]:
    """What is seen of the trees while it is going on."""
    found = {name: Seen(root) for name, root in trees.items()}
    while going():
        if time.monotonic() > until:
            sys.exit("it takes too long")
        for seen in found.values():
            seen.look()
        time.sleep(LOOK_S)
    return found


def main() -> None:
    """Waits, plays, and tells."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--idle", type=float, default=90.0)
    parser.add_argument("--cold", action="store_true", help="Devices that keep no process warm.")
    parser.add_argument("--python", default=sys.executable, help="The measured device's own: it shares no page then.")
    parser.add_argument("--out", type=Path, default=None)
    told = parser.parse_args()
    folder = (told.out or Path(tempfile.mkdtemp(prefix="footprint-"))).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    started: list[subprocess.Popen[bytes]] = []
    with grouped(["server", "device"]) as groups:
        try:
            measure(told, folder, groups, started)
        finally:
            for process in started:
                process.terminate()
            for process in started:
                process.wait()


def measure(told: argparse.Namespace, folder: Path, groups: Mapping[str, Group], started: list[Any]) -> None:
    """The measurement; what it starts is in ``started``."""
    port, until = free_port(), time.monotonic() + LONGEST_S
    start, more = stand(folder, experiment(told.rounds), told.python), ["--cold"] * told.cold
    lines, events = folder / "served/rounds.jsonl", folder / "served/superlink/events.jsonl"
    address = ("--address", f"127.0.0.1:{port}", "--certificates", "keys")
    started.append(start(groups["server"], "serve", "footprint.toml", *address, "--out", "served"))
    started += [join(start, groups["device"], 0, port, *more), join(start, None, 1, port)]
    while sum(event["event"] == "joined" for event in store.read_lines(events)) < 2:
        time.sleep(LOOK_S)
    time.sleep(SETTLE_S)
    trees, spent = {"server": started[0].pid, "device": started[1].pid}, dict[str, list[float]]()

    def note() -> None:
        for name, group in groups.items():
            spent.setdefault(name, []).append(group.seconds())

    note()
    over = time.monotonic() + told.idle
    idle = watched(trees, lambda: time.monotonic() < over, until)
    note()
    started.append(join(start, None, 2, port))
    watched(trees, lambda: not store.read_lines(lines), until)
    note()
    busy = watched(trees, lambda: len(store.read_lines(lines)) < told.rounds, until)
    note()
    print("| when | process | RSS, MB | PSS, MB | peak RSS | peak PSS |\n|---|---|---|---|---|---|")
    for when, found in (("waiting", idle), ("in a round", busy)):
        for name, seen in found.items():
            table(f"{name}, {when}", seen)
    for name, (before, after, first, last) in spent.items():
        waiting, round = (after - before) * 60 / told.idle, (last - first) / (told.rounds - 1)
        print(f"{name}: {before:.1f} CPU s to start and join, {waiting:.2f} a minute of waiting, {round:.2f} a round")
    mean = statistics.mean(line["seconds"] for line in store.read_lines(lines)[1:])
    print(f"a round took {mean:.1f} s")


if __name__ == "__main__":
    main()
