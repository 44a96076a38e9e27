"""``tensorboard``: scalars by round, in ``FOLDER/tensorboard``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from potluck.core.errors import MissingExtraError
from potluck.experiment.config import Experiment

TRACKED = ("accuracy", "metric", "metrics", "bytes", "seconds", "simulated_seconds", "wall_seconds", "notes", "parts")


@contextmanager
def tensorboard(experiment: Experiment, folder: Path) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Writes every figure of a line that is a number."""
    try:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415  an optional dependency
    except ImportError:
        raise MissingExtraError("track.kind = tensorboard", "track") from None
    with SummaryWriter(folder / "tensorboard") as writer:

        def track(line: Mapping[str, Any]) -> None:
            for name, value in _flat({key: line[key] for key in TRACKED if key in line}).items():
                writer.add_scalar(name, value, line["round"])

        yield track


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    found: dict[str, float] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float)):
            found[f"{prefix}{key}"] = float(value)
    return found


TRACKERS = {"tensorboard": tensorboard}
