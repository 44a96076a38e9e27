"""Devices in worker processes: one resident net a tier and worker, data in shared memory, replies as bytes.

Workers are clean processes, obey ``threads``, and end when their parent does. On Linux they are forked from one that
has done the imports and nothing else, so that the next run's begin at once. This process looks after them between two
merges, without threads: requests that take a worker less than such a look are sent several at a time, and the next ones
ahead. At most two messages a worker run ahead of what has been taken, so memory stays O(one model) whatever the number
of devices.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import selectors
import socket
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any

import torch.multiprocessing as mp

from potluck.core import errors
from potluck.core.errors import EngineError, PotluckError
from potluck.engines.contract import Request, Response
from potluck.engines.device import DeviceRuntime
from potluck.engines.local.inprocess import apply_deadline
from potluck.engines.local.worker import SMALL_BYTES, aligned, receive, send, work
from potluck.wire.frame import Buffer

AHEAD = 2
STOP_S = 5.0
"""Seconds that a worker gets to end by itself."""
SHORT_S = 0.02
TOGETHER_S, MOST_TOGETHER = 0.004, 16
"""Small requests travel together up to so many seconds of work: what may be left over at the end of a round."""


@dataclasses.dataclass(slots=True)
class Asked:
    """Requests that a worker was sent together, and what came of each."""

    requests: list[Request]
    found: list[Response | PotluckError] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(slots=True)
class Worker:
    """A process and this side of the link to it."""

    process: Any
    link: socket.socket
    asked: deque[Asked] = dataclasses.field(default_factory=deque)
    """What it has not answered."""
    seconds: float = math.inf
    """What a request of the last ones took."""
    peak_rss_bytes: int = 0
    held: Buffer | None = None
    """The frame that it was sent last: devices of a tier are sent the same one, which then travels once."""

    def takes(self, request: Request) -> int:
        """How many requests like this one to give it now: some if it is idle, or will be at once and has the frame.

        A long frame is only sent to an idle worker, which reads it: both sides writing would wait for ever.
        """
        soon = len(self.asked) < AHEAD and self.held is request.frame and self.seconds < SHORT_S
        if self.asked and not soon:
            return 0
        if len(request.frame) > SMALL_BYTES:
            return 1
        return max(1, min(MOST_TOGETHER, int(TOGETHER_S / max(self.seconds, 1e-6))))


class Pool:
    """An engine of worker processes; a context manager. ``make_side`` and its ``arguments`` travel to the workers."""

    def __init__(
        self, make_runtime: Callable[..., DeviceRuntime], arguments: tuple[Any, ...], *, workers: int, threads: int
    ) -> None:
        context: Any = mp.get_context("forkserver" if sys.platform == "linux" else "spawn")
        if sys.platform == "linux":
            context.set_forkserver_preload([make_runtime.__module__])
        self._workers: list[Worker] = []
        self._links = selectors.DefaultSelector()
        for number in range(workers):
            ours, theirs = socket.socketpair()
            process = context.Process(
                target=work,
                args=(theirs, number, threads, make_runtime, arguments),
                name=f"potluck-{number}",
                daemon=True,
            )
            process.start()
            theirs.close()
            worker = Worker(process, ours)
            self._workers.append(worker)
            self._links.register(ours, selectors.EVENT_READ, worker)

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            with contextlib.suppress(OSError):  # it is gone already
                worker.link.shutdown(socket.SHUT_RDWR)
            worker.link.close()
        for worker in self._workers:
            worker.process.join(0.0 if error is not None else STOP_S)
            if worker.process.is_alive():
                worker.process.terminate()
                worker.process.join()
        self._links.close()

    @property
    def peak_rss_bytes(self) -> int:
        """The workers' largest resident memory, summed."""
        return sum(worker.peak_rss_bytes for worker in self._workers)

    @property
    def pids(self) -> list[int]:
        """The workers' process ids."""
        return [worker.process.pid for worker in self._workers]

    def exchange(self, requests: Iterable[Request], deadline_s: float | None) -> Iterator[Response]:
        source, given = iter(requests), deque[Asked]()
        next_up = next(source, None)
        while next_up is not None or given:
            while next_up is not None and len(given) < AHEAD * len(self._workers):
                worker = min(self._workers, key=lambda worker: len(worker.asked))
                room, together, frame = worker.takes(next_up), list[Request](), next_up.frame
                while next_up is not None and next_up.frame is frame and len(together) < room:
                    together.append(next_up)
                    next_up = next(source, None)
                if not together:
                    break
                given.append(_give(worker, together))
            first = given[0] if given else None
            for key, _ in self._links.select(0 if first is not None and first.found else None):
                _hear(key.data)
            if first is not None and first.found:
                given.popleft()
                for found in first.found:
                    if isinstance(found, PotluckError):
                        raise found
                    yield apply_deadline(found, deadline_s)


def _give(worker: Worker, requests: list[Request]) -> Asked:
    asked, frame = Asked(requests), requests[0].frame
    worker.asked.append(asked)
    again = worker.held is frame
    try:
        send(worker.link, [_head(request, again) for request in requests], [] if again else [frame])
    except OSError as error:
        raise _ended(worker) from error
    worker.held = frame
    return asked


def _hear(worker: Worker) -> None:
    try:
        heads, frames = receive(worker.link)
    except (EOFError, OSError) as error:
        raise _ended(worker) from error
    asked = worker.asked.popleft()
    worker.seconds = sum(head.pop("took", 0.0) for head in heads) / len(heads)
    at = 0
    for request, head in zip(asked.requests, heads, strict=True):
        if "crash" in head:
            told = f"device {request.device.id}, round {request.round}: {head['crash']}"
            asked.found.append(_error(head["kind"], told))
            continue
        size = head.pop("size")
        worker.peak_rss_bytes = max(worker.peak_rss_bytes, head.pop("rss", 0))
        asked.found.append(Response(request=request, frame=frames[at : at + size], **head))
        at += aligned(size)


def _ended(worker: Worker) -> EngineError:
    worker.process.join(STOP_S)
    busy = ""
    if worker.asked:
        first, *others = sorted({request.device.id for request in worker.asked[0].requests})
        busy = f" while device {first}" + (f" or another up to {others[-1]}" if others else "") + " was training"
    unborn = worker.process.exitcode == 1 and worker.seconds == math.inf
    hint = (
        'a script needs if __name__ == "__main__": round its calls'
        if unborn
        else "if memory ran out, lower engine.workers"
    )
    return EngineError(f"a worker ended with exit code {worker.process.exitcode}{busy}; {hint}")


def _error(kind: str, text: str) -> PotluckError:
    """What a worker raised: one of our own errors keeps its kind, any other is an EngineError with the traceback."""
    found = vars(errors).get(kind)
    own = isinstance(found, type) and issubclass(found, PotluckError) and found is not errors.MissingExtraError
    return found(text) if isinstance(found, type) and own else EngineError(text)


def _head(request: Request, again: bool) -> dict[str, Any]:
    device = dataclasses.asdict(request.device)
    return {"device": device, "round": request.round, "verb": request.verb, "ack": request.ack, "again": again}
