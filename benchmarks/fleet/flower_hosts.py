"""A server and four devices on Flower as five hosts: two thin cables, TLS, keys, one device cut off in an upload.

    sudo python benchmarks/fleet/flower_hosts.py [--rate 1mbit] [--rounds 4] [--hidden 3300] [--no-cut] [--out DIR]

Each host is a network namespace; ``tbf`` limits both directions of the cables of devices 0 and 1. The same experiment
is played twice: with a net of 2.6 kB, two devices a round (the floor: what a round takes with hardly anything to carry;
in the other run, too, the thin ones do not work while the fast ones do), and with one of 1 MB;
after ``--rounds`` rounds of the latter device 1's cable is pulled in the middle of its upload, and plugged in again
100 s later. Printed: the seconds of each device's rounds beyond the floor beside those that ``potluck run`` simulates
for the same cables, how long the cables were busy, and each ledger beside the counters of interface and Flower.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from namespaces import Switch, wired
from torch import nn

from potluck.deploy.split import write_split
from potluck.engines.security.certificates import write_certificates
from potluck.experiment import build, run, store
from potluck.experiment.config import Experiment
from potluck.experiment.resolve import resolve
from potluck.experiment.run_reader import Run

DEVICES, THIN, SERVER, PORT = 4, 2, 4, 8443
CUT, AWAY_S, AFTER = 1, 100.0, 3
"""The device that is cut off, for how long, and the rounds played after that."""
LOOK_S, LONGEST_S, DEADLINE_S = 0.1, 900.0, 120.0
HIDDEN = "POTLUCK_HIDDEN"


def net(shape: tuple[int, ...], classes: int) -> nn.Module:
    """A net with one hidden layer of as many units as the environment says; without any for none."""
    hidden, inputs = int(os.environ[HIDDEN]), shape[0] * shape[1] * shape[2]
    layers = (
        [nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, classes)] if hidden else [nn.Linear(inputs, classes)]
    )
    return nn.Sequential(nn.Flatten(), *layers)


def experiment(rate_mbps: float, rounds: int, participation: float = 1.0) -> Experiment:
    """Two devices on thin cables, two on fast ones; hardly any work."""
    thin = {"uplink_mbps": rate_mbps, "downlink_mbps": rate_mbps, "latency_ms": 1.0, "gflops": 10.0}
    fast = {"uplink_mbps": 1000.0, "downlink_mbps": 1000.0, "latency_ms": 1.0, "gflops": 20.0}
    tiers = [{"name": "thin", "devices": THIN, **thin}, {"name": "fast", "devices": DEVICES - THIN, **fast}]
    return Experiment.of(
        {
            "name": "hosts",
            "rounds": rounds,
            "data": {"source": "synthetic:400,1,8,8", "partition": {"kind": "iid"}},
            "model": {"name": "flower_hosts:net"},
            "method": {"name": "fedavg"},
            "fleet": {"tier": tiers, "deadline_s": DEADLINE_S, "participation": participation},
            "engine": {"kind": "inprocess", "join_timeout_s": 300.0},
        }
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """The folder of one run on the hosts."""

    folder: Path
    switch: Switch

    @property
    def out(self) -> Path:
        return self.folder / "served"

    def call(self, number: int, *words: str) -> subprocess.Popen[bytes]:
        """A potluck command on a host."""
        return self.switch.start(
            number, [sys.executable, "-m", "potluck.cli", *words], self.folder / f"host-{number}.log"
        )

    def start(self) -> list[subprocess.Popen[bytes]]:
        """The server first, then the devices, then what watches the switch."""
        keys, shares = self.folder / "keys", self.folder / "shares"
        where = ("--certificates", str(keys), "--address", f"{self.switch.address(SERVER)}:{PORT}")
        started = [self.call(SERVER, "serve", str(self.folder / "hosts.toml"), *where, "--out", str(self.out))]
        for device in range(DEVICES):
            named = {
                "data": f"npz:{shares}/device-{device:03d}.npz",
                "tier": "thin" if device < THIN else "fast",
                "key": f"{keys}/peer-{device}.key",
                "ca": f"{keys}/ca.pem",
                "store": str(self.folder / f"store-{device}"),
            }
            words = [word for name, value in named.items() for word in (f"--{name}", value)]
            started.append(self.call(device, "join", f"{self.switch.address(SERVER)}:{PORT}", *words))
        watch = [sys.executable, __file__, "--watch", str(self.folder / "traffic.jsonl")]
        return [*started, self.switch.start(None, watch, self.folder / "watch.log")]

    def rounds(self) -> int:
        """Rounds that are over."""
        return len(store.read_lines(self.out / "rounds.jsonl"))

    def wait(self, what: Any, server: subprocess.Popen[bytes], until: float) -> None:
        """Waits for something; ends the program where the server ends or it takes too long."""
        while not what():
            if server.poll() is not None or time.monotonic() > until:
                sys.exit(f"{self.folder}: {(self.folder / f'host-{SERVER}.log').read_text()[-1500:]}")
            time.sleep(LOOK_S)


def watch(place: Path) -> None:
    """Notes, ten times a second, the bytes that the switch has taken from and given to each host, until it is ended."""
    with place.open("a") as lines:
        while True:
            found = [line.split() for line in Path("/proc/net/dev").read_text().splitlines() if "port" in line]
            bytes_of = {words[0].strip(":"): [int(words[1]), int(words[9])] for words in found}
            lines.write(json.dumps({"at": time.monotonic(), **bytes_of}) + "\n")
            lines.flush()
            time.sleep(LOOK_S)


def busy(folder: Path, device: int, way: int, at_least: int) -> list[float]:
    """The seconds of each stretch in which a cable carried at least so many bytes one way without a pause of 1 s."""
    found, last, start, carried = list[float](), None, 0.0, 0
    moved = 0.0
    for line in store.read_lines(folder / "traffic.jsonl"):
        now, count = line["at"], line.get(f"port{device}", [0, 0])[way]
        grown = 0 if last is None else count - last
        if grown > at_least * LOOK_S / 100:  # a hundredth of the frame a second: more than keeping in touch
            start = now - LOOK_S if not carried else start
            carried, moved = carried + grown, now
        elif carried and now - moved > 1.0:
            found += [moved - start] if carried >= at_least else []
            carried = 0
        last = count
    return found


@contextlib.contextmanager
def staged(folder: Path, switch: Switch, made: Experiment) -> Iterator[tuple[Stage, list[subprocess.Popen[bytes]]]]:
    """A run under way; afterwards all its processes are gone."""
    folder.mkdir(parents=True)
    (folder / "hosts.toml").write_text(store.to_toml(made))
    write_split(build.make_shares(resolve(made)), folder / "shares")
    write_certificates(folder / "keys", DEVICES, {}, server=[switch.address(SERVER)])
    stage = Stage(folder=folder, switch=switch)
    started = stage.start()
    try:
        yield stage, started
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait()


def cut_off(stage: Stage, server: subprocess.Popen[bytes], size: int, after: int, until: float) -> None:
    """Pulls a cable when 0.4 of the frame has gone up in the round after ``after``; plugs it in again later."""
    stage.wait(lambda: stage.rounds() >= after, server, until)
    before = stage.switch.counters(CUT)[0]
    stage.wait(lambda: stage.switch.counters(CUT)[0] - before > 0.4 * size, server, until)
    stage.switch.plug(CUT, False)
    print(f"device {CUT} cut off in the upload of round {stage.rounds() + 1}", flush=True)
    time.sleep(AWAY_S)
    stage.switch.plug(CUT, True)
    print(f"plugged in again after {AWAY_S:g} s, in round {stage.rounds() + 1}", flush=True)


def tell(stage: Stage, counted: dict[int, tuple[int, int]]) -> None:
    """What the ledger says of each device, beside its interface and beside Flower's count of the run."""
    rows = Run.load(stage.out).ledger
    print(
        "\n| device | messages | ledger up, down | interface sent, received | beyond the frames, a message: up, down |"
    )
    print("|---|---|---|---|---|")
    for device, (sent, received) in counted.items():
        ups = [row for row in rows if row["device"] == device and row["direction"] == "up"]
        up = sum(row["encoded_bytes"] for row in ups)
        down = sum(row["encoded_bytes"] for row in rows if row["device"] == device and row["direction"] == "down")
        messages = max(1, len(ups))  # with few rounds the floor's draw may leave a device out
        beyond = f"{(sent - up) / messages:,.0f}, {(received - down) / messages:,.0f}"
        print(f"| {device} | {len(ups)} | {up:,}, {down:,} | {sent:,}, {received:,} | {beyond} |")
    counted_by_flower = json.loads((stage.out / "superlink/bytes.json").read_text())["runs"][0]["network-traffic"]
    print(f"Flower's own count: {counted_by_flower}")
    for row in rows:
        if row["status"] != "ok" and row["direction"] == "up":
            print(f"round {row['round']}, device {row['device']}: {row['status']}, {row['reason']}")


