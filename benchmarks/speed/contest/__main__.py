"""Measures Potluck and its rivals in turn, and writes docs/performance.md.

    python benchmarks/speed/contest [--only B1,B5] [--quick] [--turns 3] [--rivals PYTHON] [--page FILE] [--fresh]

``--rivals`` is the Python of an environment with benchmarks/speed/requirements-rivals.txt (``make rivals``); without
it the rivals are left out. Every result is kept at once in runs/contest, a file a commit: after an interruption the
same command goes on where it was. ``--fresh`` begins anew. B1 needs the folder of real data that POTLUCK_DATA names.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import page
from measure import Results, run

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
PAYLOADS = {"4 kB": "payload_4kb", "1 MB": "payload_1mb", "20 MB": "payload_20mb"}
TORCHRUN = ["-m", "torch.distributed.run", "--nproc_per_node", "2"]
Case = tuple[str, str, list[str], dict[str, str]]
"""(bench, contestant, command, environment)."""


def contest(bench: str, told: argparse.Namespace, place: Path, rounds: int, turn: int) -> list[Case]:
    """The contestants of B1 or B3 for a turn."""
    env = {"BENCH_WORK": str(place / f"{bench}.npz"), "BENCH_ROUNDS": str(rounds), "BENCH_SEED": str(turn)}
    ours, rival = [sys.executable], [told.rivals]
    cases = {"Potluck, pool": [*ours, "ours.py", bench, "pool", "fp32"]}
    if bench == "B1":
        cases["Potluck, pool, bf16"] = [*ours, "ours.py", bench, "pool", "bf16"]
    cases["Potluck, in-process"] = [*ours, "ours.py", bench, "inprocess", "fp32"]
    cases["bare loop, 1 thread"] = [*ours, "bare.py", "1"]
    cases["bare loop, 2 threads"] = [*ours, "bare.py", "2"]
    if told.rivals:
        cases["pfl, 1 process of 2 threads"] = [*rival, "rival_pfl.py", "2"]
        cases["pfl, 2 processes"] = [*rival, *TORCHRUN, "rival_pfl.py", "1"]
        cases["Flower + Ray"] = [*rival, "rival_flower.py"]
    return [(bench, name, command, env) for name, command in cases.items()]


def alone(told: argparse.Namespace) -> list[Case]:
    """B2, B4 and B6, in which Potluck is measured against its targets and itself."""
    counts = (10, 100) if told.quick else (10, 100, 1000)
    made: list[Case] = []
    for label, net in PAYLOADS.items():
        for count in counts:
            if not (told.quick and label == "20 MB" and count > 10):
                made.append(("B2", f"{label}, {count}", [sys.executable, "idle.py", net, str(count), "3"], {}))
    for method in every_method():
        made.append(("B4", method, [sys.executable, "every_method.py", method, "4"], {}))
    for registered, drawn in ((100, 100), (1000, 1000), (10_000, 1000)):
        if not told.quick or registered <= 1000:
            command = [sys.executable, "idle.py", "registered", str(registered), str(drawn), "3"]
            made.append(("B6", f"{drawn} of {registered}", command, {}))
    for size in (1, 2, 4, 8, 16):
        made.append(("growth", f"steps {size}", [sys.executable, "growth.py", "steps", str(size)], {}))
        made.append(("growth", f"width {size}", [sys.executable, "growth.py", "width", str(size)], {}))
    made.append(("B5", "parts", [told.rivals or sys.executable, "parts.py"], {}))
    return made


def every_method() -> list[str]:
    """The names of all methods."""
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    said = subprocess.run(
        [sys.executable, "every_method.py", "names", "0"], cwd=HERE, env=env, capture_output=True, text=True, check=True
    )
    return list(json.loads(said.stdout.splitlines()[-1])["names"])


def make_work(bench: str, place: Path) -> None:
    """Writes the work of a benchmark once."""
    if not (place / f"{bench}.safetensors").exists():
        place.mkdir(parents=True, exist_ok=True)
        env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
        command = [sys.executable, "make_work.py", bench, str(place / f"{bench}.npz")]
        subprocess.run(command, cwd=HERE, env=env, check=True)


def play(cases: list[Case], turn: int, results: Results) -> None:
    """Measures what has not been measured in this turn."""
    done = {(found["bench"], found["name"], found["turn"]) for found in results.read() if "error" not in found}
    for bench, name, command, env in cases:
        if (bench, name, turn) in done:
            continue
        path = os.pathsep.join([str(ROOT / "src"), str(HERE)])
        found = run(command, {**env, "PYTHONPATH": path}, HERE)
        load = os.getloadavg()[0]
        results.add({"bench": bench, "name": name, "turn": turn, "load": load, "at": time.time(), **found})
        print(f"{bench}  {name}, turn {turn}: {brief(found)}   (load {load:.1f})", flush=True)


def brief(found: dict[str, Any]) -> str:
    """A result in a few words."""
    if "error" in found:
        return f"FAILED: {found['error']}"
    seconds = found.get("seconds") or []
    return f"{sorted(seconds)[len(seconds) // 2]:.3f} s a round" if seconds else "done"


def main() -> None:
    """Runs what is asked for, then writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="B1,B2,B3,B4,B5,B6,growth")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and cases: minutes, not an hour")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--rivals", default="", help="the Python of the rivals' environment")
    parser.add_argument("--page", default=str(ROOT / "docs" / "performance.md"))
    parser.add_argument("--note", default="", help="a remark on the conditions, for the page")
    parser.add_argument("--fresh", action="store_true")
    told = parser.parse_args()
    if told.rivals:  # a link into an environment must not be resolved
        told.rivals = str(Path(told.rivals).absolute())
    place = ROOT / "runs" / "contest"
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    kind = "quick" if told.quick else "full"
    results, chosen = Results(place / f"{kind}-{commit}.jsonl"), told.only.split(",")
    if "B1" in chosen and not os.environ.get("POTLUCK_DATA"):
        raise SystemExit("B1 needs real data: set POTLUCK_DATA to their folder, or leave B1 out with --only")
    if told.fresh:
        results.path.unlink(missing_ok=True)
    for turn in range(1 if told.quick else told.turns):
        for bench, rounds in (("B1", 3 if told.quick else 6), ("B3", 3 if told.quick else 8)):
            if bench in chosen:
                make_work(bench, place)
                play(contest(bench, told, place, rounds, turn), turn, results)
    play([case for case in alone(told) if case[0] in chosen], 0, results)
    text = page.written(results, commit, told.note)
    Path(told.page).write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
