"""The simplest engine: every device in this process, one after the other. Messages are real bytes all the same."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from potluck.engines.contract import Request, Response
from potluck.engines.device import DeviceRuntime


@dataclass(frozen=True, slots=True, kw_only=True)
class InProcess:
    """Answers each request at once. A device whose simulated seconds go beyond the deadline is late."""

    runtime: DeviceRuntime

    def exchange(self, requests: Iterable[Request], deadline_s: float | None) -> Iterator[Response]:
        for request in requests:
            yield apply_deadline(self.runtime.answer(request), deadline_s)


def apply_deadline(response: Response, deadline_s: float | None) -> Response:
    """The response, or ``late`` where its simulated seconds go beyond the deadline."""
    if deadline_s is None or response.status != "ok" or response.seconds <= deadline_s:
        return response
    reason = f"took {response.seconds:.1f} s, the deadline is {deadline_s:g} s"
    return replace(response, status="late", reason=reason)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Runs the block with so many torch threads: sums depend on their number, and engines must agree bitwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
