"""Kills a run with SIGKILL at random moments, again and again, and resumes it: does it end where it would have ended?

    python benchmarks/faults/kills.py [--kills 20] [--seed 0] [--method local] [--engine pool]

Prints each kill, the round that stood in the checkpoint, and the two digests.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from potluck.core.errors import RunFolderError
from potluck.experiment import store
from potluck.experiment.run_reader import Run

ROOT = Path(__file__).parents[2]


def checkpoint(folder: Path) -> int:
    """The round of the last checkpoint; -1 before the first."""
    try:
        return int(store.read_manifest(folder)["round"])
    except RunFolderError:
        return -1


def main() -> None:
    """Runs it whole, then broken, and compares."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--method", default="local")
    parser.add_argument("--engine", default="pool")
    told = parser.parse_args()
    moments = random.Random(told.seed)
    potluck = [sys.executable, "-m", "potluck.cli"]
    settings = [
        f"method.name={told.method}",
        f"engine.kind={told.engine}",
        f"rounds={25 * told.kills}",
        "model.name=mlp",
        "evaluate.every=5",
    ]
    words = [str(ROOT / "recipes/digits.toml"), "--quiet", *(w for s in settings for w in ("--set", s))]
    with tempfile.TemporaryDirectory() as place:
        whole, broken = Path(place) / "whole", Path(place) / "broken"
        subprocess.run([*potluck, "run", *words, "--out", str(whole)], check=True, stdout=subprocess.DEVNULL)
        command = [*potluck, "run", *words, "--out", str(broken)]
        for kill in range(told.kills):
            before = checkpoint(broken)
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
            while process.poll() is None and checkpoint(broken) <= max(before, 0):
                time.sleep(0.01)
            time.sleep(moments.uniform(0.0, 0.5))
            process.kill()
            process.wait()
            print(f"kill {kill + 1:2d}: round {checkpoint(broken)} stands", flush=True)
            command = [*potluck, "resume", str(broken), "--quiet"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        digests = [Run.load(folder).summary["state_sha256"] for folder in (whole, broken)]
        print(f"unbroken {digests[0]}\nbroken   {digests[1]}\n{'equal' if digests[0] == digests[1] else 'DIFFERENT'}")
        sys.exit(digests[0] != digests[1])


if __name__ == "__main__":
    main()
