"""Resident memory that one device's round takes beyond the idle process, in bytes, one line a tier (Linux).

    MALLOC_MMAP_THRESHOLD_=65536 python benchmarks/speed/training_memory.py EXPERIMENT.toml

Idle is after a round on two samples: libraries are loaded, kernels are made. With the variable glibc gives back what is
free; without it, it keeps some.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from potluck.engines.contract import Request
from potluck.engines.local_state import LocalStateStore
from potluck.engines.round import initial_checkpoint
from potluck.experiment import build
from potluck.experiment.config import Experiment
from potluck.experiment.prepare import prepare


def now(what: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))


def main() -> None:
    torch.set_num_threads(1)
    ready = prepare(Experiment.load(sys.argv[1]))
    federation, folder = ready.federation, Path(tempfile.mkdtemp())
    runtime = build.make_runtime(ready.resolved, ready.shares, folder / "own")
    tiny = replace(
        runtime, store=LocalStateStore(folder / "tiny"), shard=lambda one: runtime.shard(one).take(torch.arange(2))
    )
    state = initial_checkpoint(federation).state
    for tier in ready.experiment.fleet.tier:
        device = max(
            (one for one in federation.fleet.devices if one.tier == tier.name), key=lambda one: len(runtime.shard(one))
        )
        down = (
            {}
            if federation.method.traits.peers
            else federation.method.broadcast(state, device, federation.server_context(1))
        )
        made, _ = federation.messages.write_down(down, 1)
        verb = "post" if federation.method.traits.peers else "train"
        order = Request(device=device, round=1, verb=verb, frame=made)
        tiny.answer(order)
        idle = now("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        response = runtime.answer(order)
        if response.status != "ok":
            raise SystemExit(response.reason)
        print(now("VmHWM") - idle)


if __name__ == "__main__":
    main()
