"""Bytes of one device and one round: the nets of implicit depth against residual nets, as frames of a real run.

    python benchmarks/claims/implicit_bytes.py [--side 32]

One device, one round of training on a few made-up images of 3 x side x side, 10 classes, no codecs; the figures are
those of the run's ledger. The nets of implicit depth travel under their own method, the residual nets under fedavg.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from potluck.experiment import run as runs
from potluck.experiment.config import Experiment

METHOD_OF = {
    "odenet-cifar-like": "fedode",
    "odenet-34-lite-like": "fedode",
    "deq-xs-like": "feddeq",
    "deq-s-like": "feddeq",
    "deq-m-like": "feddeq",
    "deq-l-like": "feddeq",
    "resnet8": "fedavg",
    "resnet20": "fedavg",
    "resnet32": "fedavg",
    "resnet44": "fedavg",
    "resnet56": "fedavg",
    "resnet110": "fedavg",
    "resnet18": "fedavg",
    "resnet34": "fedavg",
}
AGAINST = ("resnet20", "resnet56", "resnet110", "resnet34")


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=32)
    side = parser.parse_args().side
    found = {model: _one_round(model, method, side) for model, method in METHOD_OF.items()}
    print(
        f"| net | parameters | tensor bytes up | encoded bytes up | down | {' | '.join(f'of {m}' for m in AGAINST)} |"
    )
    print(f"|---|---|---|---|---|{'---|' * len(AGAINST)}")
    for model, (parameters, tensors, up, down) in found.items():
        shares = " | ".join(f"{100 * (up + down) / (found[other][2] + found[other][3]):.2f} %" for other in AGAINST)
        print(f"| {model} | {parameters:,} | {tensors:,} | {up:,} | {down:,} | {shares} |")


def _one_round(model: str, method: str, side: int) -> tuple[int, int, int, int]:
    """(parameters, tensor bytes up, encoded bytes up, encoded bytes down)."""
    table = {
        "rounds": 1,
        "data": {"source": f"synthetic:24,3,{side},{side}", "partition": {"kind": "iid"}},
        "model": {"name": model},
        "method": {"name": method},
        "fleet": {"tier": [{"name": "one"}], "deadline_s": 1e6},
        "engine": {"kind": "inprocess"},
        "evaluate": {"samples": 2},
    }
    with tempfile.TemporaryDirectory() as folder:
        done = runs.run(Experiment.of(table), Path(folder) / "run")
        rows = {row["direction"]: row for row in done.ledger if row["verb"] == "train"}
        up, down = rows["up"], rows["down"]
        return done.summary["parameters"]["one"], up["tensor_bytes"], up["encoded_bytes"], down["encoded_bytes"]


if __name__ == "__main__":
    main()
