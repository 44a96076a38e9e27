"""The settings that each method of a comparison ran with, and what failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from potluck.report import target
from potluck.report.runs import Run
from potluck.report.tables import flat, table, value_text
from potluck.report.units import NONE, SHARES, Html, duration, score, size


def method_settings(groups: Mapping[str, Sequence[Run]]) -> Html:
    """The net, the options and the local training that each method ran with."""
    rows = []
    for name, runs in groups.items():
        table_of = runs[0].experiment
        options = flat({key: value for key, value in table_of.get("method", {}).items() if key != "name"})
        train = flat({key: table_of.get("train", {}).get(key) for key in ("lr", "epochs", "batch_size")})
        told = (", ".join(f"{key} = {value_text(value)}" for key, value in made.items()) for made in (options, train))
        rows.append([name, str(table_of.get("model", {}).get("name", NONE)), *told])
    return table(["method", "net", "options", "training"], rows, words=4)


def to_target(runs: Sequence[Run], labels: Sequence[str]) -> Html | None:
    """The round, the bytes and the simulated time in which each run first reached the target."""
    goal = target.target_of(runs)
    if goal is None:
        return None
    rows: list[list[object]] = []
    for run, label in zip(runs, labels, strict=True):
        found = target.reached(run, goal)
        words = [found.round, size(found.bytes), duration(found.simulated_seconds)] if found else [NONE, NONE, NONE]
        rows.append([label, *words])
    shown = score(goal, runs[0].metric)
    how = "in whole per cent" if runs[0].metric in SHARES else "in three digits"
    text = f"The first evaluated round with a mean of {shown} or better: a tenth worse than the best one here, {how}."
    head = ["run", "round", "bytes until then", "simulated time"]
    return Html(f"<h3>To {shown}</h3><p>{text}</p>{table(head, rows)}")


def failures(found: Sequence[Mapping[str, str]]) -> Html | None:
    """The runs of a comparison that failed, and why."""
    rows = [[one["path"], one["reason"]] for one in found]
    return table(["run", "failed because"], rows, words=2) if rows else None
