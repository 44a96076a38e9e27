"""One round of a Mesh: every peer posts, then absorbs the posts of the others that arrived. There is no server.

    for peer in cohort:  frame = write_up(post(own))                    -> to each of the others
    for peer in cohort:  own = absorb(own, posts of the others)         -> stays on the peer
    late, lost, rejected posts: written to the ledger, absorbed by nobody; such a peer sits the round out

The loop stands for the wires between peers: it hands each one the others' frames, byte for byte. A peer's own state
advances only with a completed absorb. A post crosses as many links as there are others, up and down.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from potluck.core.errors import WireError
from potluck.core.spec import Spec
from potluck.core.types import Device, Task
from potluck.engines.course import Course, Played, Snapshot, demand_one_sound, notes_of, row
from potluck.engines.seam import Delivery, Engine, Order
from potluck.fleet import link
from potluck.wire import frame
from potluck.wire.frame import Buffer


@dataclass(frozen=True, slots=True, kw_only=True)
class Post:
    """A post that arrived: its frame, the bytes of its tensors, and when the last of the others has it."""

    device: Device
    frame: Buffer
    tensor_bytes: int
    seconds: float


def peers_round(course: Course, engine: Engine, before: Snapshot) -> Played:
    """The round after ``before``. Raises TrainingError where every peer gave up by itself."""
    number, cohort = before.round + 1, course.fleet.cohort(before.round + 1)
    played = Played(snapshot=before, cohort=[device.id for device in cohort])
    start = time.perf_counter()
    posts = _posts(course, engine, before, played, cohort)
    played.spent("post", time.perf_counter() - start)
    missing = any(row.status in ("late", "lost") for row in played.rows)
    gathered_s = max((post.seconds for post in posts.values()), default=0.0)
    gathered_s = played.seconds = course.fleet.deadline_s if missing else gathered_s
    start = time.perf_counter()
    acks, own = dict(before.acks), dict(before.own)
    for delivery in engine.exchange(_absorb_orders(before, posts, number), None):
        digest = _absorbed(course, played, posts, delivery, gathered_s)
        if digest is not None:
            acks[delivery.order.device.id], own[delivery.order.device.id] = number, digest
    played.spent("absorb", time.perf_counter() - start)
    played.snapshot = Snapshot(
        round=number,
        state={},
        acks=acks,
        own=own,
        codec=before.codec,
        simulated_seconds=before.simulated_seconds + played.seconds,
    )
    return played


def spec_of_posts(course: Course, device: Device, round: int) -> Spec:
    """What a post of the round must look like."""
    task = _task(course, device, round)
    expected: Spec = course.method.expect(course.method.start(task), task)
    return expected


def _task(course: Course, device: Device, round: int) -> Task:
    """A task without private data: what a post must look like does not depend on them."""
    assert course.public is not None, "checked before the run"
    nothing = course.public.take(torch.arange(0))
    return Task(round=round, device=device, data=nothing, public=course.public, seed=course.seed)


def _posts(course: Course, engine: Engine, before: Snapshot, played: Played, cohort: list[Device]) -> dict[int, Post]:
    """The posts that arrived by the deadline, by peer; a ledger row of each that was sent."""
    number, found, failed = before.round + 1, {}, []
    if not cohort:
        return {}
    spec = spec_of_posts(course, cohort[0], number)
    ask, _ = course.letters.write_down({}, number)
    orders = (
        Order(device=device, round=number, verb="post", frame=ask, ack=before.acks.get(device.id, 0))
        for device in cohort
    )
    copies = len(cohort) - 1
    for delivery in engine.exchange(orders, None):
        device, status, reason, size = delivery.order.device, delivery.status, delivery.reason, 0
        seconds = delivery.seconds
        if status == "ok":
            seconds += link.up_seconds(device, copies * len(delivery.frame))
            try:
                _, header = course.letters.read_up(delivery.frame, number, device.id, spec)
                size = header.tensor_bytes
            except WireError as error:
                status, reason = "rejected", str(error)
        elif status == "rejected":
            failed.append(reason)
        if status == "ok" and seconds > course.fleet.deadline_s:
            status, reason = "late", f"took {seconds:.1f} s, the deadline is {course.fleet.deadline_s:g} s"
        if status == "ok":
            found[device.id] = Post(device=device, frame=delivery.frame, tensor_bytes=size, seconds=seconds)
        _spend(played, delivery)
        sent = copies * size, copies * len(delivery.frame)
        played.rows.append(row(delivery.order, "up", *sent, seconds, status, reason))
    demand_one_sound(failed, played.cohort)
    return found


def _absorb_orders(before: Snapshot, posts: Mapping[int, Post], number: int) -> Iterator[Order]:
    for peer, post in posts.items():
        inbox = {other: found.frame for other, found in posts.items() if other != peer}
        yield absorb_order(post.device, number, before.acks.get(peer, 0), inbox)


def absorb_order(device: Device, round: int, ack: int, inbox: Mapping[int, Buffer]) -> Order:
    """The order to absorb these posts, frame by frame."""
    made = frame.encode({"inbox": {str(peer): _bytes(data) for peer, data in inbox.items()}})
    return Order(device=device, round=round, verb="absorb", frame=made, ack=ack)


def _bytes(data: Buffer) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _absorbed(
    course: Course, played: Played, posts: Mapping[int, Post], delivery: Delivery, gathered_s: float
) -> str | None:
    """The digest of the peer's new own state, or None where it has none; its notes and its ledger row."""
    order, device = delivery.order, delivery.order.device
    status, reason, digest = delivery.status, delivery.reason, None
    others = [post for peer, post in posts.items() if peer != device.id]
    sizes = sum(post.tensor_bytes for post in others), sum(len(post.frame) for post in others)
    seconds = gathered_s + link.down_seconds(device, sizes[1]) + delivery.seconds
    if status == "ok":
        try:
            _, header = course.letters.read_up(delivery.frame, order.round, device.id, {})
            played.notes[device.id] = notes_of({}, header.facts, device)
            digest = str(header.facts.get("own", ""))
        except WireError as error:
            status, reason = "rejected", str(error)
    _spend(played, delivery)
    played.rows.append(row(order, "down", *sizes, seconds, status, reason))
    played.seconds = max(played.seconds, seconds)
    return digest


def _spend(played: Played, delivery: Delivery) -> None:
    for part, seconds in delivery.parts.items():
        played.spent(f"device {part}", seconds)
