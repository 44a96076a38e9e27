"""A process of the pool: its life, and the messages between it and the process that looks after it."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import parent_process
from multiprocessing.connection import wait
from typing import Any

import torch

from potluck.core.errors import PotluckError
from potluck.core.types import Device
from potluck.engines.contract import Request
from potluck.engines.device import DeviceRuntime
from potluck.engines.process_memory import keep_freed_memory, peak_rss_bytes
from potluck.wire.frame import Buffer

SIZES = struct.Struct("<QQ")
"""What goes ahead of a message: the bytes of its heads, which are JSON, and of its frames."""
SMALL_BYTES = 2**16
ALIGNED = 64
"""Frames in a message begin at multiples of so many bytes, as tensors' memory does."""
LOOK_S = 0.05
"""A worker looks at its memory after so many seconds: reading it costs as much as a step of a tiny net."""


def send(link: socket.socket, heads: Sequence[Mapping[str, Any]], frames: Sequence[Buffer]) -> None:
    """A message: heads of JSON values, and frames."""
    text = json.dumps(heads).encode()
    parts: list[Buffer] = []
    for frame in frames:
        if parts:
            parts.append(bytes(aligned(len(parts[-1])) - len(parts[-1])))
        parts.append(frame)
    start = SIZES.pack(len(text), sum(map(len, parts))) + text
    if len(parts) == 1 and len(parts[0]) > SMALL_BYTES:
        link.sendall(start)
        link.sendall(parts[0])
    else:
        link.sendall(b"".join((start, *parts)))


def receive(link: socket.socket) -> tuple[list[dict[str, Any]], memoryview]:
    """The next message's heads, and its frames in memory of their own. Raises EOFError where the other side is gone."""
    start = bytearray(SIZES.size)
    _fill(link, start)
    sizes = SIZES.unpack(start)
    text, frames = bytearray(sizes[0]), torch.empty(sizes[1], dtype=torch.uint8)  # a bytearray would be zeroed first
    _fill(link, text)
    _fill(link, frames.numpy().data)
    return json.loads(text), frames.numpy().data


def aligned(size: int) -> int:
    """The next multiple of ``ALIGNED``."""
    return -(-size // ALIGNED) * ALIGNED


def _fill(link: socket.socket, room: bytearray | memoryview) -> None:
    left = memoryview(room)
    while left:
        came = link.recv_into(left, len(left), socket.MSG_WAITALL)
        if not came:
            raise EOFError
        left = left[came:]


def work(
    link: socket.socket,
    number: int,
    threads: int,
    make_runtime: Callable[..., DeviceRuntime],
    arguments: tuple[Any, ...],
) -> None:  # pragma: no cover - runs in a spawned process
    """A worker's life: build the devices' runtime, then answer requests until the link closes or the parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    keep_freed_memory()
    runtime: DeviceRuntime | None = None
    frame, looked = memoryview(b""), 0.0
    while True:
        try:
            heads, fresh = receive(link)
        except (EOFError, OSError):
            return
        told: list[dict[str, Any]] = []
        made: list[Buffer] = []
        for head in heads:
            start = time.perf_counter()
            if not head.pop("again"):
                frame = fresh
            try:
                if runtime is None:
                    runtime = make_runtime(*arguments)
                    _share_gpus(number, runtime.compute)
                device = Device(**head.pop("device"))
                response = runtime.answer(Request(device=device, frame=frame, **head))
            except Exception as error:
                text = str(error) if isinstance(error, PotluckError) else traceback.format_exc()
                told.append({"crash": text, "kind": type(error).__name__})
                continue
            made.append(response.frame)
            told.append(
                {
                    "status": response.status,
                    "seconds": response.seconds,
                    "reason": response.reason,
                    "parts": dict(response.parts),
                    "size": len(response.frame),
                    "took": time.perf_counter() - start,
                }
            )
            if time.perf_counter() - looked > LOOK_S:
                told[-1]["rss"], looked = peak_rss_bytes(), time.perf_counter()
        send(link, told, made)


def _share_gpus(number: int, compute: str) -> None:  # pragma: no cover - no GPU has been at hand
    """Workers take turns at the GPUs that there are; several may work on one."""
    if compute == "cuda":
        torch.cuda.set_device(number % torch.cuda.device_count())


def _end_with_parent() -> None:  # pragma: no cover - runs in a spawned process
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
