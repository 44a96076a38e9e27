"""docs/performance.md, written from the results: tables, ratios, targets, and plots of growth with fitted exponents.

What is said about them by hand stands in remarks.md, and comes last.
"""

from __future__ import annotations

import math
import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from measure import Results

Found = dict[str, list[dict[str, Any]]]
HEAD = """# Performance

Written by `make bench` (benchmarks/speed/contest). Every contestant does the same work, from the same first weights, on
the same shares of the same data, in processes of its own and in turn (A B A B). A round is what lies between the ends
of two rounds: start-up and evaluation stand apart. Memory is the largest sum of resident memory over a contestant's
processes, so that shared pages count in each. Nothing of this has been measured on a GPU: the code paths for CUDA (one
resident net a worker and tier, several workers on a GPU, bf16 autocast by `[train] bf16`) are **untested**.
"""


def median_seconds(results: Sequence[Mapping[str, Any]]) -> float:
    """The median over all rounds of all turns."""
    return statistics.median([value for result in results for value in result["seconds"]])


def row(cells: Sequence[object]) -> str:
    """A row of a table."""
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def grid(head: Sequence[object], rows: Sequence[Sequence[object]]) -> list[str]:
    """A table."""
    return [row(head), row(["---"] * len(head)), *[row(cells) for cells in rows], ""]


def verdict(told: str, value: float | None, holds: Callable[[float], bool]) -> tuple[str, str, str]:
    """A row of the targets."""
    return (told, "not measured", "") if value is None else (told, f"{value:.2f}", "yes" if holds(value) else "**no**")


def ratio(found: Found, one: str, *others: str) -> float | None:
    """Seconds of ``one`` over those of the fastest of ``others``."""
    there = [median_seconds(found[name]) for name in others if name in found]
    return median_seconds(found[one]) / min(there) if there and one in found else None


def contest(found: Found, title: str, base: str) -> list[str]:
    """The table of B1 or B3."""
    if not found:
        return []
    unit = median_seconds(found[base]) if base in found else math.nan
    rows = []
    for name, results in found.items():
        seconds, scores = median_seconds(results), [result["accuracy"] for result in results]
        startup = statistics.median([result["startup"] for result in results])
        peak = max(result["peak_bytes"] for result in results) / 1e6
        spread = f"{statistics.mean(scores):.3f} ({min(scores):.3f} to {max(scores):.3f})"
        rows.append((name, f"{seconds:.3f}", f"{seconds / unit:.2f}", f"{startup:.1f}", f"{peak:,.0f}", spread))
    versions = {key: value for results in found.values() for key, value in results[-1]["versions"].items()}
    told = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    turns = max(len(results) for results in found.values())
    head = ("", "seconds a round", f"of the {base}", "start-up, s", "peak MB", "accuracy, mean of the turns (range)")
    return [f"## {title}", "", f"{told}; {turns} turn(s).", "", *grid(head, rows)]


def targets(results: Results) -> list[str]:
    """What was asked, and whether it is met."""
    b1, b2, b3, b6 = (results.of(name) for name in ("B1", "B2", "B3", "B6"))
    pfl = ("pfl, 1 process of 2 threads", "pfl, 2 processes")
    fast = [name for name in ("Potluck, in-process", "Potluck, pool") if name in b3]
    best = min(fast, key=lambda name: median_seconds(b3[name])) if fast else ""
    rows = [
        verdict(
            "B1 fp32 / Flower + Ray, at most 0.35", ratio(b1, "Potluck, pool", "Flower + Ray"), lambda v: v <= 0.35
        ),
        verdict("B1 fp32 / pfl of one process, at most 0.70", ratio(b1, "Potluck, pool", pfl[0]), lambda v: v <= 0.7),
        verdict("B1 fp32 / pfl of two processes, at most 0.70", ratio(b1, "Potluck, pool", pfl[1]), lambda v: v <= 0.7),
        verdict(
            "B1 fp32 / bare loop of 2 threads, at most 0.70",
            ratio(b1, "Potluck, pool", "bare loop, 2 threads"),
            lambda v: v <= 0.7,
        ),
        verdict("B1 bf16 / pfl, at most 0.45", ratio(b1, "Potluck, pool, bf16", *pfl), lambda v: v <= 0.45),
        verdict("B2 ms a device at 4 kB, below 1", _ms(b2, "4 kB, 100", 100), lambda v: v < 1),
        verdict(
            "B3 devices a second over Flower + Ray, at least 10",
            _inverse(ratio(b3, best, "Flower + Ray")),
            lambda v: v >= 10,
        ),
        verdict("B3 devices a second over pfl, at least 3", _inverse(ratio(b3, best, *pfl)), lambda v: v >= 3),
    ]
    rows += parts_targets(results)
    if "1000 of 10000" in b6:
        gib = max(result["peak_bytes"] for result in b6["1000 of 10000"]) / 2**30
        rows.append(verdict("B6 GiB with 10,000 registered, below 2", gib, lambda v: v < 2))
        rows.append(
            verdict(
                "B6 time with 10,000 registered over 1,000, at most 1.1",
                ratio(b6, "1000 of 10000", "1000 of 1000"),
                lambda v: v <= 1.1,
            )
        )
    return ["## Targets", "", *grid(("target", "measured", "met"), rows)]


