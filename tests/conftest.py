"""What holds for every test: one torch thread, no network, real data only where a folder of it is named."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from tests.report.chromium import executable

from potluck import cli
from potluck.experiment.config import Experiment
from potluck.testing import small_experiment

settings.register_profile("potluck", derandomize=True, deadline=None, print_blob=False)
settings.load_profile("potluck")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests of real data need POTLUCK_DATA, the folder of them; those of real processes are asked for by -m fleet;
    those of a browser need Chromium. What POTLUCK_REQUIRE names, such as ``data browser``, is not left out: that it is
    missing is an error."""
    left_out = set() if os.environ.get("POTLUCK_DATA") else {"data"}
    left_out |= set() if executable() else {"browser"}
    required = set(os.environ.get("POTLUCK_REQUIRE", "").split())
    if missing := sorted(left_out & required):
        raise pytest.UsageError(f"POTLUCK_REQUIRE names {', '.join(missing)}, and what these tests need is not there")
    left_out |= set() if "fleet" in config.getoption("markexpr") else {"fleet"}
    kept = [item for item in items if not any(item.get_closest_marker(name) for name in left_out)]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def warm() -> ForkServerContext:
    """Starts processes from one that has imported torch: their start is most of their cost, and not what is tested."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["potluck.experiment.run", "potluck.methods", "flwr_datasets"])
    return context


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that reaches beyond this machine fails."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        if self.family != socket.AF_UNIX and not str(address).startswith(("('127.", "('::1")):
            raise AssertionError(f"a test reached for the network: {address}")
        connect(self, address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", guarded)


MakeExperiment = Callable[..., Experiment]
Potluck = Callable[..., tuple[int, str, str]]


@pytest.fixture
def small() -> MakeExperiment:
    """Makes the small experiment of a method, with ``key=value`` overrides; its net is of the method's kind."""
    return small_experiment


@pytest.fixture
def potluck(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Potluck:
    """Runs a command line in a folder of its own: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr("signal.signal", lambda *_: None)

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["potluck", *words])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        told = capsys.readouterr()
        return code, told.out, told.err

    return call
