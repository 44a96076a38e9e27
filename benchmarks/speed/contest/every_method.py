"""B4: all methods on one fleet (digits, 12 devices, three tiers): seconds a round by part, and bytes. Prints JSON."""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import potluck
from potluck.experiment.config import Experiment
from potluck.methods import METHODS

PARTS = {
    "training": ("device train",),
    "SVD": ("device svd", "server svd"),
    "encode and decode": ("encode", "decode", "device encode", "device decode"),
    "evaluation": ("evaluate",),
}


def seconds_by_part(lines: list[dict[str, Any]]) -> dict[str, float]:
    """Medians over the rounds; what is left of a round is merge, checkpoint and the loop."""
    found: dict[str, list[float]] = {name: [] for name in [*PARTS, "merge", "checkpoint and ledger", "round"]}
    for before, line in itertools.pairwise(lines):
        parts = line["parts"]
        for name, keys in PARTS.items():
            found[name].append(sum(parts.get(key, 0.0) for key in keys))
        whole = line["wall_seconds"] - before["wall_seconds"]
        work = parts.get("exchange and merge", 0.0)
        inner = sum(
            parts.get(key, 0.0) for key in ("encode", "decode", "device encode", "device decode", "device train")
        )
        found["merge"].append(max(0.0, work - inner))
        found["checkpoint and ledger"].append(max(0.0, whole - work - parts.get("evaluate", 0.0)))
        found["round"].append(whole)
    return {name: statistics.median(values) for name, values in found.items()}


def table(method: str, rounds: int) -> dict[str, Any]:
    """The experiment of a method; one whose net is of its own kind gets its preset."""
    preset = METHODS[method].traits.preset or "resnet8"
    return {
        "name": method,
        "rounds": rounds,
        "data": {"source": "digits", "public": 0.05},
        "model": {"name": preset},
        "method": {"name": method},
        "engine": {"kind": "inprocess", "relay": METHODS[method].traits.peers},
    }


def main() -> None:
    """One method, or all that there are."""
    method, rounds = sys.argv[1], int(sys.argv[2])
    if method == "names":
        print(json.dumps({"names": list(METHODS)}))
        return
    with tempfile.TemporaryDirectory() as folder:
        run = potluck.run(Experiment.of(table(method, rounds)), Path(folder) / "run")
        bytes_ = {key: run.summary["bytes"][key] / rounds for key in ("up", "down")}
        print(json.dumps({"seconds": [], "parts": seconds_by_part(run.rounds), "bytes": bytes_}))


if __name__ == "__main__":
    main()
