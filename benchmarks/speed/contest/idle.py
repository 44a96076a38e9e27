"""B2 and B6: devices that do nothing, so that what remains is Potluck's own. Prints JSON.

idle.py payload_4kb DEVICES ROUNDS        idle.py registered DEVICES DRAWN ROUNDS
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

import potluck
from potluck.core.contexts import DeviceContext
from potluck.experiment.config import Experiment
from potluck.methods.averaging import Averaging, State, Update


class Idle(Averaging):
    """Answers with what it was sent."""

    def train(self, local_state: None, broadcast: State, context: DeviceContext) -> tuple[None, Update]:
        """No training."""
        return None, {"weights": broadcast["weights"], "samples": 1}


def play(table: dict[str, Any]) -> dict[str, Any]:
    """Seconds of the rounds between the first and the last, peak memory, size of the run folder."""
    with tempfile.TemporaryDirectory() as place:
        run = potluck.run(Experiment.of(table), Path(place) / "run")
        size = sum(path.stat().st_size for path in Path(place).rglob("*") if path.is_file())
        walls = [line["wall_seconds"] for line in run.rounds]
        seconds = [after - before for before, after in itertools.pairwise(walls)]
        return {
            "seconds": seconds[:-1] or seconds,
            "own_peak_bytes": run.summary["peak_rss_bytes"],
            "folder_bytes": size,
        }


def table(devices: int, rounds: int, model: str, drawn: int, features: int) -> dict[str, Any]:
    """An experiment of so many devices with four samples each."""
    samples = devices * 4
    return {
        "name": "idle",
        "rounds": rounds + 2,
        "data": {
            "source": f"synthetic:{int((samples + 500) * 1.25)},1,{features},{features}",
            "partition": {"kind": "iid"},
            "limit": samples,
        },
        "model": {"name": model},
        "fleet": {"tier": [{"name": "device", "devices": devices}], "participation": drawn / devices},
        "evaluate": {"every": rounds + 2, "samples": 100},
        "engine": {"kind": "inprocess"},
    }


def main() -> None:
    """One case."""
    sys.path.insert(0, str(Path.cwd()))
    kind, numbers = sys.argv[1], [int(text) for text in sys.argv[2:]]
    if kind == "registered":
        devices, drawn, rounds = numbers
        print(json.dumps(play(table(devices, rounds, "mlp", drawn, 8))))
        return
    devices, rounds = numbers
    asked = table(devices, rounds, f"nets:{kind}", devices, 4) | {"method": {"name": "idle:Idle"}}
    print(json.dumps(play(asked) | {"torch": torch.__version__}))


if __name__ == "__main__":
    main()
