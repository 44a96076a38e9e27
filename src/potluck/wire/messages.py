"""A method's messages: trees to frames and back, per direction, with the facts that both sides check."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from potluck.core import seeds
from potluck.core import tree as trees
from potluck.core.errors import WireError
from potluck.core.spec import Spec
from potluck.core.tree import Tree
from potluck.wire.channel import Channel
from potluck.wire.frame import Buffer, Header


@dataclass(frozen=True, slots=True, kw_only=True)
class Messages:
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
