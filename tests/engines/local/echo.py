"""A devices' side that answers with what it was sent: for tests of the pool, whose workers import it by name."""

from __future__ import annotations

import os
from dataclasses import dataclass

from potluck.core.errors import TrainingError
from potluck.engines.contract import Request, Response


@dataclass(frozen=True)
class Echo:
    """``ack`` of an order says what to do: 0 to answer, 1 to fail, 2 to die."""

    compute: str = "cpu"

    def answer(self, request: Request) -> Response:
        """The frame twice, and the order's number as the seconds."""
        if request.ack == 1:
            raise TrainingError("no")
        if request.ack == 2:
            os._exit(7)
        return Response(request=request, status="ok", frame=bytes(request.frame) * 2, seconds=float(request.round))


def make_echo() -> Echo:
    """For ``Pool``."""
    return Echo()
