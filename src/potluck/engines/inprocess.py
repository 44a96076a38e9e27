"""The simplest engine: every device in this process, one after the other. Messages are real bytes all the same."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from potluck.engines.device import DeviceSide
from potluck.engines.seam import Delivery, Order


@dataclass(frozen=True, slots=True, kw_only=True)
class InProcess:
    """Answers each order at once. A device whose simulated seconds go beyond the deadline is late."""

    side: DeviceSide

    def exchange(self, orders: Iterable[Order], deadline_s: float | None) -> Iterator[Delivery]:
        for order in orders:
            yield judged(self.side.answer(order), deadline_s)


def judged(delivery: Delivery, deadline_s: float | None) -> Delivery:
    """The delivery, or ``late`` where its simulated seconds go beyond the deadline."""
    if deadline_s is None or delivery.status != "ok" or delivery.seconds <= deadline_s:
        return delivery
    reason = f"took {delivery.seconds:.1f} s, the deadline is {deadline_s:g} s"
    return replace(delivery, status="late", reason=reason)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Runs the block with so many torch threads: sums depend on their number, and engines must agree bitwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
