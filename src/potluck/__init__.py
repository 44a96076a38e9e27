"""Potluck trains one model together on a fleet of unequal devices over thin links.

    import potluck
    run = potluck.run(potluck.Experiment.load("experiment.toml"))
    run.summary["accuracy"]["mean"], run.model("phone")

Names are loaded when they are first used, so that ``import potluck`` costs little more than ``import torch``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from potluck.core import version

if TYPE_CHECKING:
    from potluck.core.errors import PotluckError
    from potluck.core.types import Device, Shard
    from potluck.experiment.config import Experiment
    from potluck.experiment.run import resume, run
    from potluck.experiment.run_reader import Run
    from potluck.methods import METHODS

__version__ = version.VERSION

_HOMES = {
    "METHODS": "potluck.methods",
    "Device": "potluck.core.types",
    "Experiment": "potluck.experiment.config",
    "PotluckError": "potluck.core.errors",
    "Run": "potluck.experiment.run_reader",
    "Shard": "potluck.core.types",
    "resume": "potluck.experiment.run",
    "run": "potluck.experiment.run",
}

__all__ = ["METHODS", "Device", "Experiment", "PotluckError", "Run", "Shard", "load", "resume", "run"]


def load(path: str) -> Run:
    """The run in a folder, finished or not."""
    from potluck.experiment.run_reader import Run  # noqa: PLC0415  loaded when first used

    return Run.load(path)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'potluck' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
