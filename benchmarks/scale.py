"""Does memory grow with the number of devices? 10, 100 and 1,000 a round, and 10,000 registered.

    python benchmarks/scale.py [--engine inprocess]

FedAvg on a small net and made-up images; each case in a process of its own. Peak resident memory (workers included),
seconds a round, and the size of the run folder after three rounds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

CASES = {
    "10 of 10": (10, 10),
    "100 of 100": (100, 100),
    "1,000 of 1,000": (1000, 1000),
    "1,000 of 10,000": (10000, 1000),
}
SAMPLES_EACH = 4


def table(devices: int, drawn: int, engine: str) -> dict[str, object]:
    """The experiment of a case."""
    samples = max(devices * SAMPLES_EACH, 40_000) + 1000
    return {
        "name": "scale",
        "rounds": 4,
        "data": {
            "source": f"synthetic:{int(samples * 1.25)},1,16,16",
            "partition": {"kind": "iid"},
            "limit": devices * SAMPLES_EACH,
        },
        "model": {"name": "mlp"},
        "fleet": {"tier": [{"name": "device", "devices": devices}], "participation": drawn / devices},
        "evaluate": {"every": 4, "samples": 500},
        "engine": {"kind": engine, "workers": 2},
    }


CHILD = """
import json, sys, potluck
if __name__ == "__main__":
    run = potluck.run(potluck.Experiment.of(json.loads(sys.argv[1])), sys.argv[2])
"""


def main() -> None:
    """Prints a row a case."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--engine", default="inprocess")
    told = parser.parse_args()
    print(f"engine {told.engine}; every device holds {SAMPLES_EACH} images of 1x16x16; net mlp")
    for name, (devices, drawn) in CASES.items():
        with tempfile.TemporaryDirectory() as place:
            script, folder = Path(place) / "child.py", Path(place) / "run"
            script.write_text(CHILD)
            asked = json.dumps(table(devices, drawn, told.engine))
            subprocess.run([sys.executable, str(script), asked, str(folder)], check=True)
            summary = json.loads((folder / "summary.json").read_text())
            lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
            walls = [line["wall_seconds"] for line in lines]
            seconds = statistics.median(after - before for before, after in itertools.pairwise(walls[:-1]))
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            print(
                f"{name:>16}  peak {summary['peak_rss_bytes'] / 1e6:7.0f} MB  {seconds:6.2f} s a round"
                f"  {seconds / drawn * 1e3:6.2f} ms a device  run folder {size / 1e6:5.1f} MB",
                flush=True,
            )


if __name__ == "__main__":
    main()
