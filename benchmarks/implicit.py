"""Evidence for nets of implicit depth: fleets of mixed depth against fleets of one depth, against devices alone.

    python benchmarks/implicit.py recipes/implicit-digits.toml --rows ode,ode-2 --seeds 0,1,2 --out runs/implicit

Runs each row and seed into OUT/ROW-SEED (one that is finished is not run again), then prints a table: the accuracy of
each tier, their mean at the end and at the first evaluation, as mean ± sample deviation over the seeds; encoded bytes a
round; wall seconds a run. A fleet is three tiers of four devices, with the depths that stand in the row's name, or 2,
4, 8 (ode), 4, 8, 16 (deq) and 1, 2, 12 (fuse).
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from potluck.experiment import run as runs
from potluck.experiment import store
from potluck.experiment.config import Experiment
from potluck.experiment.loaded import Run
from potluck.models.fit import evaluate

TIERS = ("phone", "tablet", "laptop")
DEPTHS = {"ode": (1, 2, 4, 8, 16), "deq": (1, 2, 4, 8, 12, 16, 32)}
ODE, DEQ, RESNET = "odenet-cifar-like", "deq-xs-like", "resnet20"
RESNETS = (8, 20, 32, 44, 56)


def _depths(*counts: int) -> dict[str, int]:
    return dict(zip(TIERS, counts, strict=True))


def _ode(*counts: int, **options: Any) -> dict[str, Any]:
    return {"model": {"name": ODE}, "method": {"name": "fedode", "steps": _depths(*counts), **options}}


def _deq(*counts: int, **options: Any) -> dict[str, Any]:
    return {"model": {"name": DEQ}, "method": {"name": "feddeq", "steps": _depths(*counts), **options}}


def _local(kind: str, *counts: int) -> dict[str, Any]:
    return {"model": {"name": ODE if kind == "ode" else DEQ, "steps": _depths(*counts)}, "method": {"name": "local"}}


HELD = {"data": {"server_samples": 200}}
"""The rows of fusion rules: all of them set the server's samples aside, so that their devices hold the same data."""
INT8 = {"wire": {"up": ["int8", "zstd"], "down": ["int8", "zstd"]}}
ROWS: dict[str, dict[str, Any]] = {
    "ode": _ode(2, 4, 8),
    "ode-2": _ode(2, 2, 2),
    "ode-4": _ode(4, 4, 4),
    "ode-8": _ode(8, 8, 8),
    "ode-local": _local("ode", 2, 4, 8),
    "ode-unit_step": _ode(2, 4, 8, step="unit_step"),
    "ode-unit_step-2": _ode(2, 2, 2, step="unit_step"),
    "ode-unit_step-8": _ode(8, 8, 8, step="unit_step"),
    "ode-unit_step-global": _ode(2, 4, 8, step="unit_step", norm_groups="global"),
    "ode-global": _ode(2, 4, 8, norm_groups="global"),
    "ode-learned": _ode(2, 4, 8, step="learned"),
    "ode-random": _ode(2, 4, 8, random_steps=True),
    "ode-faithful": _ode(2, 4, 8, profile="faithful"),
    "deq": _deq(4, 8, 16),
    "deq-4": _deq(4, 4, 4),
    "deq-8": _deq(8, 8, 8),
    "deq-16": _deq(16, 16, 16),
    "deq-local": _local("deq", 4, 8, 16),
    "deq-plain_loss": _deq(4, 8, 16, fixed_point_loss=0.0),
    "deq-random": _deq(4, 8, 16, random_steps=True),
    "deq-faithful": _deq(4, 8, 16, profile="faithful"),
    "fuse-samples": {**_deq(1, 2, 12), **HELD},
    "fuse-iterations": {**_deq(1, 2, 12, fusion="iterations"), **HELD},
    "fuse-residual": {**_deq(1, 2, 12, fusion="residual"), **HELD},
    "fuse-calibrated": {**_deq(1, 2, 12, fusion="calibrated"), **HELD},
    **{f"resnet{depth}": {"model": {"name": f"resnet{depth}"}, "method": {"name": "fedavg"}} for depth in RESNETS},
    "deq-int8": {**_deq(4, 8, 16), **INT8},
    "ode-int8": {**_ode(2, 4, 8), **INT8},
    "resnet20-int8": {"model": {"name": RESNET}, "method": {"name": "fedavg"}, **INT8},
    "resnet20-local": {"model": {"name": RESNET}, "method": {"name": "local"}},
}


