"""The contract between the round loop and an engine: "carry these bytes to device d and bring me its bytes"."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from potluck.core.types import Device
from potluck.wire.frame import Buffer

Verb = Literal["train", "post", "absorb", "settle", "evaluate", "score"]
"""train: a round's work. evaluate: the device's own model, on the device. score: the server's model, at the server.

Among peers: post (publish), then absorb (receive). settle: what a relay still holds for a device at the end of a run.
These words stand in ledgers and on the wire."""
Status = Literal["ok", "late", "lost", "rejected"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Bytes for a device. ``ack`` is its last aggregated round with a local state (0: none): it starts from there.

    ``tensor_bytes`` are those of the frame's tensors, before zstd.
    """

    device: Device
    round: int
    verb: Verb
    frame: Buffer
    ack: int = 0
    tensor_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """What came back. ``seconds`` are the device's: measured, or simulated; of one that is missing, until it was known.

    ``parts`` are wall seconds by part. ``sent``: whether the request left. ``engine_bytes``: by direction, those of the
    messages that an engine makes of the frames, where it knows them.
    """

    request: Request
    status: Status
    frame: Buffer = b""
    seconds: float = 0.0
    reason: str = ""
    parts: Mapping[str, float] = field(default_factory=dict)
    sent: bool = True
    engine_bytes: Mapping[str, int] = field(default_factory=dict)


class Engine(Protocol):
    """Carries requests out. Responses come in their order; requests are drawn only as far ahead as needed."""

    def exchange(self, requests: Iterable[Request], deadline_s: float | None) -> Iterator[Response]: ...
