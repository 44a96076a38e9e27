"""Replies as they come in, each looked for by itself, so that none waits for another.

Flower hands a reply out once it is announced, and then waits until all of it has been uploaded: on a thin link for
minutes, and for three more where the device was cut off in its upload. Meanwhile the thread that asked sees nothing
else, neither the other replies nor the deadline.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

from potluck.core.errors import MissingExtraError

try:
    from flwr.app import Message
    from flwr.serverapp import Grid
    from flwr.supercore.inflatable.inflatable_utils import pull_and_inflate_object_from_tree, pull_objects
    from flwr.superlink.grid import http_grid
except ImportError:
    raise MissingExtraError("a fleet on Flower", "flower") from None

AT_ONCE, UNDER_WAY = 8, 64
"""Replies looked for at once, so that few frames are in memory; and those that may be in the middle of an upload."""
PATIENCE_S = 0.5
POLLS_PER_S = 20.0
"""More would keep the SuperLink busy: each is a request of its own."""
UPLOAD_POLL_S = 1.0
"""Seconds between two looks at an upload. Flower's own grow to 10 s, which makes rounds on thin links longer."""


def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(UNDER_WAY, thread_name_prefix="look")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyPoller:
    """The looks that are under way on a grid, by message."""

    grid: Grid
    _pool: ThreadPoolExecutor = field(default_factory=_pool)
    _out: dict[str, Future[list[Message]]] = field(default_factory=dict)

    def replies(self, messages: Sequence[str]) -> Iterator[Message]:
        """The replies to these messages that are there as a whole."""
        for start in range(0, len(messages), AT_ONCE):
            some = messages[start : start + AT_ONCE]
            for name in some:
                if name not in self._out:
                    self._out[name] = self._pool.submit(self._look, name)
            wait([self._out[name] for name in some], timeout=PATIENCE_S)
            for name in some:
                if self._out[name].done():
                    yield from self._out.pop(name).result()

    def forget(self, message: str) -> None:
        """Nobody waits for this reply any more."""
        self._out.pop(message, None)

    def _look(self, message: str) -> list[Message]:
        return list(self.grid.pull_messages([message]))


def pause(poll_s: float, out: int) -> float:
    """Seconds between two rounds of looks for ``out`` replies."""
    return max(poll_s, out / POLLS_PER_S)


def poll_often() -> None:
    """Lets a server's process look at an upload every second, for as long as the SuperLink has it.

    Flower has no setting for it: the function that its grid calls is given other defaults; a test knows its name.
    """
    http_grid.pull_objects = functools.partial(pull_objects, **_often())  # type: ignore[attr-defined]


def poll_often_on_device() -> None:
    """The same of a message's process, which Flower starts when the request is announced, before it is downloaded."""
    from flwr.supernode.runtime import run_clientapp as place  # noqa: PLC0415 - a device's, not for servers

    pull = functools.partial(pull_and_inflate_object_from_tree, **_often())
    place.pull_and_inflate_object_from_tree = pull  # type: ignore[attr-defined]


def _often() -> dict[str, Any]:
    pauses = {"initial_backoff": UPLOAD_POLL_S, "backoff_cap": UPLOAD_POLL_S}
    return {"max_time": None, "max_tries_per_object": None, **pauses}
