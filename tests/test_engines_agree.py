"""Law 5: the engine does not change the result."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from potluck.experiment import run
from potluck.experiment.config import Experiment
from potluck.methods import METHODS

MakeExperiment = Callable[..., Experiment]


@pytest.mark.parametrize("method", METHODS)
def test_the_pool_equals_this_process(small: MakeExperiment, method: str, tmp_path: Path) -> None:
    here = run.run(small(method), tmp_path / "here").summary
    there = run.run(small(method, "engine.kind=pool", "engine.workers=2"), tmp_path / "there").summary
    assert there["state_sha256"] == here["state_sha256"]
    assert there["accuracy"] == here["accuracy"]
    assert there["bytes"] == here["bytes"]
    assert there["simulated_seconds"] == here["simulated_seconds"]
