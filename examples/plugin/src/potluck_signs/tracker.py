"""csv: a line a round in ``figures.csv`` of the run folder."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

COLUMNS = ("round", "accuracy", "bytes", "simulated_seconds")


@contextmanager
def csv_file(experiment: Any, folder: Path) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Appends to the file, which a resumed run goes on with."""
    place = folder / "figures.csv"
    fresh = not place.exists()
    with place.open("a", newline="", encoding="utf-8") as lines:
        writer = csv.writer(lines)
        if fresh:
            writer.writerow(COLUMNS)

        def track(line: Mapping[str, Any]) -> None:
            accuracy = line.get("accuracy", {}).get("mean", "")
            writer.writerow([line["round"], accuracy, line["bytes"]["total"], line["simulated_seconds"]])
            lines.flush()

        yield track
