"""The proof of a refactoring: the same ``state_sha256`` of every method in two checkouts, in-process and in the pool.

    python benchmarks/refactoring/same_state.py BEFORE [AFTER] [--only TEXT] [--jobs 2] [--cache FILE] [--out FILE]

BEFORE and AFTER are checkouts (AFTER is this one by default). Only what both understand is used: the command ``run``,
the experiment file and summary.json. Each row of ``VARIANTS`` takes a method through a part of its code. ``--cache``
keeps what BEFORE gave, by its commit. The exit code is 1 where two states differ or a run fails.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import tomli_w

HERE = Path(__file__).parents[2]
MAIN = "from potluck.cli import main; main()"
ENGINES = ("inprocess", "pool")
TIERS = [
    {"name": "small", "devices": 2, "gflops": 1.0, "uplink_mbps": 1.0, "availability": 0.9},
    {"name": "middle", "devices": 1, "gflops": 4.0},
    {"name": "large", "devices": 2, "gflops": 10.0},
]
BASE: dict[str, Any] = {
    "name": "same",
    "rounds": 3,
    "seed": 7,
    "data": {"source": "synthetic:260,1,8,8", "public": 0.1, "server_samples": 20},
    "model": {"name": "resnet8"},
    "train": {"batch_size": 16},
    "fleet": {"tier": TIERS, "participation": 0.75},
}
ODE, DEQ = {"model.name": "odenet-cifar-like"}, {"model.name": "deq-xs-like"}
FEW = {"small": 1, "middle": 2, "large": 3}
ROTATED = {"kind": "domains", "rotate": [0, 60, 120, 180, 240], "samples": 30}
NETS = {"small": "mlp", "middle": "lenet", "large": "resnet8"}
VARIANTS: dict[str, dict[str, Any]] = {
    "local": {"method.name": "local"},
    "local, a net a tier": {"method.name": "local", "method.models": NETS},
    "fedavg": {"method.name": "fedavg"},
    "fedavg, mlp": {"method.name": "fedavg", "model.name": "mlp", "train.epochs": 3},
    "fedavg, cnn, augmented, adam": {
        "method.name": "fedavg",
        "model.name": "cnn",
        "data.augment": "crop-flip",
        "train.optimiser": "adam",
        "train.lr": 0.001,
    },
    "fedavg, updates, topk int8 zstd": {
        "method.name": "fedavg",
        "method.send": "update",
        "method.server_lr": 0.7,
        "wire.up": [{"topk": 0.1, "decay": 0.9}, "int8", "zstd"],
        "wire.down": ["float16"],
    },
    "fedavg, uniform, bfloat16": {
        "method.name": "fedavg",
        "method.weighting": "uniform",
        "wire.up": ["bfloat16"],
        "wire.down": ["zstd"],
    },
    "fedavg, an ODE net at its depths": {"method.name": "fedavg", **ODE, "model.steps": FEW},
    "fedavg, an equilibrium net at its depths": {"method.name": "fedavg", **DEQ, "model.steps": FEW},
    "fedavg, own classes": {"method.name": "fedavg", "data.partition": {"kind": "pathological", "classes": 3}},
    "fedavg, rotated": {"method.name": "fedavg", "data.partition": ROTATED},
    "fedavg, batch norm, cosine, clipped": {
        "method.name": "fedavg",
        "model.norm": "batch",
        "train.schedule": "cosine",
        "train.clip_norm": 1.0,
        "train.weight_decay": 1e-4,
    },
    "fedprox, epochs a tier": {"method.name": "fedprox", "method.mu": 0.1, "train.epochs": FEW},
    "heterofl": {"method.name": "heterofl"},
    "heterofl, batch norm": {"method.name": "heterofl", "model.norm": "batch"},
    "heterofl, mlp, by samples": {"method.name": "heterofl", "model.name": "mlp", "method.weighting": "samples"},
    "fedhm": {"method.name": "fedhm"},
    "fedhm, replace": {"method.name": "fedhm", "method.aggregation": "replace", "method.mask_labels": True},
    "fedhm, rank-partitioned": {"method.name": "fedhm", "method.aggregation": "rank_partitioned"},
    "fedhm, faithful": {"method.name": "fedhm", "method.profile": "faithful", "train.epochs": 1},
    "feddlr": {"method.name": "feddlr"},
    "feddlr, weights": {"method.name": "feddlr", "method.profile": "faithful"},
    "feddlr, full down": {"method.name": "feddlr", "method.down": "weight", "method.p_server": 0.999},
    "fedode": {"method.name": "fedode", **ODE, "method.steps": FEW},
    "fedode, faithful": {"method.name": "fedode", "model.name": "odenet-cifar-like", "method.profile": "faithful"},
    "fedode, random steps, heun": {
        "method.name": "fedode",
        **ODE,
        "method.steps": FEW,
        "method.random_steps": True,
        "method.solver": "heun",
        "method.norm_groups": "global",
    },
    "fedode, learned steps": {"method.name": "fedode", **ODE, "method.steps": FEW, "method.step": "learned"},
    "feddeq": {"method.name": "feddeq", **DEQ},
    "feddeq, faithful, calibrated": {"method.name": "feddeq", **DEQ, "method.profile": "faithful"},
    "feddeq, random steps, penalty": {
        "method.name": "feddeq",
        **DEQ,
        "method.random_steps": True,
        "method.jacobian_weight": 0.1,
        "method.fusion": "residual",
    },
    "fedmd": {"method.name": "fedmd", "method.models": NETS},
    "fedmd, posteriors": {
        "method.name": "fedmd",
        "method.models": NETS,
        "method.scores": "posteriors",
        "method.digest_loss": "kl",
        "method.weighting": "sharpen",
    },
    "fedh2l": {"method.name": "fedh2l", "method.models": NETS},
    "fedh2l, relayed": {"method.name": "fedh2l", "method.models": NETS, "engine.relay": True},
    "fedh2l, both protected, stale": {
        "method.name": "fedh2l",
        "model.name": "mlp",
        "method.protect": "both",
        "method.stale_rounds": 2,
        "engine.relay": True,
    },
    "fedh2l, a batch a round, onehot": {
        "method.name": "fedh2l",
        "model.name": "mlp",
        "method.schedule": "batch",
        "method.posts": "onehot",
    },
}


def experiment(variant: Mapping[str, Any], engine: str) -> dict[str, Any]:
    """The experiment of a variant, as a table."""
    table = copy.deepcopy(BASE)
    for key, value in {**variant, "engine.kind": engine, "engine.workers": 2}.items():
        section, _, name = key.partition(".")
        table.setdefault(section, {})[name] = value
    return table


def state(checkout: Path, variant: Mapping[str, Any], engine: str) -> str:
    """The ``state_sha256`` that a checkout gives, or "failed: ..."."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "same.toml").write_text(tomli_w.dumps(experiment(variant, engine)))
        done = subprocess.run(
            [sys.executable, "-c", MAIN, "run", "same.toml", "--out", "run", "--quiet"],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(checkout / "src")},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            return f"failed: {(done.stderr.strip().splitlines() or ['without a word'])[-1]}"
        return str(json.loads((folder / "run/summary.json").read_text())["state_sha256"])


