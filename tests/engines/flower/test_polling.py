"""One reply that is still on its way holds up no other, nor whoever asks."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest

from potluck.engines.flower import polling
from potluck.engines.flower.polling import ReplyPoller, pause


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