def main() -> None:
    """Runs what is missing and prints the table."""
    options = _options()
    rows = list(ROWS) if options.rows == "all" else options.rows.split(",")
    found: dict[str, list[Run]] = {row: [] for row in rows}
    for seed in map(int, options.seeds.split(",")):
        for row in rows:
            path = Path(options.out) / f"{row}-{seed}"
            if (path / "summary.json").is_file() or not options.print:
                found[row].append(_finished(path, options.recipe, row, seed))
                print(f"{row}-{seed}", found[row][-1].summary["accuracy"]["tiers"], flush=True)
    _print(found)
    if options.cross:
        _print_cross(found)


def _finished(path: Path, recipe: str, row: str, seed: int) -> Run:
    if (path / "summary.json").is_file():
        return Run.load(path)
    if (path / "experiment.toml").is_file():
        return runs.resume(path)
    table = Experiment.load(recipe).model_dump(exclude_unset=True)
    for section, values in {**ROWS[row], "engine": {"kind": "inprocess"}}.items():
        table[section] = values if section == "method" else {**table.get(section, {}), **values}
    return runs.run(Experiment.of({**table, "name": f"{row}-{seed}", "seed": seed, "methods": {}}), path)


def _print(found: dict[str, list[Run]]) -> None:
    print(f"\n| row | seeds | {' | '.join(TIERS)} | mean | mean at first | bytes a round | wall s |")
    print(f"|---|---|{'---|' * len(TIERS)}---|---|---|---|")
    for row, done in found.items():
        if not done:
            continue
        sums = [one.summary for one in done]
        cells = [_spread([s["accuracy"]["tiers"][tier] for s in sums]) for tier in TIERS]
        cells.append(_spread([s["accuracy"]["mean"] for s in sums]))
        cells.append(_spread([next(r["accuracy"]["mean"] for r in one.rounds if "accuracy" in r) for one in done]))
        size = statistics.mean(s["bytes"]["total"] / s["rounds"] for s in sums)
        wall = statistics.mean(s["wall_seconds"] for s in sums)
        print(f"| {row} | {len(sums)} | {' | '.join(cells)} | {size:,.0f} | {wall:.0f} |")


def _print_cross(found: dict[str, list[Run]]) -> None:
    """What one θ is worth at each depth: that of the row at those of its kind."""
    for kind, method in (("ode", "fedode"), ("deq", "feddeq")):
        depths = DEPTHS[kind]
        rows = {row: done for row, done in found.items() if done and done[0].summary["method"] == method}
        if rows:
            print(f"\n| trained ({kind}) | {' | '.join(f'at {depth}' for depth in depths)} |")
            print(f"|---|{'---|' * len(depths)}")
        for row, done in rows.items():
            found_by_run = [_accuracies(one, depths) for one in done]
            print(f"| {row} | {' | '.join(_spread(list(cell)) for cell in zip(*found_by_run, strict=True))} |")


def _accuracies(found: Run, depths: Sequence[int]) -> list[float]:
    ready, state = runs.prepare(found.experiment), store.read_snapshot(found.path).state
    device, method = ready.course.fleet.devices[0], ready.course.method
    accuracies = []
    for depth in depths:
        net = dataclasses.replace(method, steps=_depths(depth, depth, depth)).model(state, None, device)
        score = evaluate(net, ready.shares.test)
        accuracies.append(float(score.right.sum() / score.total.sum()))
    return accuracies


def _spread(values: list[float]) -> str:
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{spread}"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--rows", default="all", help=f"some of {', '.join(ROWS)}")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--out", default="runs/implicit")
    parser.add_argument("--cross", action="store_true", help="evaluate each θ at every depth of its kind")
    parser.add_argument("--print", action="store_true", help="only print what is finished")
    return parser.parse_args()


if __name__ == "__main__":
    main()
