"""Six peers as six hosts: network namespaces on a switch, thin links, a delay, and one host cut off and joined again.

    sudo python benchmarks/fleet/hosts.py [--peers 6] [--rate 1mbit] [--delay-ms 25] [--rounds 12] [--out DIR]

Each host has its own address on a veth pair; ``tbf`` limits both directions of it, and a proxy before each peer's port
delays what comes in and goes out by ``--delay-ms`` each (netem would, but not every kernel has it). After round 2 the
last host's cable is pulled; when the others have finished two more rounds it is plugged in again. Printed: what each
peer's ledger says beside the counters of its interface, the rounds' length, and who was missing when. Needs root and
iproute2; everything happens inside the namespaces, which are removed in the end.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from namespaces import Switch, wired

from potluck.deploy.split import write_split
from potluck.engines.security.certificates import write_certificates
from potluck.experiment import build, store
from potluck.experiment.config import Experiment
from potluck.experiment.resolve import resolve

PORT, BEHIND, CHUNK = 7447, 7448, 65536
LONGEST_S = 1500.0


async def delay(address: str, seconds: float) -> None:
    """Accepts on the peer's port at its address, and passes everything on to the peer, later."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def late() -> None:
            while True:
                due, data = await queue.get()
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                writer.write(data)
                await writer.drain()
                if not data:
                    writer.close()
                    return

        sending = asyncio.ensure_future(late())
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK):
                queue.put_nowait((time.monotonic() + seconds, data))
        queue.put_nowait((time.monotonic() + seconds, b""))
        with contextlib.suppress(OSError):
            await sending

    async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            inner = await asyncio.open_connection("127.0.0.1", BEHIND)
        except OSError:
            writer.close()
            return
        await asyncio.gather(pump(reader, inner[1]), pump(inner[0], writer))

    server = await asyncio.start_server(accepted, address, PORT)
    await server.serve_forever()


def experiment(peers: int, rounds: int) -> Experiment:
    """600 seeds of ten classes: posts of 12,000 bytes."""
    return Experiment.of(
        {
            "name": "hosts",
            "rounds": rounds,
            "data": {"source": "synthetic:9600,1,8,8", "public": 1 / 16, "partition": {"kind": "iid"}},
            "model": {"name": "mlp"},
            "method": {"name": "fedh2l"},
            "fleet": {"tier": [{"name": "host", "devices": peers}]},
            "engine": {"deadline_s": 20.0, "min_peers": peers - 1, "join_timeout_s": 300.0, "linger_s": 60.0},
        }
    )


def start(switch: Switch, peer: int, folder: Path, delay_ms: float) -> list[subprocess.Popen[bytes]]:
    """The proxy and the peer of a host."""
    proxy = [sys.executable, __file__, "--proxy", switch.address(peer), "--delay-ms", str(delay_ms)]
    shares, keys = folder / "shares", folder / "keys"
    words = ["--id", str(peer), "--data", f"npz:{shares}/device-{peer:03d}.npz", "--public", f"npz:{shares}/public.npz"]
    words += ["--listen", f"tls/127.0.0.1:{BEHIND}", "--out", str(folder / f"peer-{peer}"), "--quiet"]
    words += ["--cert", f"{keys}/peer-{peer}.pem", "--key", f"{keys}/peer-{peer}.key", "--ca", f"{keys}/ca.pem"]
    words += [word for k in range(peer) for word in ("--connect", f"{k}=tls/{switch.address(k)}:{PORT}")]
    run = [sys.executable, "-m", "potluck.cli", "peer", str(folder / "hosts.toml"), *words]
    log = folder / f"peer-{peer}.log"
    return [switch.start(peer, words, log) for words in (proxy, run)]


def lines(folder: Path, peer: int, name: str) -> list[dict[str, Any]]:
    """The finished lines of a log of a peer."""
    path = folder / f"peer-{peer}" / f"{name}.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def wait_for(folder: Path, peer: int, round: int, until: float) -> None:
    """Waits until the peer has finished the round; ends the program where it takes too long."""
    while len(lines(folder, peer, "rounds")) < round:
        if time.monotonic() > until:
            sys.exit(f"peer {peer} did not finish round {round}: {(folder / f'peer-{peer}.log').read_text()[-500:]}")
        time.sleep(0.2)


def tell(folder: Path, peers: int, seen: dict[int, tuple[int, int]]) -> None:
    """The tables."""
    print("| peer | ledger up, down | interface sent, received | sent, of both ledger columns |\n|---|---|---|---|")
    for peer in range(peers):
        rows = lines(folder, peer, "ledger")
        up, down = (sum(r["encoded_bytes"] for r in rows if r["direction"] == way) for way in ("up", "down"))
        sent, received = seen[peer]
        print(f"| {peer} | {up:,}, {down:,} | {sent:,}, {received:,} | {(sent + received) / (up + down):.2f} |")
    for peer in (0, peers - 1):
        status = {line["round"]: line["status"] for line in lines(folder, peer, "rounds") if line["status"]}
        whole = [line["seconds"] for line in lines(folder, peer, "rounds") if not line["status"]]
        print(f"peer {peer}: rounds of all {len(whole)}, median {statistics.median(whole):.2f} s; missing: {status}")


def main() -> None:
    """Wires, starts, cuts, joins, waits, tells, and cleans up."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peers", type=int, default=6)
    parser.add_argument("--rate", default="1mbit")
    parser.add_argument("--delay-ms", type=float, default=25.0)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--proxy", default=None, help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.proxy is not None:
        asyncio.run(delay(told.proxy, told.delay_ms / 1000))
        return
    peers, folder = told.peers, told.out or Path(tempfile.mkdtemp(prefix="hosts-"))
    folder.mkdir(parents=True, exist_ok=True)
    made = experiment(peers, told.rounds)
    (folder / "hosts.toml").write_text(store.to_toml(made))
    write_split(build.make_shares(resolve(made)), folder / "shares")
    started: list[subprocess.Popen[bytes]] = []
    until, last = time.monotonic() + LONGEST_S, peers - 1
    with wired([told.rate] * peers) as switch:
        write_certificates(folder / "keys", peers, {peer: [switch.address(peer)] for peer in range(peers)})
        try:
            for peer in range(peers):
                started += start(switch, peer, folder, told.delay_ms)
            wait_for(folder, 0, 2, until)
            switch.plug(last, False)
            cut = max(len(lines(folder, peer, "rounds")) for peer in range(last))
            wait_for(folder, 0, cut + 2, until)
            switch.plug(last, True)
            print(f"host {last} was cut off in round {cut + 1} and joined again in round {cut + 3}", flush=True)
            for process in started[1::2]:
                process.wait(max(1.0, until - time.monotonic()))
            tell(folder, peers, {peer: switch.counters(peer) for peer in range(peers)})
        finally:
            for process in started:
                process.terminate()
            for process in started:
                process.wait()


if __name__ == "__main__":
    main()
