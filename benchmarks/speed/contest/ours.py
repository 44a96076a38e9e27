"""Potluck on the same work. ``ours.py B1|B3 inprocess|pool fp32|bf16|nchw``."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import work
from make_work import table

import potluck
from potluck.experiment.config import Experiment

KINDS = {"fp32": {}, "bf16": {"bf16": True}, "nchw": {"channels_last": False}}


class Clock:
    """A listener that notes the end of each round."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def begins(self, experiment: Experiment, folder: Path, first_round: int, warnings: Sequence[str]) -> None:
        """Nothing to note."""

    def round_done(self, line: dict[str, Any]) -> None:
        """A round stands in the checkpoint; the evaluation of the last one is part of no contestant's round."""
        evaluated = line["parts"].get("evaluate", 0.0)
        self.ends.append(work.now() - evaluated)


def main() -> None:
    """Plays the rounds."""
    bench, engine, kind = sys.argv[1:4]
    rounds, place = int(os.environ["BENCH_ROUNDS"]), Path(os.environ["BENCH_WORK"])
    asked = table(bench, rounds, int(os.environ["BENCH_SEED"]), str(place.with_suffix(".safetensors")))
    asked["train"] |= KINDS[kind]
    asked["engine"] = {"kind": engine}
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        run = potluck.run(Experiment.of(asked), Path(folder) / "run", clock)
        score = run.summary["accuracy"]["mean"]
    work.tell(clock.ends, score, {"potluck": potluck.__version__, "torch": torch.__version__})


if __name__ == "__main__":
    main()
