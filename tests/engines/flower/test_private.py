"""What we use of Flower beside its public interface: where it was, and what holds where it is gone."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pytest
from flwr.app import ArrayRecord, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.inflatable.inflatable_utils import ObjectUnavailableError
from flwr.superlink.grid import http_grid
from flwr.supernode.runtime import run_clientapp
from tests.engines.flower.grid import one_task

from potluck.core.errors import EngineError
from potluck.engines.flower import private
from potluck.engines.flower.frames import pack
from potluck.engines.flower.private import poll_often, poll_often_on_device, size_of
from potluck.engines.flower.superlink import Address, Control


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Flower's commands, of typer
@pytest.mark.parametrize(
    ("module", "name"),
    [(module, name) for module, names in private.USED for name in names],
    ids=lambda text: text.rpartition(".")[2],
)
def test_each_private_name_is_where_it_was(module: str, name: str) -> None:
    assert hasattr(import_module(module), name), (
        f"flwr {version('flwr')} has moved {module}.{name}; what holds until it is mended: {private.__doc__}"
    )


@pytest.fixture
def moved(monkeypatch: pytest.MonkeyPatch) -> None:
    """A version of Flower that has moved all of it."""
    monkeypatch.setattr(private, "found", lambda used: None)


def test_without_it_a_message_counts_its_arrays(moved: None) -> None:
    with one_task():
        message = Message(RecordDict({"frame": pack(b"x" * 1000)}), dst_node_id=1, message_type="train.round")
    assert size_of(message) == 1000


def test_with_it_a_message_counts_its_headers_too() -> None:
    with one_task():
        message = Message(RecordDict({"frame": pack(b"x" * 1000)}), dst_node_id=1, message_type="train.round")
        assert 1000 < size_of(message) < 2000


def test_without_it_flower_keeps_its_own_pauses(moved: None) -> None:
    before = http_grid.pull_objects, run_clientapp.pull_and_inflate_object_from_tree
    poll_often()
    poll_often_on_device()
    assert before == (http_grid.pull_objects, run_clientapp.pull_and_inflate_object_from_tree)


def test_without_it_each_command_is_a_process_of_its_own(
    moved: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said = {"first": '{"success": true, "n": 1}', "second": 'oh: {"success": false}', "third": '{"success": true}'}
    program = tmp_path / "flwr"
    cases = "".join(f"  {word}) echo '{text}';;\n" for word, text in said.items())
    program.write_text(f"#!/bin/sh\ncase $1 in\n{cases}esac\n")
    program.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    told = [found for found, _ in private.ask([["first"], ["second"], ["third"]])]
    assert told == [{"success": True, "n": 1}, {"success": False}], "the first that fails is the last"


def test_inside_and_outside_a_process_flower_says_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    words = ["list", "nowhere", "--format", "json"]
    outside = private._outside(words)
    command = [sys.executable, "-m", private.__name__, json.dumps([words])]
    inside = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert "'nowhere' not found" in inside["told"].replace("\n", " ")
    assert "'nowhere' not found" in outside.replace("\n", " ")


def test_a_command_that_fails_is_an_error_with_its_reason(tmp_path: Path) -> None:
    control = Control(home=tmp_path, address=Address(host="127.0.0.1", port=1, ca=None))
    with pytest.raises(EngineError, match=r"(?s)^flwr list nowhere: .*'nowhere' not found"):
        control.calls([["list", "nowhere"], ["list", "elsewhere"]])


def test_flower_looks_at_an_upload_as_often_as_we_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_grid, "pull_objects", http_grid.pull_objects)
    monkeypatch.setattr(private, "UPLOAD_POLL_S", 0.01)
    poll_often()
    asked = list[str]()

    def pull(name: str) -> bytes:
        asked.append(name)
        if len(asked) < 20:
            raise ObjectUnavailableError(name)
        return b"whole"

    assert http_grid.pull_objects(["frame"], pull) == {"frame": b"whole"}
    assert len(asked) == 20


def test_a_message_looks_at_its_order_as_often_as_we_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same on the device."""
    monkeypatch.setattr(
        run_clientapp, "pull_and_inflate_object_from_tree", run_clientapp.pull_and_inflate_object_from_tree
    )
    monkeypatch.setattr(private, "UPLOAD_POLL_S", 0.01)
    poll_often_on_device()
    record, asked = pack(b"frame"), list[str]()
    contents = {name: part.deflate() for name, part in get_all_nested_objects(record).items()}

    def pull(name: str) -> bytes:
        asked.append(name)
        if asked.count(name) < 10:
            raise ObjectUnavailableError(name)
        return contents[name]

    found = run_clientapp.pull_and_inflate_object_from_tree(
        get_object_tree(record), pull, lambda _: None, return_type=ArrayRecord
    )
    assert found["frame"].data == b"frame"
    assert len(asked) == 10 * len(contents)
