"""The speed of two checkouts, turn by turn on the same work: medians of a round of B3 (tiny nets), and their ratio.

    python benchmarks/refactoring/same_speed.py BEFORE [AFTER] [--bench B3] [--turns 5] [--rounds 8]

BEFORE and AFTER are checkouts (AFTER is this one by default); each runs its own benchmark of that name, A B A B.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parents[2]


def contest(checkout: Path) -> Path:
    """Where a checkout keeps the contest."""
    return next(path for path in checkout.glob("benchmarks/**/contest") if (path / "ours.py").is_file())


def seconds(checkout: Path, work: Path, bench: str, engine: str, rounds: int, seed: int) -> float:
    """The median seconds of a round, but for the first and the last; makes the work where it is not there yet."""
    folder = contest(checkout)
    path = os.pathsep.join([str(checkout / "src"), str(folder)])
    env = {**os.environ, "PYTHONPATH": path, "BENCH_ROUNDS": str(rounds), "BENCH_SEED": str(seed)}
    env |= {"BENCH_WORK": str(work), "BENCH_START": str(time.time())}
    if not work.with_suffix(".safetensors").exists():
        subprocess.run([sys.executable, "make_work.py", bench, str(work)], cwd=folder, env=env, check=True)
    command = [sys.executable, "ours.py", bench, engine, "fp32"]
    said = subprocess.run(command, cwd=folder, env=env, check=True, capture_output=True, text=True).stdout
    return statistics.median(json.loads(said.splitlines()[-1])["seconds"])


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path, nargs="?", default=HERE)
    parser.add_argument("--bench", default="B3", choices=["B1", "B3"])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=8)
    given = parser.parse_args()
    print("| engine | before, ms | after, ms | ratio, median of the turns | of each turn |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as place:
        works = {side: Path(place) / side / f"{given.bench}.npz" for side in ("before", "after")}
        for work in works.values():
            work.parent.mkdir()
        for engine in ("inprocess", "pool"):
            found: dict[str, list[float]] = {"before": [], "after": []}
            for turn in range(given.turns):
                for side, checkout in (("before", given.before), ("after", given.after)):
                    found[side].append(
                        seconds(checkout.resolve(), works[side], given.bench, engine, given.rounds, turn)
                    )
            ratios = [after / before for before, after in zip(found["before"], found["after"], strict=True)]
            before, after = (1000 * statistics.median(found[side]) for side in found)
            each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
            print(f"| {engine} | {before:.0f} | {after:.0f} | {statistics.median(ratios):.2f} | {each} |", flush=True)


if __name__ == "__main__":
    main()
