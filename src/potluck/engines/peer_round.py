"""One round of a PeerMethod: every peer publishes, then receives what arrived of the others. There is no server.

    for peer in cohort:  frame = write_up(publish(local_state))                      -> to each of the others
    for peer in cohort:  local_state = receive(local_state, updates of the others)   -> stays on the peer
    late, lost, rejected updates: written to the ledger, received by nobody; such a peer sits the round out

The loop stands for the wires between peers: it hands each one the others' frames, byte for byte. A local state advances
only with a completed receive. An update crosses as many links as there are others, up and down.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from potluck.core.contexts import DeviceContext
from potluck.core.errors import WireError
from potluck.core.spec import Spec
from potluck.core.types import Device
from potluck.engines.contract import Engine, Request, Response
from potluck.engines.federation import Checkpoint, Federation
from potluck.engines.result import RoundResult, ledger_row, notes_of, require_one_sound
from potluck.fleet import link
from potluck.wire import frame
from potluck.wire.frame import Buffer


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """An update that arrived: its frame, the bytes of its tensors, and when the last of the others has it."""

    device: Device
    frame: Buffer
    tensor_bytes: int
    seconds: float


def peer_round(federation: Federation, engine: Engine, before: Checkpoint) -> RoundResult:
    """The round after ``before``. Raises TrainingError where every peer gave up by itself."""
    number, cohort = before.round + 1, federation.fleet.cohort(before.round + 1)
    result = RoundResult(checkpoint=before, cohort=[device.id for device in cohort])
    start = time.perf_counter()
    updates = _published(federation, engine, before, result, cohort)
    result.spent("post", time.perf_counter() - start)
    missing = any(row.status in ("late", "lost") for row in result.rows)
    gathered_s = max((update.seconds for update in updates.values()), default=0.0)
    gathered_s = result.seconds = federation.fleet.deadline_s if missing else gathered_s
    start = time.perf_counter()
    acks, local_states = dict(before.acks), dict(before.local_states)
    for response in engine.exchange(_receive_requests(before, updates, number), None):
        digest = _received(federation, result, updates, response, gathered_s)
        if digest is not None:
            acks[response.request.device.id], local_states[response.request.device.id] = number, digest
    result.spent("absorb", time.perf_counter() - start)
    result.checkpoint = Checkpoint(
        round=number,
        state={},
        acks=acks,
        local_states=local_states,
        codec=before.codec,
        simulated_seconds=before.simulated_seconds + result.seconds,
    )
    return result


def spec_of_updates(federation: Federation, device: Device, round: int) -> Spec:
    """What an update of the round must look like: of a context without private data, on which it does not depend."""
    assert federation.public is not None, "checked before the run"
    nothing = federation.public.take(torch.arange(0))
    context = DeviceContext(round=round, device=device, data=nothing, public=federation.public, seed=federation.seed)
    expected: Spec = federation.method.update_spec(federation.method.initial_state(context), context)
    return expected


def _published(
    federation: Federation, engine: Engine, before: Checkpoint, result: RoundResult, cohort: list[Device]
) -> dict[int, Published]:
    """The updates that arrived by the deadline, by peer; a ledger row of each that was sent."""
    number, found, failed = before.round + 1, {}, []
    if not cohort:
        return {}
    spec = spec_of_updates(federation, cohort[0], number)
    ask, _ = federation.messages.write_down({}, number)
    requests = (
        Request(device=device, round=number, verb="post", frame=ask, ack=before.acks.get(device.id, 0))
        for device in cohort
    )
    copies = len(cohort) - 1
    for response in engine.exchange(requests, None):
        device, status, reason, size = response.request.device, response.status, response.reason, 0
        seconds = response.seconds
        if status == "ok":
            seconds += link.up_seconds(device, copies * len(response.frame))
            try:
                _, header = federation.messages.read_up(response.frame, number, device.id, spec)
                size = header.tensor_bytes
            except WireError as error:
                status, reason = "rejected", str(error)
        elif status == "rejected":
            failed.append(reason)
        if status == "ok" and seconds > federation.fleet.deadline_s:
            status, reason = "late", f"took {seconds:.1f} s, the deadline is {federation.fleet.deadline_s:g} s"
        if status == "ok":
            found[device.id] = Published(device=device, frame=response.frame, tensor_bytes=size, seconds=seconds)
        _spend(result, response)
        sent = copies * size, copies * len(response.frame)
        result.rows.append(ledger_row(response.request, "up", *sent, seconds, status, reason))
    require_one_sound(failed, result.cohort)
    return found


def _receive_requests(before: Checkpoint, updates: Mapping[int, Published], number: int) -> Iterator[Request]:
    for peer, update in updates.items():
        inbox = {other: found.frame for other, found in updates.items() if other != peer}
        yield receive_request(update.device, number, before.acks.get(peer, 0), inbox)


def receive_request(device: Device, round: int, ack: int, inbox: Mapping[int, Buffer]) -> Request:
    """The request to receive these updates, frame by frame."""
    made = frame.encode({"inbox": {str(peer): _bytes(data) for peer, data in inbox.items()}})
    return Request(device=device, round=round, verb="absorb", frame=made, ack=ack)


def _bytes(data: Buffer) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _received(
    federation: Federation,
    result: RoundResult,
    updates: Mapping[int, Published],
    response: Response,
    gathered_s: float,
) -> str | None:
    """The digest of the peer's new local state, or None where it has none; its notes and its ledger row."""
    request, device = response.request, response.request.device
    status, reason, digest = response.status, response.reason, None
    others = [update for peer, update in updates.items() if peer != device.id]
    sizes = sum(update.tensor_bytes for update in others), sum(len(update.frame) for update in others)
    seconds = gathered_s + link.down_seconds(device, sizes[1]) + response.seconds
    if status == "ok":
        try:
            _, header = federation.messages.read_up(response.frame, request.round, device.id, {})
            result.notes[device.id] = notes_of({}, header.facts, device)
            digest = str(header.facts.get("own", ""))
        except WireError as error:
            status, reason = "rejected", str(error)
    _spend(result, response)
    result.rows.append(ledger_row(request, "down", *sizes, seconds, status, reason))
    result.seconds = max(result.seconds, seconds)
    return digest


def _spend(result: RoundResult, response: Response) -> None:
    for part, seconds in response.parts.items():
        result.spent(f"device {part}", seconds)
