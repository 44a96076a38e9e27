"""The rows of docs/results-lowrank.md: one line of JSON a run, and a table of medians.

    python benchmarks/claims/lowrank.py ranks  --seeds 0,1,2,3,4 --out runs/lowrank    unequal devices: FedHM, HeteroFL
    python benchmarks/claims/lowrank.py bytes  --seeds 0,1,2,3,4 --out runs/lowrank    compressed messages of one net
    python benchmarks/claims/lowrank.py ranks  --recipe recipes/lowrank-cifar.toml --seeds 0 --rows local,fedavg,fedhm
    python benchmarks/claims/lowrank.py table  --out runs/lowrank
    python benchmarks/claims/lowrank.py spectrum --out runs/lowrank    energy beyond the phones' ranks
    python benchmarks/claims/lowrank.py inference --out RUN    compact net beside full
    python benchmarks/claims/lowrank.py speed --out runs/fashion    what a phone deploys, beside the full net

A run that stands in OUT already is not made again.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from potluck.experiment import build, store
from potluck.experiment import run as runs
from potluck.experiment.config import Experiment
from potluck.experiment.problem import problem_of
from potluck.experiment.resolve import resolve
from potluck.experiment.run_reader import Run
from potluck.lowrank.factorise import compact, recover
from potluck.lowrank.layers import factorisable, ranks_by_factor
from potluck.lowrank.matrix import to_matrix
from potluck.nets.weights import load
from potluck.nets.zoo import count_parameters
from potluck.training.evaluate import evaluate

SAME_TRAINING = (
    "train.lr=0.05",
    "train.epochs=1",
    "train.batch_size=32",
    "train.weight_decay=0.0",
    "train.schedule=none",
)
WIDTHS = "{phone=%s,tablet=0.5,laptop=1.0}"
RANKS: dict[str, tuple[str, ...]] = {
    "local": ("method.name=local",),
    "fedavg": ("method.name=fedavg",),
    "heterofl": ("method.name=heterofl", f"method.width={WIDTHS % 0.375}"),
    "heterofl, more": ("method.name=heterofl", f"method.width={WIDTHS % 0.38}"),
    "heterofl, samples": ("method.name=heterofl", f"method.width={WIDTHS % 0.375}", "method.weighting=samples"),
    "heterofl, batch": ("method.name=heterofl", f"method.width={WIDTHS % 0.375}", "model.norm=batch"),
    "fedhm": (),
    "fedhm, batch_stat": ("model.norm=batch_stat",),
    "fedhm, replace, batch_stat": ("method.aggregation=replace", "model.norm=batch_stat"),
    "fedhm, replace": ("method.aggregation=replace",),
    "fedhm, delta alone": ("method.initial=full", "method.retention=1.0", "method.weighting=samples_size"),
    "fedhm, retention 1": ("method.retention=1.0",),
    "fedhm, rank_partitioned": ("method.aggregation=rank_partitioned",),
    "fedhm, faithful": ("method.profile=faithful", *SAME_TRAINING),
    "fedhm, faithful, the recipe's training": ("method.profile=faithful",),
    "fedhm, faithful, own training": ("method.profile=faithful",),
}
UPDATE = "method.send=update"
BYTES: dict[str, tuple[str, ...]] = {
    "fedavg": ("method.name=fedavg",),
    "fedavg, int8 up": ("method.name=fedavg", UPDATE, 'wire.up=["int8"]'),
    "fedavg, topk 0.01": ("method.name=fedavg", UPDATE, "wire.up=[{topk=0.01}]"),
    "fedavg, topk 0.05": ("method.name=fedavg", UPDATE, "wire.up=[{topk=0.05}]"),
    "fedavg, topk 0.15": ("method.name=fedavg", UPDATE, "wire.up=[{topk=0.15}]"),
    "fedavg, topk 0.05 int8": ("method.name=fedavg", UPDATE, 'wire.up=[{topk=0.05},"int8"]'),
    "feddlr": ("method.name=feddlr",),
    "feddlr, p 0.9": ("method.name=feddlr", "method.p_client=0.9", "method.p_server=0.9"),
    "feddlr, p 0.5": ("method.name=feddlr", "method.p_client=0.5", "method.p_server=0.5"),
    "feddlr, no feedback": ("method.name=feddlr", "method.error_feedback=false"),
    "feddlr, two dense rounds": ("method.name=feddlr", "method.dense_rounds=2"),
    "feddlr, weights down": ("method.name=feddlr", "method.down=weight", "method.p_server=0.999"),
    "feddlr, int8 up": ("method.name=feddlr", 'wire.up=["int8"]'),
    "feddlr, half the devices": ("method.name=feddlr", "fleet.participation=0.5"),
    "fedavg, half the devices": ("method.name=fedavg", "fleet.participation=0.5"),
    "feddlr, weight 0.95": ("method.name=feddlr", "method.profile=faithful", *SAME_TRAINING),
    "feddlr, weight 0.999": (
        "method.name=feddlr",
        "method.profile=faithful",
        "method.p_client=0.999",
        "method.p_server=0.999",
        *SAME_TRAINING,
    ),
}
SETS = {"ranks": RANKS, "bytes": BYTES}


def play(recipe: Path, row: str, overrides: Sequence[str], seed: int, out: Path) -> dict[str, Any]:
    """Runs one row with one seed, unless it stands in ``out``; returns its line."""
    name = "".join(letter if letter.isalnum() else "-" for letter in row)
    place = out / recipe.stem / f"{name}-{seed}"
    if not (place / "summary.json").exists():
        experiment = Experiment.load(recipe, [f"seed={seed}", *overrides])
        methods = {} if "method.name" in " ".join(overrides) else experiment.methods.get(experiment.method["name"], {})
        chosen = experiment.model_copy(update={"method": {**methods, **experiment.method}, "methods": {}})
        runs.run(chosen, place)
    found = Run.load(place)
    summary = found.summary
    return {
        "recipe": recipe.stem,
        "row": row,
        "seed": seed,
        "rounds": summary["rounds"],
        "tiers": summary["accuracy"]["tiers"],
        "mean": summary["accuracy"]["mean"],
        "worst": summary["accuracy"]["worst"],
        "parameters": summary["parameters"],
        "bytes": summary["bytes"],
        "simulated_seconds": summary["simulated_seconds"],
        "wall_seconds": summary["wall_seconds"],
        "by_round": [[line["bytes"]["up"], line["bytes"]["down"]] for line in found.rounds],
        "notes": found.rounds[-1]["notes"],
        "parts": found.rounds[-1]["parts"],
    }


def table(out: Path) -> None:
    """Prints the medians over seeds of every row."""
    lines = [json.loads(line) for line in (out / "lines.jsonl").read_text().splitlines()]
    groups: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for line in lines:
        groups.setdefault((line["recipe"], line["row"]), {})[line["seed"]] = line
    print(
        "| recipe | row | seeds | phone | tablet | laptop | spread of phone | MB up | MB down | simulated s | wall s |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for (recipe, row), by_seed in groups.items():
        found = [*by_seed.values()]
        tiers = [
            statistics.median(line["tiers"][tier] for line in found) * 100 for tier in ("phone", "tablet", "laptop")
        ]
        phones = [line["tiers"]["phone"] * 100 for line in found]
        up, down = (statistics.median(line["bytes"][way] for line in found) / 1e6 for way in ("up", "down"))
        seconds = [statistics.median(line[key] for line in found) for key in ("simulated_seconds", "wall_seconds")]
        figures = [f"{value:.1f}" for value in tiers] + [f"{min(phones):.1f} to {max(phones):.1f}"]
        figures += [f"{up:.2f}", f"{down:.2f}", *(f"{value:.0f}" for value in seconds)]
        print(f"| {recipe} | {row} | {len(found)} | {' | '.join(figures)} |")


def spectrum(out: Path) -> None:
    """Prints the share of the full weights' energy beyond the rank of factor 8, as median over the runs of a row."""
    shares: dict[str, list[float]] = {}
    for place in sorted(out.glob("*/*")):
        if not (place / "summary.json").exists() or place.name.startswith(("local", "heterofl", "feddlr")):
            continue
        net, lost, total = Run.load(place).model("laptop"), 0.0, 0.0
        layers = factorisable(net)
        for layer, rank in ranks_by_factor(layers, 8).items():
            energy_K = (
                torch.linalg.svdvals(to_matrix(net.get_parameter(f"{layer}.weight").detach(), "ok_ik"))
                .double()
                .square()
            )
            lost, total = lost + float(energy_K[rank:].sum()), total + float(energy_K.sum())
        shares.setdefault(f"{place.parent.name}/{place.name.rpartition('-')[0]}", []).append(lost / total)
    for row, found in shares.items():
        print(f"| {row} | {len(found)} | {statistics.median(found):.4f} |")


