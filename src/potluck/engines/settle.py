"""The end of a relayed run: every device absorbs what the relay still holds for it, and the relay forgets it.

Afterwards the state is that of a run without a relay. A resume with more rounds goes on from there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from potluck.core.errors import WireError
from potluck.engines.course import Course, Played, rows_of
from potluck.engines.seam import Engine, Order


def settle(course: Course, engine: Engine, played: Played) -> None:
    """Replaces the snapshot of ``played`` by the settled one, and adds to its ledger. What fails stays pending."""
    before, relay = played.snapshot, course.method
    acks, own, settled, seconds = dict(before.acks), dict(before.own), set[int](), 0.0

    def orders() -> Iterator[Order]:
        desk = course.desk(before.round)
        for device in course.fleet.devices:
            if relay.pending(before.state, device):
                made, size = course.letters.write_down(relay.cast(before.state, device, desk), before.round)
                ack = before.acks.get(device.id, 0)
                yield Order(device=device, round=before.round, verb="settle", frame=made, ack=ack, tensor_bytes=size)

    for delivery in engine.exchange(orders(), course.fleet.deadline_s):
        order, device = delivery.order, delivery.order.device
        status, reason = delivery.status, delivery.reason
        if status == "ok":
            try:
                _, header = course.letters.read_up(delivery.frame, order.round, device.id, {})
                acks[device.id], own[device.id] = before.round, str(header.facts.get("own", ""))
                settled.add(device.id)
            except WireError as error:
                status, reason = "rejected", str(error)
        seconds = max(seconds, delivery.seconds)
        played.rows += rows_of(delivery, 0, status, reason)
    played.seconds += seconds
    played.snapshot = replace(
        before,
        state=relay.without(before.state, settled),
        acks=acks,
        own=own,
        simulated_seconds=before.simulated_seconds + seconds,
    )
