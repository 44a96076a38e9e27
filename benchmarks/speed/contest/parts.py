"""B5: parts against the fastest thing that does comparable work, in turns, in one process. Prints JSON.

Solvers against torchdeq and torchdiffeq at equal numbers of evaluations (those rows only where both are installed);
frames against a memory copy of the same tensor; the merge against ``add_``.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import random
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from potluck.core import tree
from potluck.core.mean import WeightedMean
from potluck.nets.deqnet import make_deq
from potluck.solvers import FixedPoint, Phantom, odeint, solve
from potluck.wire import frame

TURNS, STEPS, TAIL = 41, 8, 5
FLOATS = 5_000_000


def turns(cases: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
    """Median milliseconds of CPU time of each case; they take turns in random order, the first round warms up."""
    taken: dict[str, list[float]] = {name: [] for name in cases}
    drawn = random.Random(0)
    for turn in range(TURNS + 1):
        for name, case in drawn.sample(sorted(cases.items()), len(cases)):
            start = time.process_time()
            case()
            if turn:
                taken[name].append(1e3 * (time.process_time() - start))
    return {name: statistics.median(values) for name, values in taken.items()}


def frames() -> dict[str, float]:
    """Encode and decode of 20 MB with the finiteness check, a copy of it, the merge, and ``add_``."""
    value = torch.randn(FLOATS)
    made, mean, total = frame.encode({"w": value}), WeightedMean(), torch.zeros(FLOATS)
    mean.add({"w": value}, 1.0)

    def checked() -> bool:
        return tree.finite(frame.decode(made)[0]["w"])

    return turns(
        {
            "copy of 20 MB": value.clone,
            "encode": lambda: frame.encode({"w": value}),
            "decode and check": checked,
            "add_ of 20 MB": lambda: total.add_(value),
            "merge of 20 MB": lambda: mean.add({"w": value}, 0.5),
        }
    )


def equilibria() -> dict[str, float]:
    """Forward and backward of a cell: 8 evaluations, gradients through the last 5, no tolerance."""
    from torchdeq import get_deq  # noqa: PLC0415 - only in the rivals' environment

    net = make_deq("deq-s-like", (3, 16, 16), 10)
    kernels = net.cell.kernels()
    x = torch.randn(16, 48, 16, 16)

    def cell(z: Tensor) -> Tensor:
        return net.cell(z, x, kernels)

    def ours() -> None:
        found = solve(cell, torch.zeros_like(x), solver=FixedPoint(), gradient=Phantom(steps=TAIL), steps=STEPS)
        found.value.square().mean().backward()

    # torchdeq's grad = n: n evaluations with gradients after f_max_iter without. Its simple loop keeps no statistics.
    solvers = {"sliced": "fixed_point_iter", "indexing": "fixed_point_iter", "unwatched": "simple_fixed_point_iter"}
    theirs = {
        name: get_deq(
            core="indexing" if name == "unwatched" else name,
            f_solver=solver,
            f_max_iter=STEPS - TAIL,
            f_tol=0.0,
            grad=TAIL,
            tau=1.0,
        )
        for name, solver in solvers.items()
    }

    def other(deq: Any) -> None:
        deq.train()
        out, _ = deq(cell, torch.zeros_like(x))
        out[-1].square().mean().backward()

    def count(case: Callable[[], Any]) -> int:
        before = calls[0]
        case()
        return calls[0] - before

    calls = [0]
    net.cell.register_forward_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    cases = {"phantom": ours} | {f"torchdeq, {core}": (lambda deq=deq: other(deq)) for core, deq in theirs.items()}
    evaluations = {f"{name}: evaluations": float(count(case)) for name, case in cases.items()}
    return turns(cases) | evaluations


def steps() -> dict[str, float]:
    """Forward and backward of 8 steps of a convolutional field, Euler and RK4, against torchdiffeq's fixed grid."""
    from torchdiffeq import odeint as other  # noqa: PLC0415 - only in the rivals' environment

    field = torch.nn.Conv2d(16, 16, 3, padding=1)
    z0, grid = torch.randn(16, 16, 16, 16), torch.linspace(0, 1, STEPS + 1)

    def ours(method: str) -> None:
        odeint(lambda z, t: torch.tanh(field(z)), z0, steps=STEPS, method=method, h=1 / STEPS).sum().backward()

    def theirs(method: str) -> None:
        other(lambda t, z: torch.tanh(field(z)), z0, grid, method=method)[-1].sum().backward()

    cases = {}
    for method in ("euler", "rk4"):
        cases[f"ODE, {method}"] = lambda method=method: ours(method)
        cases[f"torchdiffeq, {method}"] = lambda method=method: theirs(method)
    return turns(cases)


def main() -> None:
    """Prints all medians in milliseconds."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found, versions = frames(), {"torch": torch.__version__}
    for name, measured in (("torchdeq", equilibria), ("torchdiffeq", steps)):
        if importlib.util.find_spec(name) is not None:
            versions[name] = importlib.metadata.version(name)
            found |= measured()
    print(json.dumps({"ms": found, "versions": versions}))


if __name__ == "__main__":
    main()
