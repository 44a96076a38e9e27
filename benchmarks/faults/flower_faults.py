"""Devices that die, freeze and lie, strangers, and a server that dies, on real processes: what the ledger says.

    python -m benchmarks.faults.flower_faults [devices] [server] [rogue] [--out runs/flower-faults]

devices  four of them; one is killed in mid-training (SIGKILL to it and all it started), then two at once, then one is
         frozen (SIGSTOP) and thawed when its round is over; who was killed is started again at once. Beside them
         somebody whose key is not registered asks to be let in.
server   the run's process is killed after round 1, the server and all it started after round 2; each time potluck
         resume goes on.
rogue    a device with a good key sends another array type, half a frame, another shape and NaN.

Minutes for each. Processes are signalled by their ids only; printed: who was missing in which round, and why.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks.faults.flower_rogue import plant
from benchmarks.fleet.flower_fleet import LONG, TABLE, Blows, Fleet, fleet_in, hurt_when_busy, send

from potluck.engines.security.certificates import write_certificates
from potluck.experiment import run, store
from potluck.experiment.run_reader import Run

DEVICES, ROUNDS = 4, 26


def strike(fleet: Fleet, blows: Blows, at_once: Callable[[], None], mend: Callable[[], None], what: str) -> None:
    """Strikes devices in the midst of their training, mends it when the round is over, and waits until all is well."""
    round = fleet.rounds() + 2
    fleet.wait(lambda: fleet.rounds() == round - 1)
    hurt_when_busy(fleet, blows, round)
    start = time.monotonic()
    at_once()
    fleet.wait(lambda: fleet.rounds() >= round)
    over = time.monotonic()
    mend()
    fleet.wait(lambda: fleet.rounds() > round and all(well(fleet, device) for device in blows))
    print(
        f"- {what} in round {round}: the round was over {over - start:.0f} s later; back in round {fleet.rounds()}, "
        f"{time.monotonic() - start:.0f} s after",
        flush=True,
    )


def well(fleet: Fleet, device: int) -> bool:
    """Whether the device's reply of the last round was merged."""
    rows = fleet.ledger(fleet.rounds())
    return device in rows and rows[device]["status"] == "ok"


def missing(fleet: Fleet) -> None:
    """Prints who was missing in which rounds, and why."""
    found = Run.load(fleet.out)
    seconds = {line["round"]: line["seconds"] for line in found.rounds}
    print("| device | rounds | ledger | the round took, s |\n|---|---|---|---|")
    rows = [r for r in found.ledger if r["direction"] == "up" and (r["status"] != "ok" or r["reason"])]
    rows.sort(key=lambda row: (row["device"], row["round"]))
    for (device, status, reason), group in groupby(rows, lambda row: (row["device"], row["status"], row["reason"])):
        rounds = [row["round"] for row in group]
        span = f"{rounds[0]}" if len(rounds) == 1 else f"{rounds[0]} to {rounds[-1]}"
        took = f"{min(seconds[r] for r in rounds):.1f} to {max(seconds[r] for r in rounds):.1f}"
        print(f"| {device} | {span} | {status}: {reason} | {took if len(rounds) > 1 else took.split(maxsplit=1)[0]} |")


def end(fleet: Fleet, server: Any) -> None:
    """Waits for the end of the run, which must be a good one."""
    code, said = fleet.told(server)
    if code:
        raise RuntimeError(said)
    lines = Run.load(fleet.out).rounds
    print(f"- the run ended with {len(lines)} rounds, accuracy {lines[-1]['accuracy']['mean']:.3f}", flush=True)


def devices(folder: Path) -> None:
    """One killed, two killed, one frozen, and a stranger."""
    with fleet_in(folder, {"rounds": ROUNDS, "train": {**TABLE["train"], "epochs": LONG}}) as fleet:
        write_certificates(folder / "fresh", DEVICES, {}, authority_from=folder / "keys")
        there = [fleet.join(device) for device in range(DEVICES)]
        server = fleet.serve()
        fleet.wait(lambda: fleet.rounds() >= 1)
        stranger = fleet.join(0, keys="fresh", store="store-stranger")

        def killed(*who: int) -> None:
            def again() -> None:
                for device in who:
                    there[device].wait()
                    there[device] = fleet.join(device)

            blows = {device: (there[device], signal.SIGKILL) for device in who}
            strike(fleet, blows, again, lambda: None, f"killed: {', '.join(map(str, who))}")

        killed(3)
        killed(2, 3)
        strike(
            fleet, {2: (there[2], signal.SIGSTOP)}, lambda: None, lambda: send(there[2], signal.SIGCONT), "frozen: 2"
        )
        end(fleet, server)
        print(f"- the stranger, exit code {fleet.told(stranger)[0]}: {fleet.said(stranger)[-230:]}")
        missing(fleet)


def server(folder: Path) -> None:
    """The run's process killed, then the server and all it started."""
    with fleet_in(folder, {"rounds": 4, "method": {"name": "fedmd"}}) as fleet:
        for device in range(DEVICES):
            fleet.join(device)
        serving = fleet.serve()
        fleet.wait(lambda: fleet.rounds() >= 1)
        events = store.read_lines(fleet.out / "superlink" / "events.jsonl")
        os.kill(next(event["pid"] for event in events if event["event"] == "begins"), signal.SIGKILL)
        code, said = fleet.told(serving)
        print(f"- the run's process killed; potluck serve, exit code {code}: {said[-120:]}", flush=True)
        for last in (False, True):
            known, start = fleet.rounds(), time.monotonic()
            serving = fleet.call("resume", str(fleet.out), "--quiet")
            fleet.wait(lambda known=known: fleet.rounds() > known)  # type: ignore[misc]
            print(f"- potluck resume from round {known}: the next one done after {time.monotonic() - start:.0f} s")
            if not last:
                send(serving, signal.SIGKILL)
                serving.wait()
                print("- the server and all it started killed", flush=True)
        end(fleet, serving)
        native = run.run(fleet.experiment, folder / "native").summary["state_sha256"]
        there = Run.load(fleet.out).summary["state_sha256"]
        print(
            f"- state of an unbroken run in one process: {native[:12]}, {'equal' if native == there else 'NOT equal'}"
        )
        print(f"- rounds in the record: {json.dumps([line['round'] for line in Run.load(fleet.out).rounds])}")


def rogue(folder: Path) -> None:
    """A device that is let in and lies."""
    with fleet_in(folder, {"rounds": 6}) as fleet:
        plant(folder / "store-3" / "home", {1: "type", 2: "cut", 4: "shape", 5: "nan"})
        for device in range(DEVICES):
            fleet.call(*fleet.join_words(device), *(["--cold"] if device == 3 else []))
        end(fleet, fleet.serve())
        missing(fleet)


def main() -> None:
    """Plays what is asked for."""
    scenes = {"devices": devices, "server": server, "rogue": rogue}
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("scenes", nargs="*", default=list(scenes))
    parser.add_argument("--out", type=Path, default=Path("runs/flower-faults"))
    told = parser.parse_args()
    for name in told.scenes:
        folder = told.out.resolve() / name
        shutil.rmtree(folder, ignore_errors=True)
        print(f"\n{name}: {' '.join((scenes[name].__doc__ or '').split())}\n", flush=True)
        scenes[name](folder)


if __name__ == "__main__":
    main()
