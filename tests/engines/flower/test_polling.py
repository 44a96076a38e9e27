"""One reply that is still on its way holds up no other, nor whoever asks."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import ArrayRecord
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.inflatable.inflatable_utils import ObjectUnavailableError
from flwr.superlink.grid import http_grid
from flwr.supernode.runtime import run_clientapp

from potluck.engines.flower import polling
from potluck.engines.flower.frames import pack
from potluck.engines.flower.polling import ReplyPoller, pause, poll_often, poll_often_on_device


def grid_of(slow: threading.Event, seen: list[str]) -> Any:
    """A grid that has the replies to "fast" and, once the event is set, to "slow"."""

    def pull(messages: Iterable[str]) -> list[str]:
        (name,) = messages
        seen.append(name)
        if name == "slow":
            assert slow.wait(60)
        return [] if name == "none" else [f"reply to {name}"]

    return SimpleNamespace(pull_messages=pull)


def test_an_upload_under_way_holds_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polling, "PATIENCE_S", 0.05)
    slow, seen = threading.Event(), list[str]()
    looks = ReplyPoller(grid=grid_of(slow, seen))
    found = list[Any]()
    for _ in range(3):
        found += looks.replies(["slow", "fast", "none"])
    assert found == ["reply to fast"] * 3
    assert seen.count("slow") == 1, "the look that is under way is the only one"
    assert seen.count("none") == 3
    slow.set()
    while found[-1:] != ["reply to slow"]:
        found += looks.replies(["slow"])
    assert found.count("reply to slow") == 1


def test_what_nobody_waits_for_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polling, "PATIENCE_S", 0.05)
    slow = threading.Event()
    looks = ReplyPoller(grid=grid_of(slow, []))
    assert not list(looks.replies(["slow"]))
    looks.forget("slow")
    slow.set()
    assert not looks._out


def test_many_replies_are_looked_for_at_a_bearable_rate() -> None:
    assert pause(0.5, 4) == 0.5
    assert pause(0.5, 200) == 10.0


def test_flower_looks_at_an_upload_as_often_as_we_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """The function is Flower's own and not part of its interface: this fails where a new version has none."""
    monkeypatch.setattr(http_grid, "pull_objects", http_grid.pull_objects)
    monkeypatch.setattr(polling, "UPLOAD_POLL_S", 0.01)
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
    monkeypatch.setattr(polling, "UPLOAD_POLL_S", 0.01)
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
