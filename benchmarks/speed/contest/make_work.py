"""Potluck's own shares of data and first weights, written down for the others. ``make_work.py B1|B3 FILE``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from potluck.experiment import build
from potluck.experiment.config import Experiment
from potluck.experiment.resolve import resolve

DEVICES = {"B1": 50, "B3": 100}
NETS = {"B1": "cnn_2m", "B3": "tiny"}


def table(bench: str, rounds: int, seed: int, init: str = "") -> dict[str, Any]:
    """The experiment of a benchmark, as Potluck runs it. The data and the first weights do not depend on ``seed``."""
    data: dict[str, Any] = {"source": "npz:$POTLUCK_DATA/cifar10-small.npz", "limit": 2500}
    model, batch = "cnn-2m", 10
    if bench == "B3":
        data, model, batch = {"source": "digits"}, "nets:tiny", 5
    return {
        "name": f"bench-{bench}",
        "rounds": rounds,
        "seed": seed,
        "data": {**data, "partition": {"kind": "iid"}},
        "model": {"name": model, "init": init},
        "train": {"lr": 0.1, "momentum": 0.0, "batch_size": batch},
        "fleet": {"tier": [{"name": "device", "devices": DEVICES[bench]}], "deadline_s": 1e6},
        "evaluate": {"every": rounds},
    }


def main() -> None:
    """Writes FILE and, beside it, the first weights as safetensors."""
    bench, place = sys.argv[1], Path(sys.argv[2])
    settled = resolve(Experiment.of(table(bench, 1, 0)))
    shares = build.make_shares(settled)
    net = build.make_tier_nets(settled, shares.test.shape, shares.test.classes)("device")
    weights = {name: value.contiguous() for name, value in net.state_dict().items()}
    facts = {
        "net": NETS[bench],
        "batch": settled.experiment.train.batch_size,
        "lr": settled.experiment.train.lr,
        "sizes": [len(shard) for shard in shares.train],
    }
    np.savez(
        place,
        x=torch.cat([shard.x for shard in shares.train]).numpy(),
        y=torch.cat([shard.y for shard in shares.train]).numpy(),
        x_test=shares.test.x.numpy(),
        y_test=shares.test.y.numpy(),
        facts=np.array(json.dumps(facts)),
        **{f"w.{name}": value.numpy() for name, value in weights.items()},  # type: ignore[arg-type]
    )
    save_file(weights, place.with_suffix(".safetensors"))


if __name__ == "__main__":
    main()
