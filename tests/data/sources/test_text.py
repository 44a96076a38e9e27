"""Texts to be gone on with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from potluck.core.errors import DataError
from potluck.data.partition.partition import partition
from potluck.data.partition.rules import Column
from potluck.data.source import Reading
from potluck.data.sources import load
from potluck.data.table.columns import Columns
from potluck.tasks.task import IGNORED

READING = Reading(columns=Columns(length=10))


def play(folder: Path) -> Path:
    """Six roles, the first of whom speaks the most."""
    lines = [f"ROLE {n % 6}:\nThis is said {n} times{', again' * 9 * (n % 6 == 0)}.\n" for n in range(60)]
    (folder / "play.txt").write_text("\n".join(lines))
    return folder / "play.txt"


def test_a_sample_is_a_window_and_its_target_one_character_later(tmp_path: Path) -> None:
    found = load(f"text:{play(tmp_path)}", READING)
    assert (found.task, found.inputs.kind, found.inputs.shape) == ("next_token", "tokens", (10,))
    assert found.facts.outputs == found.vocabulary == len(found.facts.names)
    assert torch.equal(found.x_train[0, 1:], found.y_train[0, :-1])
    said = "".join(found.facts.names[token] for token in found.x_train[0].tolist())
    assert said == "This is sa"
    last = found.y_test[found.y_test[:, -1] == IGNORED]
    assert len(last) == 6, "each role's last window is padded"


def test_roles_are_natural_devices_the_most_talkative_first(tmp_path: Path) -> None:
    found = load(f"text:{play(tmp_path)}", READING)
    assert found.owner_train is not None
    sizes = torch.bincount(found.owner_train)
    assert len(sizes) == 6
    assert int(sizes.argmax()) == 0
    shares = partition(found, Column(largest=2), 2, 0)
    assert [len(share) for share in shares] == sizes[:2].tolist()


def test_a_text_without_roles_is_cut_into_stretches(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("abcdefghij " * 500)
    found = load(f"text:{tmp_path}/log.txt", READING)
    assert found.owner_train is not None
    assert int(found.owner_train.max()) == 99


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"short", "5 characters, expected at least 1000"), (b"\xff" * 2000, "not in utf-8"), (b"a" * 2000, "")],
)
def test_a_bad_text_is_told(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "bad.txt").write_bytes(content)
    if says:
        with pytest.raises(DataError, match=says):
            load(f"text:{tmp_path}/bad.txt", READING)
    else:
        assert load(f"text:{tmp_path}/bad.txt", READING).vocabulary == 3
