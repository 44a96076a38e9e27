"""Figures for other tools, beside the run folder: a file a tracker, which says its name in a table ``TRACKERS``.

A tracker is a function of the experiment and the run folder that gives a context manager; inside it takes the lines of
rounds.jsonl, one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

from potluck.core.plugins import Catalogue
from potluck.experiment.config import Experiment

Track = Callable[[Mapping[str, Any]], None]
Tracker = Callable[[Experiment, Path], AbstractContextManager[Track]]


def _tracker(name: str, found: Any) -> Tracker:
    if not callable(found):
        raise ValueError(f"got {found!r}, expected a function (experiment, folder) -> context manager")
    return found  # type: ignore[no-any-return]


TRACKERS: Catalogue[Tracker] = Catalogue(
    kind="tracker",
    key="track.kind",
    package=__name__,
    table="TRACKERS",
    group="potluck.trackers",
    made=_tracker,
)


@contextmanager
def tracking(experiment: Experiment, folder: Path) -> Iterator[Track]:
    """Takes the lines of rounds.jsonl for all trackers of ``[track] kind``. Raises ConfigError for an unknown one."""
    with ExitStack() as open_ones:
        tracks = [open_ones.enter_context(TRACKERS[name](experiment, folder)) for name in experiment.track.kind]

        def track(line: Mapping[str, Any]) -> None:
            for one in tracks:
                one(line)

        yield track
