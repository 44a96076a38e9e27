"""Replies as they come in, each looked for by itself, so that none waits for another.

Flower hands a reply out once it is announced, and then waits until all of it has been uploaded: on a thin link for
minutes, and for three more where the device was cut off in its upload. Meanwhile the thread that asked sees nothing
else, neither the other replies nor the deadline.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from potluck.core.errors import MissingExtraError

try:
    from flwr.app import Message
    from flwr.serverapp import Grid
except ImportError:
    raise MissingExtraError("a fleet on Flower", "flower") from None

AT_ONCE, UNDER_WAY = 8, 64
"""Replies looked for at once, so that few frames are in memory; and those that may be in the middle of an upload."""
PATIENCE_S = 0.5
POLLS_PER_S = 20.0
"""More would keep the SuperLink busy: each is a request of its own."""


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
