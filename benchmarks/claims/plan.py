"""A plan beside what is measured: bytes (ledger), FLOPs (torch's counter), seconds (the run's clock), memory (/proc).

    python benchmarks/claims/plan.py recipes/digits.toml --methods fedavg,fedhm --set rounds=3

Prints a Markdown table: planned, and measured over planned. Memory is of a process whose allocator gives back what is
free (MALLOC_MMAP_THRESHOLD_), and in brackets with glibc's default; ``--no-run`` leaves out the runs.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from torch.utils.flop_counter import FlopCounterMode

from potluck.core.contexts import DeviceContext
from potluck.engines.local.inprocess import torch_threads
from potluck.engines.round import initial_checkpoint
from potluck.experiment import run, store
from potluck.experiment.compare import variants
from potluck.experiment.config import Experiment
from potluck.experiment.prepare import prepare
from potluck.planning import plan

MEMORY = Path(__file__).parents[1] / "speed" / "training_memory.py"


def counted_flops(experiment: Experiment) -> list[float]:
    """Per tier: FLOPs of the forward and backward passes of one device's round 1, each counted."""
    with torch_threads(1):
        ready = prepare(experiment)
        federation, found = ready.federation, []
        state = initial_checkpoint(federation).state
        for tier in experiment.fleet.tier:
            devices = [one for one in federation.fleet.devices if one.tier == tier.name]
            device = max(devices, key=lambda one: len(ready.shares.train[one.id]))
            data = ready.shares.train[device.id]
            task = DeviceContext(round=1, device=device, data=data, public=ready.shares.public, seed=experiment.seed)
            down = (
                None
                if federation.method.traits.peers
                else federation.method.broadcast(state, device, federation.server_context(1))
            )
            small = replace(task, data=data.take(data.index[:0].new_tensor([0, 1])))
            for work in (small, task):  # the first measures its own costs, once
                with FlopCounterMode(display=False) as counter:
                    if down is None:
                        federation.method.publish(federation.method.initial_state(work), work)
                    else:
                        federation.method.train(None, down, work)
            found.append(float(counter.get_total_flops()))
    return found


def measured_memory(experiment: Experiment, folder: Path, threshold: str) -> list[int]:
    (folder / "one.toml").write_text(store.to_toml(experiment))
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": threshold} if threshold else dict(os.environ)
    words = [sys.executable, str(MEMORY), str(folder / "one.toml")]
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
    return [int(line) for line in done.stdout.split()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("experiment")
    parser.add_argument("--methods", default="")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--no-run", action="store_true")
    told = parser.parse_args()
    loaded = Experiment.load(told.experiment, told.set)
    print("| method | tier | up, down: measured - planned bytes | GFLOPs | counted | memory MB | measured | seconds |")
    print("|---|---|---|---|---|---|---|---|")
    for experiment, _ in variants(loaded, plan.methods_of(loaded, told.methods), [loaded.seed]):
        planned = plan.plan_one(experiment)
        with tempfile.TemporaryDirectory() as place:
            traffic, seconds = "-", "-"
            if not told.no_run and planned.total is not None:
                summary = run.run(experiment, Path(place) / "run").summary
                ups = summary["bytes"]["up"] - planned.total.up_bytes
                downs = summary["bytes"]["down"] - planned.total.down_bytes
                traffic = f"{ups:+,} of {summary['bytes']['up']:,}, {downs:+,} of {summary['bytes']['down']:,}"
                seconds = f"{summary['simulated_seconds'] / planned.total.simulated_seconds:.3f}"
            lean = measured_memory(experiment, Path(place), "65536")
            usual = measured_memory(experiment, Path(place), "")
        for place_of, (tier, flops) in enumerate(zip(planned.tiers, counted_flops(experiment), strict=True)):
            memory = f"{lean[place_of] / tier.memory_bytes:.2f} ({usual[place_of] / tier.memory_bytes:.2f})"
            print(
                f"| {planned.method} | {tier.tier} | {traffic if not place_of else ''} | {tier.flops / 1e9:.3g} | "
                f"{flops / tier.flops:.2f} | {tier.memory_bytes / 1e6:.1f} | {memory} | "
                f"{seconds if not place_of else ''} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