def inference(place: Path) -> None:
    """Prints, for the full weights of a FedDLR run and for compact nets of less and less energy: accuracy and speed."""
    found = Run.load(place)
    resolved = resolve(found.experiment)
    shares = build.make_shares(resolved)
    state = store.read_checkpoint(place).state
    full = build.make_tier_nets(resolved, problem_of(resolved, shares))("phone").eval()
    load(full, {name: node["dense"] for name, node in state["weights"].items()})
    torch.set_num_threads(1)
    print("| energy | parameters | accuracy | ms at batch 1 | ms at batch 64 | times as fast |")
    print("|---|---|---|---|---|---|")
    for energy in (1.0, 0.999, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3):
        net = compact(full, energy).eval() if energy < 1 else full
        score = evaluate(net, shares.test)
        right = float(score.right.sum()) / len(shares.test)
        times = [interleaved(full, net, shares.test.take(torch.arange(batch)).x) for batch in (1, 64)]
        faster = ", ".join(f"{whole / small:.2f}" for whole, small in times)
        figures = " | ".join(f"{small:.2f}" for _, small in times)
        print(f"| {energy:g} | {count_parameters(net):,} | {right:.2%} | {figures} | {faster} |")


def speed(place: Path) -> None:
    """Prints how much faster the phones' net is than the same net with its low-rank layers multiplied out."""
    found = Run.load(place)
    small, test = found.model("phone").eval(), build.make_shares(resolve(found.experiment)).test
    full = recover(small).eval()
    torch.set_num_threads(1)
    print(f"accuracy {found.summary['accuracy']['tiers']['phone']:.2%}, parameters {count_parameters(small):,}")
    print("| layout | batch | ms full | ms compact | times as fast |")
    print("|---|---|---|---|---|")
    for layout in (torch.contiguous_format, torch.channels_last):
        nets = [copy.deepcopy(net).to(memory_format=layout) for net in (full, small)]  # type: ignore[call-overload]
        for batch in (1, 64):
            x_B = test.take(torch.arange(batch)).x.contiguous(memory_format=layout)
            whole, compact_ms = interleaved(nets[0], nets[1], x_B)
            print(f"| {layout} | {batch} | {whole:.2f} | {compact_ms:.2f} | {whole / compact_ms:.2f} |")


