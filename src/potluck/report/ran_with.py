"""The settings that each method of a comparison ran with, and what failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from potluck.report.runs import Run
from potluck.report.tables import flat, table, value_text
from potluck.report.units import NONE, Html


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


def failures(found: Sequence[Mapping[str, str]]) -> Html | None:
    """The runs of a comparison that failed, and why."""
    rows = [[one["path"], one["reason"]] for one in found]
    return table(["run", "failed because"], rows, words=2) if rows else None
