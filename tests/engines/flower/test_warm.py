"""The warm process answers what Flower starts, in a fork; where it is gone, Flower's own program runs."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from potluck.engines.flower.superlink import environment, programs_of
from potluck.engines.flower.warm import CAN_FORK, CLIENT, warm, write_launcher

pytestmark = pytest.mark.skipif(not CAN_FORK, reason="only Linux forks safely after imports")


def call(home: Path, *words: str) -> str:
    """What the program says that is found first."""
    found = subprocess.run([CLIENT, *words], env=environment(home), capture_output=True, text=True, check=False)
    return found.stdout + found.stderr


def test_a_message_is_answered_by_a_fork(tmp_path: Path) -> None:
    home, log = tmp_path / "home", tmp_path / "log"
    program = programs_of(home) / CLIENT
    with warm(home, log):
        text = program.read_text()
        assert f"/{CLIENT} " in text
        program.write_text(text.replace(f"/{CLIENT} ", "/not-there "))  # nobody but the warm process can answer
        for _ in range(2):
            assert call(home, "--help").startswith(f"usage: {CLIENT}"), log.read_text()
        assert "--token-file is required" in call(home), log.read_text()
    assert not program.exists()


def test_nobody_there_is_no_harm(tmp_path: Path) -> None:
    write_launcher(programs_of(tmp_path) / CLIENT, str(tmp_path / "nobody"), Path("/bin/echo"))
    assert call(tmp_path, "--token", "a b") == "--token a b\n"
