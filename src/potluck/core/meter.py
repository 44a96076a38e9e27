"""What a piece of work cost, noted on the side: FLOPs, seconds by part, and named figures for the round's record.

A method cannot read clocks. It says ``meter.add_flops(n)``, ``with meter.part("svd"):`` or ``meter.note("loss", x)``;
whoever runs the method opens a ``Meter`` round the call and reads it afterwards. Without an open meter nothing
happens. Results never depend on it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass(slots=True)
class Meter:
    """FLOPs counted, seconds by part, and notes (figures by name)."""

    flops: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)
    notes: dict[str, float] = field(default_factory=dict)


_current: ContextVar[Meter | None] = ContextVar("potluck_meter", default=None)


@contextmanager
def metering() -> Iterator[Meter]:
    """Opens a meter for the block; an inner block has its own."""
    token = _current.set(Meter())
    try:
        opened = _current.get()
        assert opened is not None
        yield opened
    finally:
        _current.reset(token)


@contextmanager
def part(name: str) -> Iterator[None]:
    """Adds the block's wall seconds to the part ``name``."""
    meter, start = _current.get(), time.perf_counter()
    try:
        yield
    finally:
        if meter is not None:
            meter.seconds[name] = meter.seconds.get(name, 0.0) + time.perf_counter() - start


def add_flops(count: float) -> None:
    """Counts floating-point operations (a multiply-add is two)."""
    meter = _current.get()
    if meter is not None:
        meter.flops += count


def note(name: str, value: float) -> None:
    """Puts a figure into the record of the round, by name; the last value of a name wins."""
    meter = _current.get()
    if meter is not None:
        meter.notes[name] = float(value)