def commit_of(checkout: Path) -> str:
    """The commit of a checkout; "changed" marks one that holds more."""
    told = [
        subprocess.run(["git", "-C", str(checkout), *words], capture_output=True, text=True, check=False).stdout.strip()
        for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "src"))
    ]
    return told[0] + (" changed" if told[1] else "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path, nargs="?", default=HERE)
    parser.add_argument("--only", default="", help="rows whose name holds this text")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--cache", type=Path, help="what BEFORE gave, to be read and written")
    parser.add_argument("--out", type=Path, help="the table as JSON")
    given = parser.parse_args()
    checkouts = {"before": given.before.resolve(), "after": given.after.resolve()}
    known: dict[str, str] = {}
    commit = commit_of(checkouts["before"])
    if given.cache and given.cache.exists():
        held = json.loads(given.cache.read_text())
        known = held["states"] if held["commit"] == commit else {}
    cells = [
        (name, engine, side) for name in VARIANTS if given.only in name for engine in ENGINES for side in checkouts
    ]

    def one(cell: tuple[str, str, str]) -> str:
        name, engine, side = cell
        key = json.dumps(experiment(VARIANTS[name], engine), sort_keys=True)
        if side == "before" and key in known:
            return known[key]
        found = state(checkouts[side], VARIANTS[name], engine)
        if side == "before" and not found.startswith("failed"):
            known[key] = found
        return found

    with ThreadPoolExecutor(given.jobs) as jobs:
        found = dict(zip(cells, jobs.map(one, cells), strict=True))
    if given.cache:
        given.cache.write_text(json.dumps({"commit": commit, "states": known}, indent=1))
    rows = []
    print(f"before {commit}\nafter  {commit_of(checkouts['after'])}\n")
    print(f"{'variant':42} {'engine':10} {'before':14} {'after':14} equal")
    for name, engine in dict.fromkeys(cell[:2] for cell in cells):
        before, after = (found[name, engine, side] for side in checkouts)
        equal = before == after and not before.startswith("failed")
        rows.append({"variant": name, "engine": engine, "before": before, "after": after, "equal": equal})
        print(f"{name:42} {engine:10} {before[:12]:14} {after[:12]:14} {'yes' if equal else 'NO'}")
        for told in (before, after):
            if told.startswith("failed"):
                print(f"    {told}")
    odd = sum(not row["equal"] for row in rows)
    print(f"\n{len(rows) - odd} of {len(rows)} equal")
    if given.out:
        given.out.write_text(json.dumps({"before": commit, "rows": rows}, indent=1) + "\n")
    return int(odd > 0)


if __name__ == "__main__":
    sys.exit(main())