def parts_targets(results: Results) -> list[tuple[str, str, str]]:
    """Those of B5."""
    found = results.of("B5").get("parts")
    if not found:
        return []
    ms = found[-1]["ms"]
    theirs = [ms[name] for name in ("torchdeq, sliced", "torchdeq, indexing") if name in ms]
    frames = (ms["encode"] + ms["decode and check"]) / ms["copy of 20 MB"]
    return [
        verdict("B2 encode + decode of 20 MB over a copy, at most 3", frames, lambda v: v <= 3),
        verdict(
            "B5 phantom over torchdeq's fastest that watches its steps, at most 1",
            ms["phantom"] / min(theirs) if theirs else None,
            lambda v: v <= 1,
        ),
        verdict(
            "B5 phantom over torchdeq's loop that does not (ours stops what is not finite), at most 1",
            ms["phantom"] / ms["torchdeq, unwatched"] if theirs else None,
            lambda v: v <= 1,
        ),
        verdict("B5 merge over add_, at most 8", ms["merge of 20 MB"] / ms["add_ of 20 MB"], lambda v: v <= 8),
    ]


def _ms(found: Found, name: str, devices: int) -> float | None:
    return 1e3 * median_seconds(found[name]) / devices if name in found else None


def _inverse(value: float | None) -> float | None:
    return None if value is None else 1 / value


def idle(found: Found, title: str) -> list[str]:
    """B2 and B6: what a round costs when devices do nothing, or next to nothing."""
    rows = []
    for name, results in found.items():
        devices = int(name.partition(" of ")[0] if " of " in name else name.rpartition(", ")[2])
        seconds, last = median_seconds(results), results[-1]
        size = f"{last['folder_bytes'] / 1e6:.1f}"
        rows.append(
            (name, f"{seconds:.3f}", f"{1e3 * seconds / devices:.2f}", f"{last['peak_bytes'] / 1e6:,.0f}", size)
        )
    head = ("", "seconds a round", "ms a device", "peak MB", "run folder, MB")
    return [f"## {title}", "", *grid(head, rows)] if rows else []


def methods(found: Found) -> list[str]:
    """B4."""
    if not found:
        return []
    names = list(next(iter(found.values()))[-1]["parts"])
    rows = [
        (
            name,
            *[f"{results[-1]['parts'][part]:.3f}" for part in names],
            *[f"{results[-1]['bytes'][key] / 1e3:,.0f}" for key in ("up", "down")],
        )
        for name, results in found.items()
    ]
    text = "Digits, 12 devices in three tiers, in-process, one thread; medians of the rounds, in seconds."
    return ["## B4: every method, by part", "", text, "", *grid(("method", *names, "kB up", "kB down"), rows)]


def parts(found: Found) -> list[str]:
    """B5."""
    if "parts" not in found:
        return []
    told = found["parts"][-1]
    rows = [(name, f"{value:.2f}") for name, value in told["ms"].items() if "evaluations" not in name]
    versions = ", ".join(f"{name} {version}" for name, version in sorted(told["versions"].items()))
    return [
        "## B5: parts",
        "",
        f"{versions}; one thread, medians of CPU milliseconds, in turn; equal evaluations.",
        "",
        *grid(("", "ms"), rows),
    ]


def exponent(points: Sequence[tuple[float, float]]) -> float:
    """The slope of the least-squares line through the logarithms."""
    logs = [(math.log(x), math.log(y)) for x, y in points]
    mean_x, mean_y = (statistics.mean(values) for values in zip(*logs, strict=True))
    return sum((x - mean_x) * (y - mean_y) for x, y in logs) / sum((x - mean_x) ** 2 for x, _ in logs)