def seconds_of(out: Path, device: int, rounds: Container[int] = range(1000)) -> list[float]:
    """The seconds of those of a device's rounds that were merged."""
    rows = [row for row in Run.load(out).ledger if row["device"] == device and row["direction"] == "up"]
    return [row["seconds"] for row in rows if row["status"] == "ok" and row["round"] in rounds]


def result(folder: Path, switch: Switch, made: Experiment, cut_after: int) -> Stage:
    """Plays a run to its end; with ``cut_after``, one device is cut off after so many rounds."""
    until = time.monotonic() + LONGEST_S
    before = [switch.counters(device) for device in range(DEVICES)]
    with staged(folder, switch, made) as (stage, started):
        if cut_after:
            stage.wait(lambda: stage.rounds() >= 1, started[0], until)
            size = store.read_lines(stage.out / "ledger.jsonl")[0]["encoded_bytes"]
            cut_off(stage, started[0], size, cut_after, until)
        started[0].wait(max(1.0, until - time.monotonic()))
        now = [switch.counters(device) for device in range(DEVICES)]
        print(f"\n{folder.name}: {made.rounds} rounds\n{(folder / f'host-{SERVER}.log').read_text()}")
        tell(stage, {k: (now[k][0] - before[k][0], now[k][1] - before[k][1]) for k in range(DEVICES)})
    return stage


