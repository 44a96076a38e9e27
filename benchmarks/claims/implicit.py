"""Evidence for nets of implicit depth: fleets of mixed depth against fleets of one depth, against devices alone.

    python benchmarks/claims/implicit.py recipes/implicit-digits.toml --rows ode,ode-2 --seeds 0,1,2 --out runs/implicit

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

from claims import ROWS as CLAIMED
from claims import TIERS
from potluck.experiment import run as runs
from potluck.experiment import store
from potluck.experiment.config import Experiment
from potluck.experiment.prepare import prepare
from potluck.experiment.run_reader import Run
from potluck.training.evaluate import evaluate

DEPTHS = {"ode": (1, 2, 4, 8, 16), "deq": (1, 2, 4, 8, 12, 16, 32)}
ODE, DEQ, UNIT_STEP = CLAIMED["ode"], CLAIMED["deq"], "method.step=unit_step"
ROWS: dict[str, tuple[str, ...]] = {
    **{name: row for name, row in CLAIMED.items() if row[0] == "implicit"},
    "ode-unit_step": (*ODE, UNIT_STEP),
    "ode-unit_step-2": (*CLAIMED["ode-2"], UNIT_STEP),
    "ode-unit_step-8": (*CLAIMED["ode-8"], UNIT_STEP),
    "ode-unit_step-global": (*ODE, UNIT_STEP, "method.norm_groups=global"),
    "ode-global": (*ODE, "method.norm_groups=global"),
    "ode-learned": (*ODE, "method.step=learned"),
    "ode-random": (*ODE, "method.random_steps=true"),
    "ode-faithful": (*ODE, "method.profile=faithful"),
    "deq-plain_loss": (*DEQ, "method.fixed_point_loss=0.0"),
    "deq-random": (*DEQ, "method.random_steps=true"),
    "deq-faithful": (*DEQ, "method.profile=faithful"),
    "resnet44": (*CLAIMED["resnet20"], "model.name=resnet44"),
    "resnet56": (*CLAIMED["resnet20"], "model.name=resnet56"),
    "resnet20-local": (*CLAIMED["resnet20"], "method.name=local"),
}
"""The rows of claims.py on implicit nets, and what varies them. A row's first word names its recipe's family."""


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
    given = [f"name={row}-{seed}", f"seed={seed}", "engine.kind=inprocess", *ROWS[row][1:]]
    return runs.run(Experiment.load(recipe, given).model_copy(update={"methods": {}}), path)


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
    ready, state = prepare(found.experiment), store.read_checkpoint(found.path).state
    device, method = ready.federation.fleet.devices[0], ready.federation.method
    accuracies = []
    for depth in depths:
        net = dataclasses.replace(method, steps=dict.fromkeys(TIERS, depth)).model(state, None, device)
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
