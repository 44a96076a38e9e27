"""Devices in worker processes: one resident net a tier and worker, data in shared memory, replies as bytes.

Workers are clean processes, obey ``threads``, and end when their parent does. On Linux they are forked from one that
has done the imports and nothing else, so that the next run's begin at once. This process looks after them between two
merges, without threads: a worker whose orders take less than such a look has its next one with it. At most twice as
many orders as workers run ahead of what has been taken, so memory stays O(one model) whatever the number of devices.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import selectors
import signal
import socket
import struct
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from multiprocessing import parent_process
from multiprocessing.connection import wait
from types import TracebackType
from typing import Any

import torch
import torch.multiprocessing as mp

from potluck.core import errors
from potluck.core.errors import EngineError, PotluckError
from potluck.core.types import Device
from potluck.engines.device import DeviceSide
from potluck.engines.inprocess import judged
from potluck.engines.memory import keep_freed_memory, peak_rss_bytes
from potluck.engines.seam import Delivery, Order
from potluck.wire.frame import Buffer

AHEAD = 2
STOP_S = 5.0
"""Seconds that a worker gets to end by itself."""
SIZES = struct.Struct("<QQ")
"""What goes ahead of a message: the bytes of its head, which is JSON, and of its frame."""
SMALL_BYTES, SHORT_S = 2**16, 0.02
LOOK_S = 0.05
"""A worker looks at its memory after so many seconds: reading it costs as much as a step of a tiny net."""


@dataclasses.dataclass(slots=True)
class Asked:
    """An order that a worker has, and what came of it."""

    order: Order
    delivery: Delivery | None = None
    error: PotluckError | None = None

    @property
    def over(self) -> bool:
        """Whether the worker has answered."""
        return self.delivery is not None or self.error is not None


@dataclasses.dataclass(slots=True)
class Worker:
    """A process and this side of the link to it."""

    process: Any
    link: socket.socket
    asked: deque[Asked] = dataclasses.field(default_factory=deque)
    """The orders that it has not answered."""
    seconds: float = math.inf
    """What its last order took."""
    peak_rss_bytes: int = 0
    held: Buffer | None = None
    """The frame that it was sent last: devices of a tier are sent the same one, which then travels once."""

    def takes(self, order: Order) -> bool:
        """Whether to give it the order now: it is idle, or will be at once and has the frame.

        A long frame is only sent to an idle worker, which reads it: both sides writing would wait for ever.
        """
        return not self.asked or (len(self.asked) < AHEAD and self.held is order.frame and self.seconds < SHORT_S)


class Pool:
    """An engine of worker processes; a context manager. ``make_side`` and its ``arguments`` travel to the workers."""

    def __init__(
        self, make_side: Callable[..., DeviceSide], arguments: tuple[Any, ...], *, workers: int, threads: int
    ) -> None:
        context: Any = mp.get_context("forkserver" if sys.platform == "linux" else "spawn")
        if sys.platform == "linux":
            context.set_forkserver_preload([make_side.__module__])
        self._workers: list[Worker] = []
        self._links = selectors.DefaultSelector()
        for number in range(workers):
            ours, theirs = socket.socketpair()
            process = context.Process(
                target=work, args=(theirs, number, threads, make_side, arguments), name=f"potluck-{number}", daemon=True
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

    def exchange(self, orders: Iterable[Order], deadline_s: float | None) -> Iterator[Delivery]:
        source, given = iter(orders), deque[Asked]()
        next_up = next(source, None)
        while next_up is not None or given:
            while next_up is not None and len(given) < AHEAD * len(self._workers):
                worker = min(self._workers, key=lambda worker: len(worker.asked))
                if not worker.takes(next_up):
                    break
                given.append(_give(worker, next_up))
                next_up = next(source, None)
            first = given[0] if given else None
            for key, _ in self._links.select(0 if first is not None and first.over else None):
                _hear(key.data)
            if first is not None and first.over:
                given.popleft()
                if first.error is not None:
                    raise first.error
                assert first.delivery is not None, "it is over"
                yield judged(first.delivery, deadline_s)


def _give(worker: Worker, order: Order) -> Asked:
    asked = Asked(order)
    worker.asked.append(asked)
    again = worker.held is order.frame
    try:
        send(worker.link, _head(order, again), b"" if again else order.frame)
    except OSError as error:
        raise _ended(worker) from error
    worker.held = order.frame
    return asked


def _hear(worker: Worker) -> None:
    try:
        head, frame = receive(worker.link)
    except (EOFError, OSError) as error:
        raise _ended(worker) from error
    asked = worker.asked.popleft()
    if "crash" in head:
        told = f"device {asked.order.device.id}, round {asked.order.round}: {head['crash']}"
        asked.error = _error(head["kind"], told)
        return
    worker.seconds = head.pop("took")
    worker.peak_rss_bytes = max(worker.peak_rss_bytes, head.pop("rss", 0))
    asked.delivery = Delivery(order=asked.order, frame=frame, **head)


def _ended(worker: Worker) -> EngineError:
    worker.process.join(STOP_S)
    busy = f" while device {worker.asked[0].order.device.id} was training" if worker.asked else ""
    return EngineError(
        f"a worker ended with exit code {worker.process.exitcode}{busy}; if memory ran out, lower engine.workers"
    )


def _error(kind: str, text: str) -> PotluckError:
    """What a worker raised: one of our own errors keeps its kind, any other is an EngineError with the traceback."""
    found = vars(errors).get(kind)
    own = isinstance(found, type) and issubclass(found, PotluckError) and found is not errors.MissingExtraError
    return found(text) if isinstance(found, type) and own else EngineError(text)


def _head(order: Order, again: bool) -> dict[str, Any]:
    device = dataclasses.asdict(order.device)
    return {"device": device, "round": order.round, "verb": order.verb, "ack": order.ack, "again": again}


def send(link: socket.socket, head: Mapping[str, Any], frame: Buffer) -> None:
    """A message: a head of JSON values, and a frame."""
    text = json.dumps(head).encode()
    start = SIZES.pack(len(text), len(frame)) + text
    if len(frame) <= SMALL_BYTES:
        link.sendall(b"".join((start, frame)))
        return
    link.sendall(start)
    link.sendall(frame)


def receive(link: socket.socket) -> tuple[dict[str, Any], memoryview]:
    """The next message, in memory of its own. Raises EOFError where the other side is gone."""
    head = bytearray(SIZES.size)
    _fill(link, head)
    sizes = SIZES.unpack(head)
    text, frame = bytearray(sizes[0]), torch.empty(sizes[1], dtype=torch.uint8)  # a bytearray would be zeroed first
    _fill(link, text)
    _fill(link, frame.numpy().data)
    return json.loads(text), frame.numpy().data


def _fill(link: socket.socket, room: bytearray | memoryview) -> None:
    left = memoryview(room)
    while left:
        came = link.recv_into(left, len(left), socket.MSG_WAITALL)
        if not came:
            raise EOFError
        left = left[came:]


def work(
    link: socket.socket, number: int, threads: int, make_side: Callable[..., DeviceSide], arguments: tuple[Any, ...]
) -> None:  # pragma: no cover - runs in a spawned process
    """A worker's life: build the devices' side, then answer orders until the link closes or the parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    keep_freed_memory()
    side: DeviceSide | None = None
    frame, looked = memoryview(b""), 0.0
    while True:
        try:
            head, fresh = receive(link)
        except (EOFError, OSError):
            return
        start = time.perf_counter()
        if not head.pop("again"):
            frame = fresh
        try:
            if side is None:
                side = make_side(*arguments)
                _share_gpus(number, side.compute)
            device = Device(**head.pop("device"))
            delivery = side.answer(Order(device=device, frame=frame, **head))
        except Exception as error:
            told = str(error) if isinstance(error, PotluckError) else traceback.format_exc()
            send(link, {"crash": told, "kind": type(error).__name__}, b"")
            continue
        facts = {
            "status": delivery.status,
            "seconds": delivery.seconds,
            "reason": delivery.reason,
            "parts": dict(delivery.parts),
            "took": time.perf_counter() - start,
        }
        if time.perf_counter() - looked > LOOK_S:
            facts["rss"], looked = peak_rss_bytes(), time.perf_counter()
        send(link, facts, delivery.frame)


def _share_gpus(number: int, compute: str) -> None:  # pragma: no cover - no GPU has been at hand
    """Workers take turns at the GPUs that there are; several may work on one."""
    if compute == "cuda":
        torch.cuda.set_device(number % torch.cuda.device_count())


def _end_with_parent() -> None:  # pragma: no cover - runs in a spawned process
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
