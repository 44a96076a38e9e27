"""What is learned: a file a task, which says its name in a table ``TASKS``.

A task knows its targets, the loss, how many numbers a net says, the metrics as sums, and which way is better. Nothing
else does. A task of one's own is ``package.module:Class``; task.py says what it must have.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from potluck.core.plugins import Catalogue
from potluck.tasks.task import LearningTask

NEEDED = ("name", "primary", "better", "per_step", "soft", "outputs", "loss", "totals", "metrics")


def _task(name: str, found: Any) -> type[LearningTask]:
    if not isinstance(found, type) or not dataclasses.is_dataclass(found):
        raise ValueError(f"got {found!r}, expected a frozen dataclass with a field facts (potluck.tasks.task)")
    missing = [part for part in NEEDED if part not in dir(found)]
    if missing:
        raise ValueError(f"{found.__name__} has no {', '.join(missing)}: see potluck.tasks.task.LearningTask")
    return found  # type: ignore[return-value]


TASKS: Catalogue[type[LearningTask]] = Catalogue(
    kind="task",
    key="task.kind",
    package=__name__,
    table="TASKS",
    group="potluck.tasks",
    made=_task,
    objects="package.module:Class",
)
