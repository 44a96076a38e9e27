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


MESHES = [name for name, found in METHODS.items() if found.traits.peers]


@pytest.mark.parametrize("method", MESHES)
@pytest.mark.parametrize("posts", ["fixed16", "fixed8", "float32", "onehot"])
def test_a_relay_equals_the_mesh(small: MakeExperiment, method: str, posts: str, tmp_path: Path) -> None:
    """Pooled where posts are fixed, forwarded where not; metrics of every round too, and of a resumed run."""
    settings = (f"method.posts={posts}", "rounds=3")
    native = run.run(small(method, *settings), tmp_path / "native")
    relayed = run.run(small(method, *settings, "engine.relay=true"), tmp_path / "relayed")
    assert relayed.summary["state_sha256"] == native.summary["state_sha256"]
    assert [line["accuracy"] for line in relayed.rounds] == [line["accuracy"] for line in native.rounds]


@pytest.mark.parametrize("method", MESHES)
def test_a_relay_on_the_pool_equals_the_mesh(small: MakeExperiment, method: str, tmp_path: Path) -> None:
    native = run.run(small(method), tmp_path / "native").summary
    settings = ("engine.kind=pool", "engine.workers=2", "engine.relay=true")
    assert run.run(small(method, *settings), tmp_path / "there").summary["state_sha256"] == native["state_sha256"]
