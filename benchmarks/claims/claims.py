"""The claims of the five systems, each measured and judged: the table of claims in docs/results.md.

    python benchmarks/claims/claims.py                                     the quick set, then the short ones: hours
    python benchmarks/claims/claims.py --sets quick --seeds 0 --only depths-ode,depths-deq
    python benchmarks/claims/claims.py --print                             judges what is there, runs nothing

Each run goes to OUT/SET/ROW-SEED; one that is there is not made again, one that was broken off goes on. A claim is
judged on the seeds that all its rows have. The parts of a verdict are fixed here, before the runs: *holds* if all
parts do, *holds in part* if some do.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from potluck.experiment import run as runs
from potluck.experiment.config import Experiment
from potluck.experiment.run_reader import Run

ROOT = Path(__file__).parents[2]
PAGE, START, END = ROOT / "docs/results.md", "<!-- claims: made by `make claims` -->", "<!-- end of claims -->"
SETS = {"quick": "digits", "fashion": "fashion", "cifar": "cifar", "mnist": "mnist"}
SEEDS = {"quick": (0, 1, 2, 3, 4), "fashion": (0,), "cifar": (0, 1, 2), "mnist": (0, 1, 2)}
TIERS = ("phone", "tablet", "laptop")


def _tiers(option: str, *values: float | str) -> str:
    inner = ", ".join(f"{tier} = {value}" for tier, value in zip(TIERS, values, strict=True))
    return f"{option}={{ {inner} }}"


def _ode(*steps: int) -> tuple[str, ...]:
    return ("implicit", "method.name=fedode", "model.name=odenet-cifar-like", _tiers("method.steps", *steps))


def _deq(*steps: int, net: str = "deq-xs-like") -> tuple[str, ...]:
    return ("implicit", "method.name=feddeq", f"model.name={net}", _tiers("method.steps", *steps))


def _alone(net: str, *steps: int) -> tuple[str, ...]:
    return ("implicit", "method.name=local", f"model.name={net}", _tiers("model.steps", *steps))


def _on_ode(method: str) -> tuple[str, ...]:
    """A low-rank method on an ODE net: rank and depth by tier."""
    return ("implicit", f"method.name={method}", "model.name=odenet-cifar-like", _tiers("model.steps", 2, 4, 8))


def _fedavg(net: str) -> tuple[str, ...]:
    return ("implicit", "method.name=fedavg", f"model.name={net}")


HELD = "data.server_samples=200"
INT8 = ('wire.up=["int8", "zstd"]', 'wire.down=["int8", "zstd"]')
MODELS = 'models = { phone = "mlp", tablet = "lenet", laptop = "peer_nets:strided" }'
ROWS: dict[str, tuple[str, ...]] = {
    "ode": _ode(2, 4, 8),
    "ode-2": _ode(2, 2, 2),
    "ode-4": _ode(4, 4, 4),
    "ode-8": _ode(8, 8, 8),
    "ode-local": _alone("odenet-cifar-like", 2, 4, 8),
    "deq": _deq(4, 8, 16),
    "deq-4": _deq(4, 4, 4),
    "deq-8": _deq(8, 8, 8),
    "deq-16": _deq(16, 16, 16),
    "deq-local": _alone("deq-xs-like", 4, 8, 16),
    **{f"resnet{depth}": _fedavg(f"resnet{depth}") for depth in (8, 20, 32)},
    "deq-int8": (*_deq(4, 8, 16), *INT8),
    "ode-int8": (*_ode(2, 4, 8), *INT8),
    "ode-truncated": (*_on_ode("feddlr"), "method.down=weight", "method.p_server=0.999", "method.p_client=0.95", *INT8),
    "ode-lowrank": (*_on_ode("fedhm"), 'wire.up=["int8", "zstd"]'),
    "resnet8-int8": (*_fedavg("resnet8"), *INT8),
    "resnet20-int8": (*_fedavg("resnet20"), *INT8),
    **{
        f"fuse-{rule}": (*_deq(1, 2, 12), HELD, f"method.fusion={rule}")
        for rule in ("samples", "iterations", "residual", "calibrated")
    },
    "fedavg": ("lowrank", "method.name=fedavg"),
    "local": ("lowrank", "method.name=local"),
    "fedhm": ("lowrank", "method.name=fedhm", _tiers("method.rank_factor", 8, 4, 1)),
    "heterofl": ("lowrank", "method.name=heterofl", _tiers("method.width", 0.375, 0.5, 1.0)),
    "feddlr": ("lowrank", "method.name=feddlr"),
    "cnn": ("lowrank", "method.name=fedavg", "model.name=cnn"),
    "cnn-compact": ("lowrank", "method.name=fedhm", "model.name=cnn", _tiers("method.rank_factor", 8, 8, 8)),
    "peers-local": ("rotated", f'method={{ name = "local", {MODELS} }}'),
    "peers-fedmd": ("rotated", f'method={{ name = "fedmd", public_batch = 0, {MODELS} }}'),
    "peers-fedh2l": ("rotated", f'method={{ name = "fedh2l", protect = "both", {MODELS} }}'),
}
FRONTIER = (
    *("resnet20", "resnet20-int8", "resnet8", "resnet8-int8", "ode", "ode-int8"),
    *("ode-lowrank", "ode-truncated", "deq", "deq-int8"),
)
"""What benchmarks/claims/frontier.py sets side by side."""
Found = Mapping[str, Sequence[Run]]
Parts = Iterable[tuple[str, bool]]
"""(what was measured, in words; whether it is what the claim says)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A sentence, the rows that test it on which sets, and how the runs of those rows are judged."""

    text: str
    rows: Sequence[str]
    sets: Sequence[str]
    judge: Callable[[Found], Parts]


def main() -> None:
    """Runs what is missing, then judges and writes the table."""
    options = _options()
    claims = {name: CLAIMS[name] for name in (options.only.split(",") if options.only else CLAIMS)}
    chosen = options.sets.split(",")
    todo = list(dict.fromkeys(_todo(claims, chosen, options.seeds)))
    missing = [one for one in todo if not (place(options.out, *one) / "summary.json").is_file()]
    started, spent = time.perf_counter(), 0
    for number, one in enumerate([] if options.print else missing, 1):
        print(f"[{number} of {len(missing)}] {'/'.join(map(str, one))}", flush=True)
        play(options.out, *one)
        spent = time.perf_counter() - started
        left = spent / number * (len(missing) - number)
        print(f"    {spent / 60:.0f} min so far, about {left / 60:.0f} to go", flush=True)
    table = "\n".join(_table(claims, chosen, options.out))
    print(table)
    if not options.only:
        _write(table)


def _todo(claims: Mapping[str, Claim], sets: Sequence[str], seeds: str) -> Iterator[tuple[str, str, int]]:
    for set_name in sets:
        wanted = [int(seed) for seed in seeds.split(",")] if seeds else SEEDS[set_name]
        for seed, claim in itertools.product(wanted, claims.values()):
            if set_name in claim.sets:
                yield from ((set_name, row, seed) for row in claim.rows)


def place(out: Path, set_name: str, row: str, seed: int) -> Path:
    return out / set_name / f"{row}-{seed}"


def play(out: Path, set_name: str, row: str, seed: int) -> None:
    folder = place(out, set_name, row, seed)
    if (folder / "experiment.toml").is_file():
        runs.resume(folder)
        return
    family, *overrides = ROWS[row]
    recipe = f"{family}-{SETS[set_name]}"
    given = [f"name={row}-{seed}", f"seed={seed}", "engine.kind=inprocess", *overrides]
    experiment = Experiment.load(ROOT / f"recipes/{recipe}.toml", given)
    runs.run(experiment.model_copy(update={"methods": {}}), folder)


def _table(claims: Mapping[str, Claim], sets: Sequence[str], out: Path) -> Iterator[str]:
    yield "| claim | set, seeds | measured | verdict |"
    yield "|---|---|---|---|"
    for name, claim in claims.items():
        for set_name in claim.sets:
            if set_name not in sets:
                continue
            seeds = [
                seed
                for seed in SEEDS[set_name]
                if all((place(out, set_name, row, seed) / "summary.json").is_file() for row in claim.rows)
            ]
            found = {row: [Run.load(place(out, set_name, row, seed)) for seed in seeds] for row in claim.rows}
            parts = list(claim.judge(found)) if seeds else []
            told = "; ".join(f"{said} ({'yes' if right else '**no**'})" for said, right in parts) or "not run"
            yield f"| {claim.text} (`{name}`) | {set_name}, {len(seeds)} | {told} | {_verdict(parts)} |"


def _verdict(parts: Sequence[tuple[str, bool]]) -> str:
    if not parts:
        return "open"
    right = [good for _, good in parts]
    return "holds" if all(right) else "holds in part" if any(right) else "does not hold here"


def _write(table: str) -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert START in text, f"{PAGE} has lost its marks"
    before, _, rest = text.partition(START)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{START}\n{table}\n{END}{after}", encoding="utf-8")


def _points(runs_of: Sequence[Run], tier: str = "") -> list[float]:
    """Accuracy in points, of each seed: of a tier, or the mean over devices."""
    found = [one.summary["accuracy"] for one in runs_of]
    return [100 * (one["tiers"][tier] if tier else one["mean"]) for one in found]


def _gap(a: Sequence[Run], b: Sequence[Run], tier: str = "") -> float:
    """Mean over the seeds of a - b, in points."""
    return statistics.mean(x - y for x, y in zip(_points(a, tier), _points(b, tier), strict=True))


def _total(runs_of: Sequence[Run]) -> float:
    return statistics.mean(one.summary["bytes"]["total"] for one in runs_of)


def _depths(kind: str, counts: Sequence[int], found: Found) -> Parts:
    for tier, count in zip(TIERS, counts, strict=True):
        gap = _gap(found[kind], found[f"{kind}-{count}"], tier)
        yield f"at {count}: {gap:+.1f} points to the fleet of {count} (at least -1.5)", gap >= -1.5
    least = min(_gap(found[kind], found[f"{kind}-local"], tier) for tier in TIERS)
    yield f"{least:+.1f} points to devices alone, in the worst tier (at least +5)", least >= 5


def _smaller(found: Found) -> Parts:
    nets = [row for row in found if row.startswith("resnet")]
    best = max(statistics.mean(_points(found[row])) for row in nets)
    close = [row for row in nets if statistics.mean(_points(found[row])) >= best - 0.5]
    rival = min(close, key=lambda row: _total(found[row]))
    for row in ("ode", "deq"):
        saved, gap = 100 * (1 - _total(found[row]) / _total(found[rival])), _gap(found[row], found[rival])
        yield (
            f"{row}: {saved:.0f} % fewer bytes than {rival} at {gap:+.1f} points (90 %, -1.5)",
            saved >= 90 and gap >= -1.5,
        )


def _fusion(found: Found) -> Parts:
    for rule in ("iterations", "residual", "calibrated"):
        gaps = [x - y for x, y in zip(_points(found[f"fuse-{rule}"]), _points(found["fuse-samples"]), strict=True)]
        yield (
            f"{rule}: {statistics.mean(gaps):+.1f} points to samples, {min(gaps):+.1f} to {max(gaps):+.1f}",
            min(gaps) > 0,
        )


def _ranks(found: Found) -> Parts:
    gap = _gap(found["fedhm"], found["heterofl"], "phone")
    yield f"phones {gap:+.1f} points to HeteroFL's (at least +5)", gap >= 5
    least = min(_gap(found["fedhm"], found["local"], tier) for tier in TIERS)
    yield f"{least:+.1f} points to devices alone, in the worst tier (above 0)", least > 0


def _truncated(found: Found) -> Parts:
    share, gap = _total(found["feddlr"]) / _total(found["fedavg"]), _gap(found["feddlr"], found["fedavg"])
    yield f"{100 * share:.0f} % of FedAvg's bytes in total (at most 33 %)", share <= 1 / 3
    yield f"{gap:+.1f} points to FedAvg (at least -1)", gap >= -1


def _compact(found: Found) -> Parts:
    gap = _gap(found["cnn-compact"], found["cnn"])
    yield f"{gap:+.1f} points to the full net (at least -1)", gap >= -1
    for batch in (1, 64):
        ratio = _speed(found["cnn"][0], found["cnn-compact"][0], batch)
        yield f"{ratio:.2f} times as fast at batch {batch} (at least 1.5)", ratio >= 1.5


@torch.no_grad()
def _speed(full: Run, compact: Run, batch: int, calls: int = 60) -> float:
    """How many times as fast the compact net is: medians of calls in turns, one thread, both with channels last.

    That layout is the faster one for both: with channels first the pools, which both share, take most of the time.
    """
    torch.set_num_threads(1)
    x = torch.rand(batch, 1, 28, 28).contiguous(memory_format=torch.channels_last)
    nets = [one.model("phone").eval().to(memory_format=torch.channels_last) for one in (full, compact)]
    spent: tuple[list[float], list[float]] = ([], [])
    for _ in range(calls):
        for net, seconds in zip(nets, spent, strict=True):
            start = time.perf_counter()
            net(x)
            seconds.append(time.perf_counter() - start)
    return statistics.median(spent[0][10:]) / statistics.median(spent[1][10:])


def _ad_or_al(runs_of: Sequence[Run], key: str) -> float:
    return statistics.mean(100 * one.rounds[-1]["accuracy"][key]["mean"] for one in runs_of)


def _peers(found: Found) -> Parts:
    everywhere = {row: _ad_or_al(found[row], "ad") for row in found}
    own = {row: _ad_or_al(found[row], "al") for row in found}
    for other, least in (("local", 10.0), ("fedmd", 0.0)):
        gap = everywhere["peers-fedh2l"] - everywhere[f"peers-{other}"]
        yield f"AD {gap:+.1f} points to {other} (at least {least:+.0f})", gap >= least
    gap = own["peers-fedh2l"] - own["peers-local"]
    yield f"AL {gap:+.1f} points to local (at least -1)", gap >= -1


def _frontier(found: Found) -> Parts:
    pairs = list(zip(found["deq-int8"], found["resnet20"], strict=True))
    times = [_total([rival]) / bytes_to(cheap, rival.summary["accuracy"]["mean"] - 0.01)[1] for cheap, rival in pairs]
    rounds = [bytes_to(cheap, rival.summary["accuracy"]["mean"] - 0.01)[0] for cheap, rival in pairs]
    first = f"by the evaluation after round {'/'.join(map(str, rounds))}"
    yield (
        f"ResNet-20's last accuracy less 1 point for {min(times):.0f} times fewer bytes (at least 100), {first}",
        min(times) >= 100,
    )
    times_all, gap = _total(found["resnet20"]) / _total(found["deq-int8"]), _gap(found["deq-int8"], found["resnet20"])
    yield f"after all rounds {times_all:.0f} times fewer, at {gap:+.1f} points (at least -1)", gap >= -1


def bytes_to(one: Run, accuracy: float) -> tuple[int, float]:
    """The first evaluated round that reaches an accuracy, and the bytes until then; (0, infinite) if none does."""
    spent = one.summary["bytes"]["setup"]
    for line in one.rounds:
        spent += line["bytes"]["up"] + line["bytes"]["down"]
        if line.get("accuracy", {}).get("mean", 0.0) >= accuracy:
            return line["round"], spent
    return 0, math.inf


IMPLICIT = ("quick", "fashion", "cifar")
CLAIMS: dict[str, Claim] = {
    "depths-ode": Claim(
        text="FedODE: devices of unequal depth train one model, as good at each depth as a fleet of that depth",
        rows=("ode", "ode-2", "ode-4", "ode-8", "ode-local"),
        sets=IMPLICIT,
        judge=lambda found: _depths("ode", (2, 4, 8), found),
    ),
    "depths-deq": Claim(
        text="FedDEQ: the same for budgets of iterations",
        rows=("deq", "deq-4", "deq-8", "deq-16", "deq-local"),
        sets=IMPLICIT,
        judge=lambda found: _depths("deq", (4, 8, 16), found),
    ),
    "smaller": Claim(
        text="FedODE, FedDEQ: about 90 % less to send than residual nets",
        rows=("ode", "deq", "resnet8", "resnet20", "resnet32"),
        sets=IMPLICIT,
        judge=_smaller,
    ),
    "fusion": Claim(
        text="FedDEQ: fusion by quality beats weights by samples",
        rows=("fuse-samples", "fuse-iterations", "fuse-residual", "fuse-calibrated"),
        sets=("quick",),
        judge=_fusion,
    ),
    "ranks": Claim(
        text="FedHM: low-rank copies of unequal rank beat width slices of equal size",
        rows=("fedhm", "heterofl", "local"),
        sets=("quick", "cifar"),
        judge=_ranks,
    ),
    "dual-side": Claim(
        text="FedDLR: truncation on both sides saves two thirds of all bytes at equal accuracy",
        rows=("fedavg", "feddlr"),
        sets=IMPLICIT,
        judge=_truncated,
    ),
    "compact": Claim(
        text="Low rank: the compact `cnn` is faster at inference",
        rows=("cnn", "cnn-compact"),
        sets=("fashion",),
        judge=_compact,
    ),
    "peers": Claim(
        text="FedH2L: peers of any architecture learn the whole distribution without a server",
        rows=("peers-local", "peers-fedmd", "peers-fedh2l"),
        sets=("mnist",),
        judge=_peers,
    ),
    "frontier": Claim(
        text="Composed (equilibrium net, `int8`, `zstd`): 100 times fewer bytes at ResNet-20's accuracy",
        rows=("resnet20", "deq-int8"),
        sets=IMPLICIT,
        judge=_frontier,
    ),
}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default="quick" if "POTLUCK_DATA" not in os.environ else ",".join(SETS))
    parser.add_argument("--seeds", default="", help="instead of the set's own")
    parser.add_argument("--only", default="", help=f"claims: {', '.join(CLAIMS)}; the page is not rewritten")
    parser.add_argument("--out", type=Path, default=Path("runs/claims"))
    parser.add_argument("--print", action="store_true", help="judge what is there; run nothing")
    return parser.parse_args()


if __name__ == "__main__":
    main()
