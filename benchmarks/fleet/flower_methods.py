"""Every method on a real SuperLink with four SuperNodes: the state of an in-process run, bytes, seconds.

    python benchmarks/fleet/flower_methods.py [METHOD]... [--out runs/flower-methods] [--for-s 420]

TLS and node authentication on loopback, the digits, four devices of two tiers, 3 rounds; a method among peers goes
through the relay. A method that stands in OUT/methods.jsonl is not run again, so that the same command goes on where it
stopped; no further one is begun after --for-s seconds. Printed: the table of all that are there.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

from flower_fleet import Fleet, fleet_in

from potluck.experiment import run, store
from potluck.experiment.run_reader import Run
from potluck.methods import METHODS

OTHERS = {
    "fedode": {
        "model": {"name": "odenet-cifar-like"},
        "method": {"name": "fedode", "steps": {"phone": 1, "laptop": 2}},
    },
    "feddeq": {
        "model": {"name": "deq-xs-like"},
        "method": {"name": "feddeq", "steps": {"phone": 2, "laptop": 4}},
    },
}
"""Methods with a net of their own kind; all others train the experiment's."""
COLUMNS = ("method", "equal", "up, down", "evaluated", "Flower in, out", "a message", "round", "device", "CPU")


def measured(method: str, folder: Path) -> dict[str, Any]:
    """Plays a method both ways. Raises RuntimeError where the run on Flower fails."""
    shutil.rmtree(folder, ignore_errors=True)
    with fleet_in(folder, OTHERS.get(method, {"method": {"name": method}})) as fleet:
        load, start = os.getloadavg()[0], time.monotonic()
        for device in range(4):
            fleet.join(device)
        code, said = fleet.told(fleet.serve())
        if code:
            raise RuntimeError(said)
        seconds = time.monotonic() - start
        native = run.run(fleet.experiment, folder / "native").summary
        found = row_of(method, fleet, native) | {"load": round(load, 1), "seconds": round(seconds, 1)}
    shutil.rmtree(folder)
    return found


def row_of(method: str, fleet: Fleet, native: dict[str, Any]) -> dict[str, Any]:
    """What is told of a run that has ended."""
    there = Run.load(fleet.out)
    counted = json.loads((fleet.out / "superlink/bytes.json").read_text())["runs"][0]["network-traffic"]
    work = [line for device in range(4) for line in fleet.work(device) if line["verb"] == "train"]
    return {
        "method": method,
        "state_sha256": there.summary["state_sha256"],
        "equal": there.summary["state_sha256"] == native["state_sha256"],
        "bytes": there.summary["bytes"],
        "messages": len(there.ledger) // 2,
        "flower": counted,
        "round_s": [line["seconds"] for line in there.rounds],
        "device_s": statistics.median(line["seconds"] for line in work),
        "device_cpu_s": statistics.median(line["cpu_seconds"] for line in work),
    }


def line_of(row: dict[str, Any]) -> str:
    """A row of the table."""
    frames, flower = row["bytes"], row["flower"]
    both = frames["total"] + frames["evaluate"]
    cells = (
        f"`{row['method']}`",
        f"{'yes' if row['equal'] else 'NO'} (`{row['state_sha256'][:12]}`)",
        f"{frames['up']:,}, {frames['down']:,}",
        f"{frames['evaluate']:,}",
        f"{flower['inbound-bytes']:,}, {flower['outbound-bytes']:,}",
        f"{(flower['total-bytes'] - both) / row['messages']:,.0f}",
        f"{statistics.median(row['round_s']):.1f}",
        f"{row['device_s']:.2f}",
        f"{row['device_cpu_s']:.2f}",
    )
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Plays what is not there yet, and prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("methods", nargs="*", default=list(METHODS))
    parser.add_argument("--out", type=Path, default=Path("runs/flower-methods"))
    parser.add_argument("--for-s", type=float, default=420.0)
    told = parser.parse_args()
    told.out.mkdir(parents=True, exist_ok=True)
    lines, until = told.out / "methods.jsonl", time.monotonic() + told.for_s
    for method in told.methods:
        known = {row["method"] for row in store.read_lines(lines)}
        if method not in known and time.monotonic() < until:
            row = measured(method, told.out.resolve() / method)
            with lines.open("a") as stream:
                stream.write(json.dumps(row) + "\n")
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for row in store.read_lines(lines):
        print(line_of(row))


if __name__ == "__main__":
    main()