def interleaved(full: nn.Module, small: nn.Module, x_B: Tensor) -> tuple[float, float]:
    """Median milliseconds of both nets, 30 calls each, in turns."""
    seconds: tuple[list[float], list[float]] = ([], [])
    with torch.inference_mode():
        for _ in range(30):
            for net, kept in zip((full, small), seconds, strict=True):
                start = time.perf_counter()
                net(x_B)
                kept.append(time.perf_counter() - start)
    return statistics.median(seconds[0]) * 1e3, statistics.median(seconds[1]) * 1e3


READERS = {"spectrum": spectrum, "inference": inference, "speed": speed}


def main() -> None:
    """Runs the rows asked for, seed by seed, so that what stands is always comparable."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*SETS, *READERS, "table"])
    parser.add_argument("--recipe", type=Path, default=Path("recipes/lowrank-digits.toml"))
    parser.add_argument("--rows", default="")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--out", type=Path, default=Path("runs/lowrank"))
    given = parser.parse_args()
    if given.what in READERS:
        READERS[given.what](given.out)
        return
    if given.what != "table":
        rows = SETS[given.what]
        chosen = {name: rows[name] for name in given.rows.split(";")} if given.rows else rows
        for seed in map(int, given.seeds.split(",")):
            for row, overrides in chosen.items():
                line = play(given.recipe, row, overrides, seed, given.out)
                with (given.out / "lines.jsonl").open("a") as lines:
                    lines.write(json.dumps(line) + "\n")
                print(f"{row}, seed {seed}: {line['tiers']}, {line['bytes']}, {line['wall_seconds']:.0f} s", flush=True)
    table(given.out)


if __name__ == "__main__":
    main()
