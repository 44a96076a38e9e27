"""What a crash leaves behind: a run folder that goes on to the same end."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest

from potluck.core.errors import RunFolderError
from potluck.engines.flower.superlink import descendants
from potluck.experiment import run, store
from potluck.experiment.config import Experiment

MakeExperiment = Callable[..., Experiment]
POTLUCK = [sys.executable, "-m", "potluck.cli"]


class PowerCutError(BaseException):
    """The machine stops here."""


def steps_of_a_checkpoint(monkeypatch: pytest.MonkeyPatch, fail_at: int) -> list[str]:
    """Counts the steps that touch the disk, and stops the machine in the middle of step ``fail_at``."""
    seen: list[str] = []
    write, append, tidy = store.write_whole, store._append, store._tidy

    def step(name: str, half: Callable[[], None]) -> None:
        seen.append(name)
        if len(seen) - 1 == fail_at:
            half()
            raise PowerCutError

    def cut_write(path: Path, data: bytes | bytearray) -> None:
        step(
            f"write {path.name}",
            lambda: path.with_name(path.name + ".new").write_bytes(data[: len(data) // 2]) and None,
        )
        write(path, data)

    def cut_append(path: Path, values: Any) -> int:
        held = list(values)
        step(f"append {path.name}", lambda: append(path, held[: len(held) // 2]) and None)
        return append(path, held)

    def cut_tidy(state: Path, kept: str) -> None:
        step("tidy", lambda: None)
        tidy(state, kept)

    monkeypatch.setattr(store, "write_whole", cut_write)
    monkeypatch.setattr(store, "_append", cut_append)
    monkeypatch.setattr(store, "_tidy", cut_tidy)
    return seen


@pytest.mark.parametrize("method", ["fedavg", "local"])
def test_a_cut_at_any_step_of_a_checkpoint(
    small: MakeExperiment, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = small(method, "rounds=3", "model.name=mlp")
    whole = run.run(experiment, tmp_path / "whole").summary
    with monkeypatch.context() as patched:
        seen = steps_of_a_checkpoint(patched, fail_at=-1)
        run.run(experiment, tmp_path / "counted")
    second = seen.index("write manifest.json", seen.index("write manifest.json") + 1)  # the end of round 1
    for fail_at in range(second + 1, second + 9):  # every step of the checkpoint of round 2
        folder = tmp_path / f"cut-{fail_at}"
        with monkeypatch.context() as patched:
            steps_of_a_checkpoint(patched, fail_at)
            with pytest.raises(PowerCutError):
                run.run(experiment, folder)
        again = run.resume(folder)
        assert again.summary["state_sha256"] == whole["state_sha256"], seen[fail_at]
        assert [line["round"] for line in again.rounds] == [1, 2, 3], seen[fail_at]


def write_experiment(path: Path, small: Experiment) -> Path:
    path.write_text(store.to_toml(small))
    return path


def written(experiment: Experiment, folder: Path) -> None:
    """A process's life: begins the run, or goes on with it."""
    if folder.exists():
        run.resume(folder)
    else:
        run.run(experiment, folder)


def test_five_kills_at_random_moments(small: MakeExperiment, tmp_path: Path, warm: ForkServerContext) -> None:
    experiment = small("fedavg", "rounds=120", "model.name=mlp", "evaluate.every=10")
    whole = run.run(experiment, tmp_path / "whole").summary
    folder, moments = tmp_path / "killed", random.Random(5)
    for _ in range(5):
        before = _round(folder)
        process = warm.Process(target=written, args=(experiment, folder))
        process.start()
        wait_for_round(process.is_alive, folder, after=before)
        time.sleep(moments.uniform(0.0, 0.2))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "the run was over before it could be killed five times"
    killed = run.resume(folder)
    assert killed.summary["state_sha256"] == whole["state_sha256"]
    assert [line["round"] for line in killed.rounds] == list(range(1, 121))


def _round(folder: Path) -> int:
    try:
        return int(store.read_manifest(folder)["round"])
    except RunFolderError:
        return -1


def wait_for_round(alive: Callable[[], bool], folder: Path, after: int) -> None:
    limit = time.monotonic() + 60
    while _round(folder) <= max(after, 0) and alive():
        assert time.monotonic() < limit, f"no round beyond {after} within a minute"
        time.sleep(0.02)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_no_worker_survives_its_parent(small: MakeExperiment, tmp_path: Path) -> None:
    experiment = small("fedavg", "rounds=10000", "engine.kind=pool", "engine.workers=2")
    file, folder = write_experiment(tmp_path / "e.toml", experiment), tmp_path / "run"
    process = subprocess.Popen([*POTLUCK, "run", str(file), "--out", str(folder), "--quiet"])
    wait_for_round(lambda: process.poll() is None, folder, after=0)
    workers = descendants(process.pid)  # and those who look after them
    assert len(workers) >= 2
    process.kill()
    process.wait()
    limit = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < limit:
        time.sleep(0.05)
    assert [pid for pid in workers if Path(f"/proc/{pid}").exists()] == []


def test_ctrl_c_keeps_the_checkpoint_and_says_how_to_go_on(small: MakeExperiment, tmp_path: Path) -> None:
    experiment = small("fedavg", "rounds=10000", "engine.kind=pool", "engine.workers=1")
    file, folder = write_experiment(tmp_path / "e.toml", experiment), tmp_path / "run"
    process = subprocess.Popen(
        [*POTLUCK, "run", str(file), "--out", str(folder), "--quiet"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A job in the background inherits that SIGINT is ignored; nothing but this call runs before the exec.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    wait_for_round(lambda: process.poll() is None, folder, after=0)
    os.killpg(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=30)
    assert process.returncode == 130
    assert f"potluck resume {folder}" in told
    assert "Traceback" not in told
    assert store.read_checkpoint(folder).round >= 1


def test_a_second_writer_is_refused(small: MakeExperiment, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run.run(small("fedavg", "rounds=1", "model.name=mlp"), folder)
    with store.RunFolder.open(folder), pytest.raises(RunFolderError, match="another run is writing"):
        run.resume(folder, more_rounds=1)
    assert run.resume(folder, more_rounds=1).summary["rounds"] == 2