def growth(results: Results, folder: Path) -> list[str]:
    """Plots of time and memory against devices, model size and depth, each with its fitted exponent."""
    series: dict[str, list[tuple[float, float, float]]] = {}
    for name, found in results.of("B2").items():
        label, _, count = name.rpartition(", ")
        series.setdefault(f"devices, {label}", []).append(
            (float(count), median_seconds(found), found[-1]["peak_bytes"])
        )
    for name, found in results.of("growth").items():
        kind = {"steps": "depth (ODE steps)", "width": "parameters"}[name.partition(" ")[0]]
        series.setdefault(kind, []).append((found[-1]["size"], median_seconds(found), found[-1]["peak_bytes"]))
    rows, drawn = [], []
    for name, points in series.items():
        points.sort()
        if len(points) > 1:
            time, memory = exponent([(x, t) for x, t, _ in points]), exponent([(x, m) for x, _, m in points])
            rows.append((name, ", ".join(f"{x:,.0f}" for x, _, _ in points), f"{time:.2f}", f"{memory:.2f}"))
            drawn.append((f"{name}: time^{time:.2f}", [(x, t) for x, t, _ in points]))
            drawn.append((f"{name}: memory^{memory:.2f}", [(x, m / 1e9) for x, _, m in points]))
    if not rows:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "growth.svg").write_text(svg(drawn), encoding="utf-8")
    text = "Exponents of a fitted power law: 1 is linear. Memory includes PyTorch itself, which is most of it."
    lines = ["## Growth of a round's cost", "", text, "", *grid(("against", "at", "time", "memory"), rows)]
    return [*lines, "![time and memory per round](figures/growth.svg)", ""]


def svg(series: Sequence[tuple[str, Sequence[tuple[float, float]]]]) -> str:
    """Small log-log plots side by side, a panel a series."""
    panels, width, height, columns = [], 250, 190, 4
    for number, (name, points) in enumerate(series):
        left, top = 20 + number % columns * width, 30 + number // columns * height
        xs, ys = ([math.log10(point[axis]) for point in points] for axis in (0, 1))
        low, span = min(ys) - 0.5, max(1.0, max(ys) - min(ys) + 1.0)
        places = [
            (left + 200 * (x - xs[0]) / (xs[-1] - xs[0]), top + 130 - 130 * (y - low) / span)
            for x, y in zip(xs, ys, strict=True)
        ]
        line = " ".join(f"{x:.0f},{y:.0f}" for x, y in places)
        dots = "".join(f'<circle cx="{x:.0f}" cy="{y:.0f}" r="3"/>' for x, y in places)
        unit = "GB" if "memory" in name else "s"
        ends = f"{points[0][1]:.3g} to {points[-1][1]:.3g} {unit}"
        curve = f'<polyline points="{line}" fill="none" stroke="#246"/>{dots}'
        panels.append(
            f'<g><text x="{left}" y="{top - 8}">{name}</text>{curve}<text x="{left}" y="{top + 146}">{ends}</text></g>'
        )
    size = f'width="{columns * width + 30}" height="{(len(series) + columns - 1) // columns * height + 30}"'
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-size="11" font-family="sans-serif">'
    return f"{opening}{''.join(panels)}</svg>\n"


def written(results: Results, commit: str, note: str) -> str:
    """The whole page."""
    every = results.read()
    loads = sorted(result["load"] for result in every)
    told = f"Commit {commit}, {platform.machine()}, {os.cpu_count()} cores."
    if loads:
        told += f" Load average while measuring: {loads[0]:.1f} to {loads[-1]:.1f}."
    good = {(found["bench"], found["name"], found["turn"]) for found in every if "error" not in found}
    failed = [
        f"- {found['bench']} {found['name']}, turn {found['turn']}: {found['error']}"
        for found in every
        if "error" in found and (found["bench"], found["name"], found["turn"]) not in good
    ]
    lines = [HEAD, told, *([note] if note else []), "", *targets(results)]
    lines += contest(
        results.of("B1"),
        "B1: 50 devices of 50 images, batch 10, 2.2 M parameters (CIFAR-10 part)",
        "bare loop, 1 thread",
    )
    lines += idle(results.of("B2"), "B2: devices that do nothing (payload, devices; in-process)")
    lines += contest(
        results.of("B3"), "B3: tiny models (digits, 100 devices a round, 19 kB of weights)", "bare loop, 1 thread"
    )
    lines += [*methods(results.of("B4")), *parts(results.of("B5"))]
    lines += idle(results.of("B6"), "B6: scale (drawn of registered; `mlp`, four samples a device; in-process)")
    lines += growth(results, Path(__file__).parents[3] / "docs" / "figures")
    if failed:
        lines += ["## What failed", "", *failed, ""]
    lines += [(Path(__file__).parent / "remarks.md").read_text(encoding="utf-8")]
    return "\n".join(lines).rstrip() + "\n"
