"""Devices in worker processes: one resident net a tier and worker, data in shared memory, replies as bytes.

Workers are spawned, obey ``threads``, and end when their parent does. One thread of this process serves each worker, so
that a worker gets its next order while this process merges. At most twice as many orders as workers run ahead of what
has been taken, so memory stays O(one model) whatever the number of devices.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from queue import SimpleQueue
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


@dataclasses.dataclass(slots=True)
class Worker:
    """A process and this side of its pipe."""

    process: Any
    pipe: Connection
    peak_rss_bytes: int = 0
    held: Buffer | None = None
    """The frame that it was sent last: devices of a tier are sent the same one, which then travels once."""


class Pool:
    """An engine of worker processes; a context manager. ``make_side`` and its ``arguments`` travel to the workers."""

    def __init__(
        self, make_side: Callable[..., DeviceSide], arguments: tuple[Any, ...], *, workers: int, threads: int
    ) -> None:
        context = mp.get_context("spawn")
        self._workers: list[Worker] = []
        self._free: SimpleQueue[Worker] = SimpleQueue()
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="potluck-pool")
        for number in range(workers):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=work, args=(theirs, threads, make_side, arguments), name=f"potluck-{number}", daemon=True
            )
            process.start()
            theirs.close()
            worker = Worker(process, ours)
            self._workers.append(worker)
            self._free.put(worker)

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.pipe.close()
        for worker in self._workers:
            worker.process.join(0.0 if error is not None else STOP_S)
            if worker.process.is_alive():
                worker.process.terminate()
                worker.process.join()
        self._threads.shutdown(wait=True, cancel_futures=True)

    @property
    def peak_rss_bytes(self) -> int:
        """The workers' largest resident memory, summed."""
        return sum(worker.peak_rss_bytes for worker in self._workers)

    @property
    def pids(self) -> list[int]:
        """The workers' process ids."""
        return [worker.process.pid for worker in self._workers]

    def exchange(self, orders: Iterable[Order], deadline_s: float | None) -> Iterator[Delivery]:
        source, running = iter(orders), deque[Future[Delivery]]()
        try:
            while True:
                while len(running) < AHEAD * len(self._workers):
                    order = next(source, None)
                    if order is None:
                        break
                    running.append(self._threads.submit(self._carry, order))
                if not running:
                    return
                yield judged(running.popleft().result(), deadline_s)
        finally:
            for future in running:
                future.cancel()

    def _carry(self, order: Order) -> Delivery:
        worker = self._free.get()
        try:
            again = worker.held is order.frame
            worker.pipe.send_bytes(_head(order, again))
            if not again:
                worker.pipe.send_bytes(order.frame)
                worker.held = order.frame
            head = json.loads(worker.pipe.recv_bytes())
            frame = worker.pipe.recv_bytes()
        except (EOFError, OSError) as error:
            worker.process.join(STOP_S)
            raise EngineError(
                f"a worker ended with exit code {worker.process.exitcode} while device {order.device.id} was training; "
                "if memory ran out, lower engine.workers"
            ) from error
        finally:
            self._free.put(worker)
        if "crash" in head:
            raise _error(head["kind"], f"device {order.device.id}, round {order.round}: {head['crash']}")
        worker.peak_rss_bytes = max(worker.peak_rss_bytes, head.pop("rss"))
        return Delivery(order=order, frame=frame, **head)


def _error(kind: str, text: str) -> PotluckError:
    """What a worker raised: one of our own errors keeps its kind, any other is an EngineError with the traceback."""
    found = vars(errors).get(kind)
    own = isinstance(found, type) and issubclass(found, PotluckError) and found is not errors.MissingExtraError
    return found(text) if isinstance(found, type) and own else EngineError(text)


def _head(order: Order, again: bool) -> bytes:
    device = dataclasses.asdict(order.device)
    head = {"device": device, "round": order.round, "verb": order.verb, "ack": order.ack, "again": again}
    return json.dumps(head).encode()


def work(
    pipe: Connection, threads: int, make_side: Callable[..., DeviceSide], arguments: tuple[Any, ...]
) -> None:  # pragma: no cover - runs in a spawned process
    """A worker's life: build the devices' side, then answer orders until the pipe closes or the parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    keep_freed_memory()
    side: DeviceSide | None = None
    frame = bytearray()
    while True:
        try:
            head = json.loads(pipe.recv_bytes())
            if not head.pop("again"):
                frame = bytearray(pipe.recv_bytes())
        except (EOFError, OSError):
            return
        try:
            side = side or make_side(*arguments)
            device = Device(**head.pop("device"))
            delivery = side.answer(Order(device=device, frame=frame, **head))
        except Exception as error:
            told = str(error) if isinstance(error, PotluckError) else traceback.format_exc()
            pipe.send_bytes(json.dumps({"crash": told, "kind": type(error).__name__}).encode())
            pipe.send_bytes(b"-")
            continue
        facts = {
            "status": delivery.status,
            "seconds": delivery.seconds,
            "reason": delivery.reason,
            "parts": dict(delivery.parts),
            "rss": peak_rss_bytes(),
        }
        pipe.send_bytes(json.dumps(facts).encode())
        pipe.send_bytes(delivery.frame or b"-")


def _end_with_parent() -> None:  # pragma: no cover - runs in a spawned process
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
