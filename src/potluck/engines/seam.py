"""The seam between the round loop and an engine: "carry these bytes to device d and bring me its bytes"."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from potluck.core import seeds
from potluck.core import tree as trees
from potluck.core.errors import WireError
from potluck.core.spec import Spec
from potluck.core.tree import Tree
from potluck.core.types import Device
from potluck.wire.channel import Channel
from potluck.wire.frame import Buffer, Header

Verb = Literal["train", "post", "absorb", "settle", "evaluate", "score"]
"""train: a round's work. evaluate: the device's own model, on the device. score: the server's model, at the server.

Among peers: post, then absorb. settle: what a relay still holds for a device at the end of a run."""
Status = Literal["ok", "late", "lost", "rejected"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Bytes for a device. ``ack`` is its last merged round with a state of its own (0: none): it starts from there.

    ``tensor_bytes`` are those of the frame's tensors, before zstd.
    """

    device: Device
    round: int
    verb: Verb
    frame: Buffer
    ack: int = 0
    tensor_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """What came back. ``seconds`` are the device's: measured, or simulated; of one that is missing, until it was known.

    ``parts`` are wall seconds by part. ``sent``: whether the order left. ``engine_bytes``: by direction, those of the
    messages that an engine makes of the frames, where it knows them.
    """

    order: Order
    status: Status
    frame: Buffer = b""
    seconds: float = 0.0
    reason: str = ""
    parts: Mapping[str, float] = field(default_factory=dict)
    sent: bool = True
    engine_bytes: Mapping[str, int] = field(default_factory=dict)


class Engine(Protocol):
    """Carries orders out. Deliveries come in the order of the orders, which are drawn only as far ahead as needed."""

    def exchange(self, orders: Iterable[Order], deadline_s: float | None) -> Iterator[Delivery]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Letters:
    """Trees to frames and back, per direction, with the facts that both sides check."""

    method: str
    digest: str
    """The config digest: both sides run the same experiment."""
    up: Channel
    down: Channel
    seed: int
    limit: int = 2**31 - 1
    """The most bytes of a frame whose spec is not known to its receiver."""
    newest: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """The spec that was used last, and its limit: a method may give one object for all devices of a round."""

    def _facts(self, kind: str, round: int) -> dict[str, Any]:
        return {"method": self.method, "config": self.digest, "kind": kind, "round": round}

    def write_down(self, tree: Tree, round: int) -> tuple[bytearray, int]:
        """(frame of a message to devices, bytes of its tensors before zstd)."""
        rng = seeds.generator(self.seed, round, seeds.SERVER, "codec")
        sent, _ = self.down.compress(tree, None, rng)
        return self.down.pack(sent, self._facts("down", round)), trees.nbytes(sent)

    def read_down(self, frame: Buffer, round: int) -> dict[str, Any]:
        """The message, on the device."""
        return self.down.decode(frame, facts=self._facts("down", round), limit=self.limit)[0]

    def write_up(
        self, tree: Tree, round: int, device: int, memory: Tree | None, facts: Mapping[str, Any]
    ) -> tuple[bytearray, dict[str, Any]]:
        """(frame of a reply, the codecs' new memory). ``facts`` are the device's: its digests, FLOPs and notes."""
        rng = seeds.generator(self.seed, round, device, "codec")
        sent, kept = self.up.compress(tree, memory, rng, round)
        extra: dict[str, Any] = {"codec_memory": trees.digest(kept)}
        if kept:  # a memory that outgrows the updates says that a device is drawn too rarely, or sends too little
            share = trees.norm(kept) / max(trees.norm(tree), 1e-30)
            extra["notes"] = {**facts.get("notes", {}), "codec memory over update": share}
        return self.up.pack(sent, {**facts, **extra, **self._facts("up", round), "device": device}), kept

    def _limit(self, spec: Spec) -> int:
        if self.newest.get("spec") is not spec:
            self.newest.update(spec=spec, limit=self.up.limit(spec))
        limit: int = self.newest["limit"]
        return limit

    def read_up(self, frame: Buffer, round: int, device: int, spec: Spec) -> tuple[dict[str, Any], Header]:
        """(reply, header). Raises WireError naming the device."""
        facts = {**self._facts("up", round), "device": device}
        try:
            return self.up.decode(frame, facts=facts, spec=spec, limit=self._limit(spec))
        except WireError as error:
            raise WireError(error.reason, device=device, tensor=error.tensor) from None
