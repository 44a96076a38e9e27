"""How long a round's exchange among real peers takes on loopback, with mutual TLS: the exchange alone, no training.

    python benchmarks/speed/mesh_latency.py [--peers 6] [--seeds 600] [--rounds 200]

Each peer is a process of its own. All begin a round together, hold their post (a frame of ``posts = "fixed16"``) and
gather those of the others, each checked as in a run. Printed: the median and the 95th percentile over all peers and
rounds, the median of a round's slowest peer, and the bytes of a frame.
"""

from __future__ import annotations

import argparse
import multiprocessing
import socket
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from potluck.core.errors import WireError
from potluck.engines.mesh.links import Links
from potluck.engines.mesh.mesh import open_mesh
from potluck.engines.peer_round import spec_of_updates
from potluck.engines.security.certificates import write_certificates
from potluck.experiment import build
from potluck.experiment.config import Experiment
from potluck.experiment.problem import problem_of
from potluck.experiment.resolve import resolve
from potluck.methods.fedh2l import posteriors

WARM_UP = 10
LONGEST_S = 300.0


def experiment(peers: int, seeds: int) -> Experiment:
    """An experiment with so many peers and seeds."""
    return Experiment.of(
        {
            "name": "latency",
            "data": {"source": f"synthetic:{seeds * 16},1,8,8", "public": 1 / 16, "partition": {"kind": "iid"}},
            "model": {"name": "mlp"},
            "method": {"name": "fedh2l"},
            "fleet": {"tier": [{"name": "peer", "devices": peers}]},
        }
    )


def free_ports(count: int) -> list[int]:
    """Ports of loopback on which nothing listens."""
    found = [socket.socket() for _ in range(count)]
    for one in found:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in found]
    for one in found:
        one.close()
    return ports


def peer(me: int, ports: list[int], keys: str, told: argparse.Namespace, barrier: Any, results: Any) -> None:
    """One peer's process: puts (id, seconds of each round, bytes of a frame, what went wrong) into ``results``."""
    torch.set_num_threads(1)
    ready = resolve(experiment(told.peers, told.seeds))
    shares = build.make_shares(ready)
    nets = build.make_tier_nets(ready, problem_of(ready, shares))
    federation = build.make_federation(ready, shares, build.make_method(ready, nets))
    device = federation.fleet.devices[me]
    links = Links(
        id=me,
        listen=f"tls/127.0.0.1:{ports[me]}",
        connect={k: f"tls/127.0.0.1:{ports[k]}" for k in range(me)},
        cert=Path(keys) / f"peer-{me}.pem",
        key=Path(keys) / f"peer-{me}.key",
        ca=Path(keys) / "ca.pem",
        insecure=False,
        max_frame_mb=64,
    )
    seconds, wrong, size = [], [], 0
    classes = shares.facts.outputs
    posterior_SC = torch.rand(told.seeds, classes, generator=torch.Generator().manual_seed(me)).softmax(dim=1)
    with open_mesh(links, "potluck/latency", told.peers) as mesh:
        mesh.join(told.peers - 1, LONGEST_S)
        for number in range(1, WARM_UP + told.rounds + 1):
            spec = spec_of_updates(federation, device, number)
            terms = {name: leaf.value for name, leaf in spec.items() if name != "posteriors"}
            up = {"posteriors": posteriors.encode(posterior_SC, "fixed16"), **terms}
            frame, _ = federation.messages.write_up(up, number, me, None, {})
            size = len(frame)

            def check(other: int, data: bytes, number: int = number, spec: Any = spec) -> str:
                try:
                    federation.messages.read_up(data, number, other, spec)
                except WireError as error:
                    return str(error)
                return ""

            barrier.wait(LONGEST_S)
            start = time.perf_counter()
            mesh.hold(number, bytes(frame))
            answers = mesh.gather(number, [k for k in range(told.peers) if k != me], LONGEST_S, check)
            seconds.append(time.perf_counter() - start)
            wrong += [answer.reason for answer in answers.values() if answer.status != "ok"]
        barrier.wait(LONGEST_S)
    results.put((me, seconds[WARM_UP:], size, wrong))


def main() -> None:
    """Starts the peers and prints what they measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peers", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=200)
    told = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    barrier, results, ports = context.Barrier(told.peers), context.Queue(), free_ports(told.peers)
    with tempfile.TemporaryDirectory() as keys:
        write_certificates(Path(keys) / "keys", told.peers, {})
        common = (ports, f"{keys}/keys", told, barrier, results)
        started = [context.Process(target=peer, args=(me, *common), daemon=True) for me in range(told.peers)]
        for process in started:
            process.start()
        found = [results.get(timeout=LONGEST_S + told.rounds) for _ in started]
        for process in started:
            process.join(LONGEST_S)
    wrong = [reason for _, _, _, reasons in found for reason in reasons]
    if wrong:
        sys.exit(f"{len(wrong)} posts did not arrive, such as: {wrong[0]}")
    each = [1000 * seconds for _, times, _, _ in found for seconds in times]
    slowest = [1000 * max(times) for times in zip(*(times for _, times, _, _ in found), strict=True)]
    print(f"{told.peers} peers, {told.seeds} seeds, frame {found[0][2]:,} bytes, {told.rounds} rounds, mutual TLS")
    print(
        f"a peer's exchange   median {statistics.median(each):.1f} ms, p95 {sorted(each)[int(0.95 * len(each))]:.1f} ms"
    )
    print(f"a round's slowest   median {statistics.median(slowest):.1f} ms")


if __name__ == "__main__":
    main()
