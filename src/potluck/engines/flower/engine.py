"""Devices behind Flower: a request is a message, a frame travels as opaque bytes, the deadline is the message's TTL.

Flower carries and keeps apart; what is averaged, who takes part and what a byte means stays with the round loop. Its
node ids are no device numbers: each node first says which device it is (``hello``), and whose answer does not fit the
fleet is refused by name. Nodes that appear later say hello beside a round's work and take part from the next one on.

A device that fails three times in a row sits out two rounds.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from potluck.core.errors import EngineError, MissingExtraError, WireError
from potluck.engines.contract import Request, Response
from potluck.engines.device import DeviceRuntime
from potluck.engines.flower.frames import ACTIONS, BY_SERVER, HELLO, SET_UP, fault_of, pack, unpack
from potluck.engines.flower.handshake import ExpectedFleet, unfit
from potluck.engines.flower.polling import ReplyPoller, pause
from potluck.engines.flower.private import poll_often, size_of

try:
    from flwr.app import ConfigRecord, Context, Message, RecordDict
    from flwr.serverapp import Grid, ServerApp
except ImportError:
    raise MissingExtraError("a fleet on Flower", "flower") from None

POLL_S, HELLO_S, AGAIN_S = 0.5, 300.0, 60.0
"""Seconds between two looks; that a node has to say hello; and until one that was refused, and may be mended, is asked
again."""
IN_MEMORY = 64 * 2**20
"""Bytes of early replies that are kept in memory; beyond, they wait on disk."""
STRIKES, PAUSE = 3, 2


@dataclass(slots=True, kw_only=True)
class _Asked:
    """A request that is out, and what came of it."""

    request: Request
    start: float
    sent: int = 0
    """Bytes of its message."""
    response: Response | None = None
    spooled: Path | None = None

    def carried(self, up: int) -> dict[str, int]:
        """Bytes of the messages, by direction."""
        return {"down": self.sent, "up": up}


@dataclass(slots=True)
class FlowerEngine:
    """Carries requests over a Grid. ``runtime`` answers what is evaluated at the server; ``tell`` hears of joins."""

    grid: Grid
    fleet: ExpectedFleet
    runtime: DeviceRuntime
    tell: Callable[[Mapping[str, Any]], None]
    poll_s: float = POLL_S
    nodes: dict[int, int] = field(default_factory=dict)
    """Node id by device number."""
    _greeted: dict[int, float] = field(default_factory=dict)
    _hellos: dict[str, int] = field(default_factory=dict)
    _refused: dict[int, str] = field(default_factory=dict)
    _strikes: Counter[int] = field(default_factory=Counter)
    _resting: dict[int, int] = field(default_factory=dict)
    _looks: ReplyPoller = field(init=False)

    def __post_init__(self) -> None:
        self._looks = ReplyPoller(grid=self.grid)

    def join(self) -> None:
        """Waits until all devices said hello, or ``least`` by the time-out. Raises EngineError naming who did not."""
        until, wanted = time.monotonic() + self.fleet.join_timeout_s, len(self.fleet.devices)
        while len(self._here()) < wanted and time.monotonic() < until:
            self._greet()
            time.sleep(self.poll_s)
        here = self._here()
        if len(here) < max(1, self.fleet.least or wanted):
            missing = [str(device.id) for device in self.fleet.devices if device.id not in here]
            told = "".join(f"; {reason}" for reason in self._refused.values())
            raise EngineError(
                f"{len(here)} of {wanted} devices joined within {self.fleet.join_timeout_s:g} s, expected "
                f"{self.fleet.least or wanted}: missing {', '.join(missing)}{told}; start them with potluck join, or "
                "lower engine.min_devices"
            )

    def exchange(self, requests: Iterable[Request], deadline_s: float | None) -> Iterator[Response]:
        deadline_s = self.fleet.deadline_s if deadline_s is None else deadline_s
        asked: list[_Asked] = []
        here: set[int] | None = None
        by_message: dict[str, int] = {}
        for request in requests:
            if request.verb == "score":
                yield self.runtime.answer(request)
                continue
            here = self._require_somebody() if here is None else here
            found = _Asked(request=request, start=time.monotonic())
            asked.append(found)
            why = self._absent(request, here)
            if why:
                nothing = {"down": 0, "up": 0}
                found.response = Response(request=request, status="lost", reason=why, sent=False, engine_bytes=nothing)
            else:
                by_message[self._push(found, deadline_s)] = len(asked) - 1
        with tempfile.TemporaryDirectory(prefix="potluck-replies-") as spool:
            yield from self._gather(asked, by_message, deadline_s, Path(spool))

    def _push(self, asked: _Asked, ttl: float) -> str:
        request = asked.request
        facts = ConfigRecord({"verb": request.verb, "round": request.round, "ack": request.ack})
        content = RecordDict({"frame": pack(request.frame), "order": facts})
        message = Message(
            content,
            dst_node_id=self.nodes[request.device.id],
            message_type=ACTIONS[request.verb],
            ttl=ttl,
            group_id=str(request.round),
        )
        name = _first(self.grid.push_messages([message]))
        asked.sent = size_of(message)
        return name

    def _gather(
        self, asked: list[_Asked], by_message: dict[str, int], deadline_s: float, spool: Path
    ) -> Iterator[Response]:
        """The responses in the order of the orders; early replies wait, on disk where they are many."""
        held = 0
        for position, first in enumerate(asked):
            while first.response is None:
                came = False
                for message in self._looks.replies(list(by_message)):
                    at = by_message.pop(message.metadata.reply_to_message_id)
                    response = self._read(asked[at], message, deadline_s)
                    if at != position and held + len(response.frame) > IN_MEMORY:
                        asked[at].spooled = spool / str(at)
                        asked[at].spooled.write_bytes(response.frame)  # type: ignore[union-attr]
                        response = replace(response, frame=b"")
                    held += len(response.frame)
                    asked[at].response, came = response, True
                self._greet()
                for at in list(by_message.values()):
                    if time.monotonic() - asked[at].start > deadline_s:
                        asked[at].response = _late(asked[at], deadline_s)
                for name in [name for name, at in by_message.items() if asked[at].response is not None]:
                    del by_message[name]
                    self._looks.forget(name)
                if first.response is None and not came:
                    time.sleep(pause(self.poll_s, len(by_message)))
            response, first.response = first.response, None
            held -= len(response.frame)
            if first.spooled is not None:
                response = replace(response, frame=first.spooled.read_bytes())
                first.spooled.unlink()
            self._count(response)
            yield response

    def _read(self, asked: _Asked, message: Message, deadline_s: float) -> Response:
        request, seconds = asked.request, time.monotonic() - asked.start
        if message.has_error():
            code = message.error.code
            status, reason = fault_of(code, str(message.error.reason or ""), request, seconds >= deadline_s)
            carried = asked.carried(0 if code in BY_SERVER else size_of(message))
            return Response(request=request, status=status, reason=reason, seconds=seconds, engine_bytes=carried)
        if seconds > deadline_s:
            return _late(asked, deadline_s)
        carried = asked.carried(size_of(message))
        try:
            frame = unpack(message.content)
            facts: Mapping[str, Any] = message.content.config_records["reply"]
            told, reason = str(facts["status"]), str(facts["reason"])[:1000]
            names, values = facts["parts"], facts["part_seconds"]
            parts = {str(name): float(value) for name, value in zip(names, values, strict=True)}
        except (WireError, KeyError, ValueError, TypeError) as error:
            reason = f"device {request.device.id}: the reply is not of the expected form: {error}"
            return Response(request=request, status="rejected", reason=reason, seconds=seconds, engine_bytes=carried)
        status = "ok" if told == "ok" else "rejected"
        return Response(
            request=request,
            status=status,
            frame=frame,
            reason=reason,
            seconds=seconds,
            parts=parts,
            engine_bytes=carried,
        )

    def _count(self, response: Response) -> None:
        device = response.request.device.id
        if response.request.verb == "train" and device in self.nodes and device not in self._resting:
            self._strikes[device] = 0 if response.status == "ok" else self._strikes[device] + 1
            if self._strikes[device] == STRIKES:
                self._resting[device], self._strikes[device] = response.request.round + PAUSE, 0
                self.tell({"event": "rests", "device": device, "rounds": PAUSE})

    def _absent(self, request: Request, here: set[int]) -> str:
        """Why this device cannot be asked now; "" if it can."""
        device = request.device.id
        if self._resting.get(device, 0) >= request.round:
            return f"device {device} sits out after {STRIKES} failures in a row"
        self._resting.pop(device, None)
        if device not in here:
            return f"device {device} is not connected"
        return ""

    def _here(self) -> set[int]:
        online = set(self.grid.get_node_ids())
        return {device for device, node in self.nodes.items() if node in online}

    def _require_somebody(self) -> set[int]:
        """The devices that are connected; waits for the least number of them. Raises EngineError."""
        until, least = time.monotonic() + self.fleet.join_timeout_s, max(1, self.fleet.least)
        self._greet()
        while len(here := self._here()) < least:
            if time.monotonic() > until:
                raise EngineError(
                    f"{len(here)} devices connected, expected {least} (engine.min_devices), for "
                    f"{self.fleet.join_timeout_s:g} s: start more of them, then go on with the same command"
                )
            time.sleep(self.poll_s)
            self._greet()
        return here

    def _greet(self) -> None:
        """Asks nodes that are not known yet which device they are, and hears those that answer."""
        now = time.monotonic()
        for node in self.grid.get_node_ids():
            patience = HELLO_S if node in self._hellos.values() else AGAIN_S if node in self._refused else 0.0
            if node not in self.nodes.values() and now - self._greeted.get(node, 0.0) >= patience:
                ask = ConfigRecord({"digest": self.fleet.digest, "version": self.fleet.version})
                message = Message(RecordDict({"hello": ask}), dst_node_id=node, message_type=HELLO, ttl=HELLO_S)
                self._hellos[_first(self.grid.push_messages([message]))] = node
                self._greeted[node] = now
        for message in self._looks.replies(list(self._hellos)):
            self._hear(self._hellos.pop(message.metadata.reply_to_message_id), message)

    def _hear(self, node: int, message: Message) -> None:
        if message.has_error():
            if message.error.code in SET_UP:
                raise EngineError(f"the app does not start on node {node}: {message.error.reason}")
            return  # it is asked again
        if node in self.nodes.values():
            return  # it was slow, and has been asked twice
        said: Mapping[str, Any] = message.content.config_records.get("hello", ConfigRecord())
        number = said.get("device")
        fault = str(said.get("fault", "") or "") or unfit(self.fleet, self.nodes, node, said)
        if fault:
            reason = f"node {node} (device {number}) is refused: {fault}"[:1000]
            if self._refused.get(node) != reason:
                self.tell({"event": "refused", "reason": reason})
            self._refused[node] = reason
            return
        assert isinstance(number, int), "checked"
        self.nodes[number] = node
        self._refused.pop(node, None)
        told = {"tier": str(said["tier"]), "torch": str(said.get("torch", ""))}
        self.tell({"event": "joined", "device": number, **told})


def make_server_app(main: Callable[[Grid, Mapping[str, Any]], None]) -> ServerApp:
    """The ServerApp that calls ``main`` with the grid and the run's configuration."""
    app = ServerApp()

    @app.main()  # type: ignore[untyped-decorator, unused-ignore]
    def _main(grid: Grid, context: Context) -> None:
        poll_often()
        main(grid, context.run_config)

    return app


def _first(ids: Iterable[str]) -> str:
    found = next(iter(ids), None)
    if not found:
        raise EngineError("the SuperLink took no message: is it running, and is the frame below 2 GB?")
    return found


def _late(asked: _Asked, deadline_s: float) -> Response:
    reason = f"device {asked.request.device.id}: no answer within {deadline_s:g} s"
    seconds = time.monotonic() - asked.start
    return Response(request=asked.request, status="late", reason=reason, seconds=seconds, engine_bytes=asked.carried(0))
