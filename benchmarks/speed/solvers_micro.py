"""What the gradients of an equilibrium cell cost: time against unrolling, and peak memory for two budgets.

    python benchmarks/speed/solvers_micro.py [--preset deq-s-like] [--batch 16] [--side 32] [--repeats 9] [--threads 1]

Time: the cell alone (no stem, no head), depth 8, forward and backward; all variants take turns within one run, and the
table shows medians and their ratio to ``unroll``. Memory: one training step of a whole net in a process of its own; the
growth of its peak resident set (Linux: VmHWM; glibc gives large tensors back at once) beyond what it held with the net
built and the weights' gradients there.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from potluck.nets.deqnet import DeqNet, make_deq, set_depth
from potluck.solvers import IFT, JFB, FixedPoint, Gradient, Phantom, Unroll, solve

DEPTH = 8
TIMED: dict[str, Gradient] = {
    "unroll": Unroll(),
    "phantom(3)": Phantom(steps=3),
    "phantom(5)": Phantom(steps=5),
    "jfb": JFB(),
    "ift(8)": IFT(steps=8),
}
TARGETS = {"phantom(3)": 0.65, "phantom(5)": 0.80}
WEIGHED: dict[str, Gradient] = {"phantom": Phantom(steps=5), "ift": IFT(steps=8), "unroll": Unroll()}
BUDGETS = (5, 50)


def main() -> None:
    """Prints both tables."""
    options = _options()
    torch.set_num_threads(options.threads)
    if options.memory:
        print(json.dumps(peak_bytes(options, *options.memory)))
        return
    print(f"{options.preset}, batch {options.batch}, {options.side}x{options.side}, {options.threads} thread(s)")
    _print_memory(options)
    _print_times(options)


def seconds_by_gradient(options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of forward and backward by variant; the variants take turns, the first round warms up."""
    net = _net(options)
    channels = net.cell.kernel2.shape[0]
    x = torch.randn(options.batch, channels, options.side, options.side, generator=torch.Generator().manual_seed(0))
    taken: dict[str, list[float]] = {name: [] for name in TIMED}
    for turn in range(options.repeats + 1):
        for name, gradient in TIMED.items():
            net.zero_grad(set_to_none=True)
            start = time.perf_counter()
            injection = x.clone().requires_grad_()  # as in a net, where the stem is trained too
            kernels = net.cell.kernels()
            found = solve(
                lambda z, x=injection, k=kernels: net.cell(z, x, k),
                torch.zeros_like(injection),
                solver=FixedPoint(),
                gradient=gradient,
                steps=DEPTH,
            )
            found.value.square().mean().backward()
            if turn:
                taken[name].append(time.perf_counter() - start)
    return taken


def peak_bytes(options: argparse.Namespace, kind: str, budget: str) -> int:
    """Growth of this process's peak resident set by one training step, the second one of the same size."""
    net = _net(options)
    set_depth(net, int(budget), solver=FixedPoint(), gradient=WEIGHED[kind])
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(options.batch, 3, options.side, options.side, generator=generator)
    label = torch.zeros(options.batch, dtype=torch.int64)
    _step(net, image[:1], label[:1])  # what the libraries allocate once is not the device's
    before = _peak_resident()
    _step(net, image, label)
    return _peak_resident() - before


def _step(net: DeqNet, image: torch.Tensor, label: torch.Tensor) -> None:
    F.cross_entropy(net(image), label).backward()


def _peak_resident() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM: memory is measured on Linux only")


def _net(options: argparse.Namespace) -> DeqNet:
    torch.manual_seed(0)
    return make_deq(options.preset, (3, options.side, options.side), 10)


def _print_times(options: argparse.Namespace) -> None:
    taken = seconds_by_gradient(options)
    base = statistics.median(taken["unroll"])
    print(f"\ncell alone, depth {DEPTH}, forward + backward, median of {options.repeats}")
    print(f"{'gradient':<12}{'ms':>9}{'min ms':>9}{'ratio':>8}{'target':>8}")
    for name, seconds in taken.items():
        median = statistics.median(seconds)
        target = f"{TARGETS[name]:.2f}" if name in TARGETS else ""
        print(f"{name:<12}{1e3 * median:>9.1f}{1e3 * min(seconds):>9.1f}{median / base:>8.3f}{target:>8}")


def _print_memory(options: argparse.Namespace) -> None:
    print("\nwhole net, one training step, peak resident memory above the net itself, MB")
    print(f"{'gradient':<12}" + "".join(f"{f'K = {budget}':>10}" for budget in BUDGETS) + f"{'growth':>8}")
    for kind in WEIGHED:
        found = [_in_a_process_of_its_own(options, kind, budget) for budget in BUDGETS]
        print(f"{kind:<12}" + "".join(f"{size / 1e6:>10.1f}" for size in found) + f"{found[1] / found[0]:>8.2f}")


def _in_a_process_of_its_own(options: argparse.Namespace, kind: str, budget: int) -> int:
    shared = [f"--{name}={getattr(options, name)}" for name in ("preset", "batch", "side", "threads")]
    command = [sys.executable, __file__, *shared, "--memory", kind, str(budget)]
    # Without this a heap that is full of holes decides, by 15 % from process to process.
    exact = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    said = subprocess.run(command, check=True, capture_output=True, text=True, env=exact).stdout
    return int(json.loads(said))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="deq-s-like")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory", nargs=2, metavar=("GRADIENT", "K"), help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
