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
from potluck.engines.device import DeviceSide
from potluck.engines.flower_frame import ACTIONS, HELLO, pack, unpack
from potluck.engines.inprocess import torch_threads
from potluck.engines.memory import peak_rss_bytes
from potluck.engines.seam import Order, Verb

try:
    from flwr.app import ConfigRecord, Context, Message, RecordDict
    from flwr.clientapp import ClientApp
except ImportError:
    raise MissingExtraError("a fleet on Flower", "flower") from None

Settings = Mapping[str, Any]
Note = Callable[[Settings, Mapping[str, Any]], None]


def make_client_app(
    hello: Callable[[Settings, Settings], Mapping[str, Any]],
    work: Callable[[Settings, Settings], tuple[DeviceSide, Device, int]],
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
        side, device, threads = work(context.run_config, context.node_config)
        with torch_threads(threads):
            made = _answered(side, device, message.content)
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


def _answered(side: DeviceSide, device: Device, content: RecordDict) -> RecordDict:
    """The reply to an order. What goes wrong by our own rules is told, not raised."""
    facts = content.config_records["order"]
    try:
        order = Order(
            device=device,
            round=cast(int, facts["round"]),
            verb=cast(Verb, facts["verb"]),
            frame=bytearray(unpack(content)),
            ack=cast(int, facts["ack"]),
        )
        order, note = _from_what_is_there(side, order)
        made = side.answer(order)
    except PotluckError as error:
        return _reply(b"", "rejected", f"device {device.id}: {error}", {})
    return _reply(made.frame, made.status, made.reason or note, made.parts)


def _from_what_is_there(side: DeviceSide, order: Order) -> tuple[Order, str]:
    """The order and "", or the order from nothing and a note, where the acknowledged state is gone from this device."""
    path: Path = side.store.path(order.device.id, order.ack)
    if not order.ack or order.verb == "settle" or path.exists():
        return order, ""
    return replace(order, ack=0), f"device {order.device.id} had lost its state of round {order.ack}: it began anew"


def _reply(frame: Any, status: str, reason: str, parts: Mapping[str, float]) -> RecordDict:
    facts: dict[str, Any] = {
        "status": status,
        "reason": reason,
        "parts": list(parts),
        "part_seconds": [float(seconds) for seconds in parts.values()],
    }
    return RecordDict({"frame": pack(frame), "reply": ConfigRecord(facts)})
