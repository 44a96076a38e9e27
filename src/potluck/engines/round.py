"""The one loop: cohort, cast, exchange, merge, evaluate. It does no I/O; whoever calls it keeps what it yields.

One round of a Star method:

    for device in cohort:  frame = write_down(cast(state, device))      -> engine -> device trains
                           reply = read_up(frame), checked against expect(state, device)
    state = merge(state, replies in device order)
    late, lost, rejected: written to the ledger, not merged

The round of a Mesh stands in peers.py; what a relay still holds for its devices at the end, in settle.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from potluck.core import meter, tree
from potluck.core.errors import WireError
from potluck.core.types import Desk, Reply
from potluck.engines.course import Course, Played, Snapshot, demand_one_sound, notes_of, rows_of
from potluck.engines.measure import measure
from potluck.engines.peers import peers_round
from potluck.engines.seam import Delivery, Engine, Order
from potluck.engines.settle import settle


def begin(course: Course) -> Snapshot:
    """The snapshot before the first round."""
    if course.method.traits.peers:
        return Snapshot(round=0, state={})
    return Snapshot(round=0, state=course.method.start(course.desk(0)))


def play(
    course: Course, engine: Engine, snapshot: Snapshot, last: int, enough: Callable[[Played], bool] = lambda _: False
) -> Iterator[Played]:
    """Plays the rounds after ``snapshot`` up to ``last``, or until one is ``enough``, and yields each.

    The last one is evaluated in full.
    """
    over = False
    while not over and snapshot.round < last:
        one_round = peers_round if course.method.traits.peers else _round
        played = one_round(course, engine, snapshot)
        snapshot = played.snapshot
        final = snapshot.round == last
        if final or snapshot.round % course.evaluate_every == 0:
            measure(course, engine, played, samples=0 if final else course.evaluate_samples)
        over = enough(played)
        if over and not final and (course.evaluate_samples or not played.scores):
            measure(course, engine, played, samples=0)
        if course.method.traits.relayed and (over or final):
            settle(course, engine, played)
        yield played


def _round(course: Course, engine: Engine, before: Snapshot) -> Played:
    number, fleet, method = before.round + 1, course.fleet, course.method
    desk, cohort = course.desk(number), fleet.cohort(number)
    played = Played(snapshot=before, cohort=[device.id for device in cohort])
    acks, own, codec = dict(before.acks), dict(before.own), dict(before.codec)
    written: dict[tuple[tuple[str, int], ...], tuple[Any, bytearray, int]] = {}
    failed: list[str] = []

    def orders() -> Iterator[Order]:
        last: Any = None
        for device in cohort:
            down = method.cast(before.state, device, desk)
            if down is not last:
                last, key = down, tuple((path, id(leaf)) for path, leaf in tree.leaves(down))
            if key not in written:  # devices that are sent the same tensors share one frame
                start = time.perf_counter()
                written[key] = (down, *course.letters.write_down(down, number))
                played.spent("encode", time.perf_counter() - start)
            _, made, size = written[key]
            ack = before.acks.get(device.id, 0)
            yield Order(device=device, round=number, verb="train", frame=made, ack=ack, tensor_bytes=size)

    def replies() -> Iterator[Reply[Any]]:
        for delivery in engine.exchange(orders(), fleet.deadline_s):
            device = delivery.order.device
            if delivery.status == "rejected":
                failed.append(delivery.reason)
            reply, facts = _admit(course, before.state, desk, delivery, played)
            if reply is not None:
                digests = str(facts.get("own", "")), str(facts.get("codec_memory", ""))
                acks[device.id] = number if any(digests) else 0
                own[device.id], codec[device.id] = digests
                yield reply

    stream, start = replies(), time.perf_counter()
    with meter.metering() as costs:  # of the server's own work: a device's meter is its own
        state = method.merge(before.state, stream, desk)
        for _ in stream:  # a method that needs no replies need not read them
            pass
    played.spent("exchange and merge", time.perf_counter() - start)
    for part, seconds in costs.seconds.items():
        played.spent(f"server {part}", seconds)
    played.server_notes.update(costs.notes)
    demand_one_sound(failed, played.cohort)
    played.seconds = _round_seconds(played, fleet.deadline_s)
    played.snapshot = Snapshot(
        round=number,
        state=state,
        acks=acks,
        own=own,
        codec=codec,
        simulated_seconds=before.simulated_seconds + played.seconds,
    )
    return played


def _admit(
    course: Course, state: Any, desk: Desk, delivery: Delivery, played: Played
) -> tuple[Reply[Any] | None, Mapping[str, Any]]:
    """The reply of a delivery that is to be merged, and its facts; the ledger rows of any delivery."""
    order, device = delivery.order, delivery.order.device
    status, reason, reply = delivery.status, delivery.reason, None
    facts: Mapping[str, Any] = {}
    up_tensors = 0
    if status == "ok":
        start = time.perf_counter()
        try:
            expected = course.method.expect(state, device, desk)
            up, header = course.letters.read_up(delivery.frame, order.round, device.id, expected)
            facts, up_tensors = header.facts, header.tensor_bytes
            reply = Reply(device=device, round=order.round, up=up)
            played.notes[device.id] = notes_of(up, facts, device)
        except WireError as error:
            status, reason, reply = "rejected", str(error), None
        played.spent("decode", time.perf_counter() - start)
    for part, seconds in delivery.parts.items():
        played.spent(f"device {part}", seconds)
    played.rows += rows_of(delivery, up_tensors, status, reason)
    return reply, facts


def _round_seconds(played: Played, deadline_s: float) -> float:
    """The round is over with the slowest device, or with the loss of one; who is late has been waited for in vain."""
    return min(deadline_s, max((row.seconds for row in played.rows), default=0.0))