def main() -> None:
    """Plays both runs and the simulation, and compares."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rate", default="1mbit")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=3300)
    parser.add_argument("--no-cut", action="store_true")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--watch", type=Path, default=None, help=argparse.SUPPRESS)
    told = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    if told.watch is not None:
        watch(told.watch)
    place = (told.out or Path(tempfile.mkdtemp(prefix="flower-hosts-"))).resolve()
    here, before = str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join([here, before]) if before else here
    rounds, cut_after, rate = told.rounds, 0 if told.no_cut else told.rounds, float(told.rate.removesuffix("mbit"))
    with wired([told.rate] * THIN + [""] * (DEVICES - THIN + 1)) as switch:
        os.environ[HIDDEN] = "0"
        floor = result(place / "floor", switch, experiment(rate, 2 * rounds, 0.5), 0)
        os.environ[HIDDEN] = str(told.hidden)
        made = experiment(rate, rounds + (AFTER if cut_after else 0))
        full = result(place / "full", switch, made, cut_after)
    run.run(made, place / "simulated")
    compare(floor, full, place / "simulated", range(1, rounds + 1))


def compare(floor: Stage, full: Stage, simulated: Path, rounds: range) -> None:
    """The table of seconds: medians over rounds; the floor over all devices of its run."""
    size = Run.load(simulated).ledger[0]["encoded_bytes"]
    nothing = [seconds for device in range(DEVICES) for seconds in seconds_of(floor.out, device)]
    middle = statistics.median(nothing)
    spread = f"{min(nothing):.1f} to {max(nothing):.1f}, {len(nothing)} messages"
    print(f"\nframe {size:,} bytes; floor {middle:.1f} s ({spread})")
    print("| device | with the frame | beyond the floor | simulated | ratio | cable busy down, up |")
    print("|---|---|---|---|---|---|")
    for device in range(DEVICES):
        whole, expected = (statistics.median(seconds_of(out, device, rounds)) for out in (full.out, simulated))
        down, up = (statistics.median(busy(full.folder, device, way, size // 2) or [0.0]) for way in (1, 0))
        beyond = whole - middle
        told = f"{whole:.1f} s | {beyond:.1f} s | {expected:.1f} s | {beyond / expected:.2f}"
        print(f"| {device} | {told} | {down:.1f} s, {up:.1f} s |")


if __name__ == "__main__":
    main()
