"""What this device brings: its speed in training, its free memory and perhaps its link, as a tier of an experiment."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from potluck.core.types import Inputs
from potluck.engines.local.inprocess import torch_threads
from potluck.engines.process_memory import rss_bytes
from potluck.nets import NETS, zoo
from potluck.planning.probe_link import Link
from potluck.training.flops import training_flops

CLASSES, BATCH = 10, 32
EXAMPLES = {
    "images": Inputs((3, 32, 32)),
    "rows": Inputs((64,)),
    "series": Inputs((64, 32)),
    "tokens": Inputs((64,), 1000),
}
"""What a net is timed on: the first kind that it takes."""
MEASURE_S = 3.0
LEAST_STEPS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Training steps of a net: FLOPs a second as a simulation counts them, and how they were measured."""

    gflops: float
    model: str
    threads: int
    steps: int


def speed(model: str = "resnet20", threads: int = 1, seconds: float = MEASURE_S) -> Speed:
    """Times training steps (forward, backward, SGD) on made-up samples, for ``seconds`` after a warm-up.

    FLOPs are counted as the simulated clock counts them, so that ``gflops`` gives this device's seconds there. The
    median step is taken.
    """
    with torch_threads(threads):
        known = NETS[model]
        inputs = EXAMPLES[known.inputs[0]]
        outputs = inputs.vocabulary if known.per_step else CLASSES
        net = zoo.make(model, inputs, outputs, "group").train()
        optimiser = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
        rng = torch.Generator().manual_seed(0)
        x = inputs.example(BATCH)
        steps = inputs.shape if known.per_step else ()
        y = torch.randint(0, outputs, (BATCH, *steps), generator=rng)
        flops = training_flops(net, inputs) * BATCH

        def step() -> float:
            start = time.perf_counter()
            optimiser.zero_grad(set_to_none=True)
            F.cross_entropy(net(x).flatten(0, -2), y.flatten()).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            return time.perf_counter() - start

        step()
        step()
        taken: list[float] = []
        while len(taken) < LEAST_STEPS or sum(taken) < seconds:
            taken.append(step())
    gflops = flops / statistics.median(taken) / 1e9
    return Speed(gflops=gflops, model=model, threads=threads, steps=len(taken))


def free_bytes(read: Callable[[str], str] = lambda path: Path(path).read_text(encoding="ascii")) -> int | None:
    """Bytes that training may still take here: what the system has, within the control group's limit. None: unknown."""
    found: list[int] = []
    try:
        lines = dict(line.split(":", 1) for line in read("/proc/meminfo").splitlines())
        found.append(int(lines["MemAvailable"].split()[0]) * 1024)
    except (OSError, ValueError, KeyError):
        if "SC_AVPHYS_PAGES" in os.sysconf_names:
            found.append(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            found.append(int(read(limit)) - int(read(used)))
        except (OSError, ValueError):
            continue  # no such group, or no limit ("max")
    return max(0, min(found)) if found else None


def tier_table(name: str, fast: Speed, memory: int | None, link: Link | None, peer: str = "") -> str:
    """The ``[[fleet.tier]]`` of this device, to be pasted into an experiment file."""
    own = rss_bytes()
    beside = f"; this process holds {own / 1e6:.0f} MB beside it" if own else ""
    lines = [
        "[[fleet.tier]]",
        f'name = "{name}"',
        "devices = 1",
        f"gflops = {fast.gflops:.4g}  # {fast.model}, batch {BATCH}, {fast.threads} thread(s), {fast.steps} steps",
    ]
    if memory is None:
        lines.append("# memory_mb: could not be found out here")
    else:
        lines.append(f"memory_mb = {memory / 1e6:.0f}  # free now{beside}")
    if link is None:
        lines.append("# link: not measured; potluck probe --listen HOST:PORT there, --connect HOST:PORT here")
    else:
        lines.append(f"uplink_mbps = {link.uplink_mbps:.4g}  # to {peer}")
        lines.append(f"downlink_mbps = {link.downlink_mbps:.4g}")
        lines.append(f"latency_ms = {link.latency_ms:.3g}  # one way: half a round trip")
    return "\n".join(lines) + "\n"
