"""Whoever watches a run as it goes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from potluck.experiment.config import Experiment


class Listener(Protocol):
    """What is told of a run as it goes."""

    def begins(self, experiment: Experiment, folder: Path, first_round: int, warnings: Sequence[str]) -> None:
        """The first round is about to start."""

    def round_done(self, line: dict[str, Any]) -> None:
        """A round is over and stands in the checkpoint; ``line`` is its line of rounds.jsonl."""


class Silence:
    """A listener that says nothing."""

    def begins(self, experiment: Experiment, folder: Path, first_round: int, warnings: Sequence[str]) -> None:
        return

    def round_done(self, line: dict[str, Any]) -> None:
        return


SILENCE: Listener = Silence()
