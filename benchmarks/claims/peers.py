"""Rotated MNIST among peers: local training, FedMD, FedH2L and its ablations; AD, AL and bytes.

    POTLUCK_DATA=FOLDER python benchmarks/claims/peers.py [--seeds 0,1,2] [--rows local,both,...] [--out runs/peers]

The experiment is recipes/rotated-mnist.toml with other nets: ``mlp`` (phone), ``lenet`` (tablet) and ``strided`` of
peer_nets.py (laptop), at learning rate 0.02 for all rows. Rows that are there already are read, not run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from potluck.experiment import run
from potluck.experiment.config import Experiment

HERE = Path(__file__).parent
MODELS = {"phone": "mlp", "tablet": "lenet", "laptop": "peer_nets:strided"}
ROWS: dict[str, dict[str, Any]] = {
    "local": {"name": "local"},
    "both": {"name": "fedh2l", "protect": "both"},
    "fedmd": {"name": "fedmd", "public_batch": 0},
    "no KL": {"name": "fedh2l", "protect": "both", "weight": 0.0},
    "private": {"name": "fedh2l"},
    "no projection": {"name": "fedh2l", "protect": "none"},
    "no seed labels": {"name": "fedh2l", "protect": "both", "seed_ce": False},
    "local, as many private batches": {"name": "local"},
    "no KL, private": {"name": "fedh2l", "weight": 0.0},
    "no seed labels, private": {"name": "fedh2l", "seed_ce": False},
}
MORE_ROUNDS = {"local, as many private batches": 17}
"""10 rounds of 29 batches of one's own and, with protect = "both", 19 more: as many as 17 rounds of 29."""


def play(row: str, seed: int, lr: float, out: Path) -> dict[str, Any]:
    """The summary of a row's run."""
    folder = out / f"{row.replace(', ', '-').replace(' ', '-')}-{seed}"
    if not (folder / "summary.json").is_file():
        table = Experiment.load(HERE.parents[1] / "recipes" / "rotated-mnist.toml").model_dump()
        table |= {"seed": seed, "rounds": MORE_ROUNDS.get(row, table["rounds"]), "methods": {}}
        table["train"]["lr"], table["engine"]["kind"] = lr, "inprocess"
        table["evaluate"]["every"], table["method"] = 100, {**ROWS[row], "models": MODELS}
        run.run(Experiment.of(table), folder)
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def main() -> None:
    """Plays the rows one after the other, all seeds of one before the next, and prints each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--rows", default=";".join(ROWS), help="names, with semicolons")
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--out", type=Path, default=Path("runs/peers"))
    told = parser.parse_args()
    sys.path.insert(0, str(HERE))
    print("| row | AD | AL | worst peer's AD | MB up |\n|---|---|---|---|---|", flush=True)
    for row in told.rows.split(";"):
        found = [play(row, int(seed), told.lr, told.out) for seed in told.seeds.split(",")]
        columns = [[one["accuracy"][key] for one in found] for key in ("ad", "al", "worst")]
        cells = [f"{statistics.mean(c):.3f} ({', '.join(f'{v:.3f}' for v in c)})" for c in columns]
        print(f"| {row} | {' | '.join(cells)} | {found[0]['bytes']['up'] / 1e6:.2f} |", flush=True)


if __name__ == "__main__":
    main()
