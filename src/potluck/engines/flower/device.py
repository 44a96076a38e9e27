"""The device's side on Flower: a new process for each message, so everything it keeps stands in its own files."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch

from potluck.core.errors import MissingExtraError, PotluckError
from potluck.core.types import Device
from potluck.engines.contract import Request, Verb
from potluck.engines.device import DeviceRuntime
from potluck.engines.flower.frames import ACTIONS, HELLO, pack, unpack
from potluck.engines.local.inprocess import torch_threads
from potluck.engines.process_memory import peak_rss_bytes

try:
    from flwr.app import ConfigRecord, Context, Message, RecordDict
    from flwr.clientapp import ClientApp
except ImportError:
    raise MissingExtraError("a fleet on Flower", "flower") from None

Settings = Mapping[str, Any]
Note = Callable[[Settings, Mapping[str, Any]], None]


def make_client_app(
    hello: Callable[[Settings, Settings], Mapping[str, Any]],
    work: Callable[[Settings, Settings], tuple[DeviceRuntime, Device, int]],
    note: Note,
) -> ClientApp:
    """The ClientApp. ``hello`` and ``work`` are given the run's and the node's configuration.

    ``hello`` says which device this is; ``work`` is the side that answers, the device, and the torch threads; ``note``
    keeps a line about what was done, on the device.
    """
    app = ClientApp()

    @app.query(HELLO.partition(".")[2])  # type: ignore[untyped-decorator, unused-ignore]
    def _hello(message: Message, context: Context) -> Message:
        said = {"torch": torch.__version__, **hello(context.run_config, context.node_config)}
        note(context.node_config, {"verb": "hello", "reason": said["fault"], **_spent()})
        return Message(RecordDict({"hello": ConfigRecord(said)}), reply_to=message)

    def answer(message: Message, context: Context) -> Message:
        start = time.perf_counter()
        runtime, device, threads = work(context.run_config, context.node_config)
        with torch_threads(threads):
            made = _answered(runtime, device, message.content)
        facts, asked = made.config_records["reply"], message.content.config_records["order"]
        line = {"round": asked["round"], "verb": asked["verb"], "status": facts["status"], "reason": facts["reason"]}
        size = len(made.array_records["frame"]["frame"].data)
        note(context.node_config, {**line, "seconds": time.perf_counter() - start, "bytes": size, **_spent()})
        return Message(made, reply_to=message)

    for action in ACTIONS.values():
        kind, _, name = action.partition(".")
        {"train": app.train, "evaluate": app.evaluate}[kind](name)(answer)
    return app


def _spent() -> dict[str, float]:
    """What this message has cost the device so far: its process began with the message."""
    return {"cpu_seconds": time.process_time(), "peak_mb": round(peak_rss_bytes() / 1e6)}


def _answered(runtime: DeviceRuntime, device: Device, content: RecordDict) -> RecordDict:
    """The reply to a request. What goes wrong by our own rules is told, not raised."""
    facts = content.config_records["order"]
    try:
        request = Request(
            device=device,
            round=cast(int, facts["round"]),
            verb=cast(Verb, facts["verb"]),
            frame=bytearray(unpack(content)),
            ack=cast(int, facts["ack"]),
        )
        request, note = _from_what_is_there(runtime, request)
        made = runtime.answer(request)
    except PotluckError as error:
        return _reply(b"", "rejected", f"device {device.id}: {error}", {})
    return _reply(made.frame, made.status, made.reason or note, made.parts)


def _from_what_is_there(runtime: DeviceRuntime, request: Request) -> tuple[Request, str]:
    """The request and "", or it from nothing and a note, where the acknowledged state is gone from this device."""
    path: Path = runtime.store.path(request.device.id, request.ack)
    if not request.ack or request.verb == "settle" or path.exists():
        return request, ""
    return replace(
        request, ack=0
    ), f"device {request.device.id} had lost its state of round {request.ack}: it began anew"


def _reply(frame: Any, status: str, reason: str, parts: Mapping[str, float]) -> RecordDict:
    facts: dict[str, Any] = {
        "status": status,
        "reason": reason,
        "parts": list(parts),
        "part_seconds": [float(seconds) for seconds in parts.values()],
    }
    return RecordDict({"frame": pack(frame), "reply": ConfigRecord(facts)})
