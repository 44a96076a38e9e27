"""The cheapest way to ResNet-20's accuracy: nets, methods and codecs side by side, by bytes.

    python benchmarks/claims/frontier.py --set quick --seeds 0,1,2 --out runs/claims

Runs what is missing of the rows of FRONTIER (claims.py; same folders) and prints a table: parameters, encoded bytes of
the whole run, accuracy after the last round, and the bytes until the first evaluation that reaches what FedAvg with
ResNet-20 has at its end, less one point. Means over the seeds; "times" is the whole ResNet-20 run over those bytes.
"""

from __future__ import annotations

import argparse
import math
import statistics
from pathlib import Path

from claims import FRONTIER, bytes_to, place, play
from potluck.experiment.run_reader import Run


def main() -> None:
    """Runs and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", default="quick")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--out", type=Path, default=Path("runs/claims"))
    options = parser.parse_args()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    for seed in seeds:
        for row in FRONTIER:
            if not (place(options.out, options.set, row, seed) / "summary.json").is_file():
                print(f"{row}, seed {seed}", flush=True)
                play(options.out, options.set, row, seed)
    found = {row: [Run.load(place(options.out, options.set, row, seed)) for seed in seeds] for row in FRONTIER}
    print("\n| row | parameters | MB in all | accuracy, % | MB to the target | times |\n|---|---|---|---|---|---|")
    for row, runs in found.items():
        sums = [one.summary for one in runs]
        accuracy = [100 * one["accuracy"]["mean"] for one in sums]
        reached = [
            bytes_to(one, rival.summary["accuracy"]["mean"] - 0.01)[1]
            for one, rival in zip(runs, found["resnet20"], strict=True)
        ]
        whole = statistics.mean(rival.summary["bytes"]["total"] for rival in found["resnet20"])
        size = statistics.mean(one["bytes"]["total"] for one in sums) / 1e6
        to = statistics.mean(reached) / 1e6
        told = f"{to:,.2f} | {whole / 1e6 / to:,.1f}" if math.isfinite(to) else "not reached | -"
        spread = f" ± {statistics.stdev(accuracy):.1f}" if len(accuracy) > 1 else ""
        parameters = ", ".join(f"{count:,}" for count in dict.fromkeys(sums[0]["parameters"].values()))
        print(f"| `{row}` | {parameters} | {size:,.1f} | {statistics.mean(accuracy):.1f}{spread} | {told} |")


if __name__ == "__main__":
    main()
