"""One direction of the wire: a chain of lossy codecs, then a frame, then perhaps zstd."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import zstandard
from torch import Tensor

from potluck.core import tree as trees
from potluck.core.errors import ConfigError, WireError
from potluck.core.plugins import loaded
from potluck.core.spec import Array, Exactly, Integers, OneOf, Spec
from potluck.core.tree import Tree
from potluck.wire import check, frame
from potluck.wire.codec import MARK, Codec, marked
from potluck.wire.codecs import CODECS, PARTS
from potluck.wire.frame import Buffer, Header

HEADER_ALLOWANCE = 64 * 2**10
"""Bytes that a header may take beyond what its names need (see Channel.limit)."""

ZSTD = "zstd"
ZSTD_SHARE = 4096
"""What cannot be compressed grows by 3 bytes in 128 KB; this is far above it."""


@dataclass(frozen=True, slots=True)
class Channel:
    """One direction of the wire: a chain of lossy codecs, then a frame, then perhaps zstd."""

    lossy: tuple[Codec, ...] = ()
    zstd_level: int | None = None

    @property
    def names(self) -> list[str]:
        """The chain as it stands in a frame's facts."""
        return [codec.name for codec in self.lossy] + ([ZSTD] if self.zstd_level is not None else [])

    def compress(
        self, tree: Tree, memory: Tree | None, rng: torch.Generator, round: int = 0
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """(the tree that is sent, new memory). The memory holds ``round``, and a node per codec that remembers."""
        kept: dict[str, Any] = {}
        if self.lossy:
            _require_names(tree)
        for codec in self.lossy:
            held = _aged(codec, memory or {}, round)
            found: dict[str, Any] = {}
            remembered: dict[str, Any] = {}
            for path, leaf in trees.leaves(tree):
                found[path] = leaf
                if isinstance(leaf, Tensor) and leaf.dtype == torch.float32:
                    found[path], left = _encoded(codec, path, leaf, held.get(path), rng)
                    if left is not None:
                        remembered[path] = left
            tree = trees.assemble(found)
            if remembered:  # the first codec at most
                first, lasting = found, remembered
                kept = {codec.name: trees.assemble(remembered), "round": round}
        if kept and len(self.lossy) > 1:
            seen: Mapping[str, Any] = tree
            for codec in reversed(self.lossy[1:]):
                seen = _undo(seen, codec)
            for path, left in lasting.items():
                left.add_(self.lossy[0].decode(first[path]) - self.lossy[0].decode(_at(seen, path)))
        return dict(tree), kept

    def pack(self, tree: Tree, facts: Mapping[str, Any]) -> bytearray:
        """The frame of a compressed tree."""
        made = frame.encode(tree, {**facts, "codec": self.names})
        return made if self.zstd_level is None else self._squeeze(made, facts)

    def _squeeze(self, made: bytearray, facts: Mapping[str, Any]) -> bytearray:
        packed = bytearray(zstandard.ZstdCompressor(level=self.zstd_level or 3).compress(bytes(made)))
        body = torch.frombuffer(packed, dtype=torch.uint8)
        return frame.encode({"zstd": body, "raw_bytes": len(made)}, {**facts, "codec": self.names})

    def decode(
        self, data: Buffer, *, facts: Mapping[str, Any], spec: Spec | None = None, limit: int
    ) -> tuple[dict[str, Any], Header]:
        """(tree, header of the innermost frame). Checks facts, chain, spec and finiteness; raises WireError.

        What was sent is checked before it is allocated, what the codecs make of it afterwards: a chain may allow more
        forms than the spec has, and a finite scale may give infinite values.
        """
        header = frame.read_header(data, most_bytes=limit)
        check.require_facts(header.facts, {**facts, "codec": self.names})
        if self.zstd_level is not None:
            data = self._expand(data, header, limit)
            header = frame.read_header(data, most_bytes=limit)
            check.require_facts(header.facts, {**facts, "codec": self.names})
        expected: dict[str, Any] = {}
        if spec is not None:
            expected = check.require_spec({**header.scalars, **header.entries}, self.respec(spec))
        tree = frame.tensors_of(data, header)
        if self.lossy:
            for codec in reversed(self.lossy):
                tree = _undo(tree, codec)
            if spec is not None:
                expected = check.require_spec(dict(trees.leaves(tree)), dict(trees.leaves(spec)))
        check.require_finite(tree, expected)
        check.require_values(tree, expected)
        return tree, header

    def _expand(self, data: Buffer, header: Header, limit: int) -> bytearray:
        if header.entries.keys() != {"zstd"} or header.scalars.keys() != {"raw_bytes"}:
            raise WireError("zstd: expected one tensor 'zstd' and the number 'raw_bytes'")
        raw = header.scalars["raw_bytes"]
        if type(raw) is not int or not 0 < raw <= limit:
            raise WireError(f"zstd frame announces {reprlib.repr(raw)} bytes, expected at most {limit:,}")
        packed = bytes(memoryview(data)[header.payload_at :])
        try:
            # The payload has a size of its own, which the decompressor allocates whatever max_output_size says.
            if zstandard.frame_content_size(packed) != raw:
                raise WireError(f"zstd payload is of another size than the announced {raw:,} bytes")
            out = zstandard.ZstdDecompressor().decompress(packed, max_output_size=raw, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise WireError(f"zstd payload is damaged: {error}") from None
        return bytearray(out)

    def respec(self, spec: Spec) -> dict[str, Any]:
        """What a frame may hold, a leaf by path, given the spec of what the method sees."""
        leaves: dict[str, Any] = dict(trees.leaves(spec))
        for codec in self.lossy:
            leaves = _sent_by(codec, leaves)
        return leaves

    def limit(self, spec: Spec) -> int:
        """The most bytes that a frame of this spec may have, header included."""
        most = _most_bytes(self.respec(spec))
        return most + most // ZSTD_SHARE + HEADER_ALLOWANCE


def _require_names(tree: Tree) -> None:
    for path, _ in trees.leaves(tree):
        if path.startswith(MARK) or f"/{MARK}" in path:
            raise WireError(f"names that begin with {MARK} are the codecs'", tensor=path)


def _sent_by(codec: Codec, leaves: Mapping[str, Any]) -> dict[str, Any]:
    sent: dict[str, Any] = {}
    for path, leaf in leaves.items():
        if isinstance(leaf, OneOf):
            sent[path] = replace(leaf, choices=tuple(_sent_by(codec, choice) for choice in leaf.choices))
        elif isinstance(leaf, Array) and leaf.dtype == torch.float32:
            sent |= {f"{path}/{sub}".rstrip("/"): made for sub, made in codec.respec(leaf).items()}
        else:
            sent[path] = leaf
    return sent


def _most_bytes(leaves: Mapping[str, Any]) -> int:
    """Tensor bytes and the names in the header, at the most."""
    total = 0
    for path, leaf in leaves.items():
        if isinstance(leaf, OneOf):
            total += max(_most_bytes({f"{path}/{sub}": part for sub, part in c.items()}) for c in leaf.choices)
            continue
        total += _quoted(path) + 96
        if isinstance(leaf, Array):
            total += leaf.most_bytes() + 16 * len(leaf.shape)
        elif isinstance(leaf, Integers):
            total += leaf.most * (1 + max(len(str(leaf.low)), len(str(leaf.high))))
        elif isinstance(leaf, Exactly):
            total += _quoted(leaf.value)
    return total


def _quoted(value: Any) -> int:
    """The length of a value in the metadata, which is JSON inside a string of JSON."""
    return len(json.dumps(json.dumps(value)))


def _aged(codec: Codec, memory: Tree, round: int) -> dict[str, Tensor]:
    """What the codec remembers, by path, weaker by its decay for each round in between that the device missed."""
    held = trees.tensors(memory.get(codec.name, {}))
    missed = max(0, round - 1 - int(memory.get("round", round)))
    if codec.decay == 1 or not missed:
        return held
    return {path: value * codec.decay**missed for path, value in held.items()}


def _at(tree: Tree, path: str) -> Tree:
    for key in path.split("/"):
        tree = tree[key]
    return tree


def _encoded(
    codec: Codec, path: str, value: Tensor, memory: Tensor | None, rng: torch.Generator
) -> tuple[Tree | Tensor, Tensor | None]:
    try:
        return codec.encode(value, memory, rng)
    except WireError as error:
        raise WireError(error.reason, tensor=path) from None


def _undo(tree: Tree, codec: Codec) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in tree.items():
        if trees.is_tree(value):
            made[key] = _decoded(codec, key, value) if marked(codec.name) in value else _undo(value, codec)
        else:
            made[key] = value
    return made


def _decoded(codec: Codec, key: str, node: Mapping[str, Any]) -> Tensor:
    try:
        return codec.decode(node)
    except WireError as error:
        raise WireError(error.reason, tensor=key[:80]) from None


def codec_names(chain: Sequence[Any]) -> list[str]:
    """The names in a chain such as ``["int8", "zstd"]`` or ``[{ topk = 0.01 }]``."""
    return [_name(item) for item in chain]


def _name(item: Any) -> str:
    """The name of a codec; of one with settings, the first key that is a codec's."""
    if not isinstance(item, Mapping):
        return str(item)
    known = [key for key in item if key in list(CODECS) or ":" in key]
    return str(next(iter([*known, *item]), ""))


def sparse_codecs(*channels: Channel) -> list[str]:
    """Those that drop most entries."""
    return [codec.name for channel in channels for codec in channel.lossy if codec.sparse]


def make_channel(chain: Sequence[Any], *, direction: str) -> Channel:
    """The channel of a list such as ``["int8", "zstd"]``. Raises ConfigError naming key, value and remedy."""
    key, names = f"wire.{direction}", codec_names(chain)
    lossy = [_codec(key, name, item) for name, item in zip(names, chain, strict=True) if name != ZSTD]
    _require_sense(key, names, lossy)
    return Channel(tuple(lossy), 3 if ZSTD in names else None)


def _codec(key: str, name: str, item: Any) -> Codec:
    if name not in list(CODECS) and ":" not in name:
        raise ConfigError(
            f"{key} holds {item!r}: expected some of {', '.join([*CODECS, ZSTD])}, or a codec of your own"
        )
    told, settings = f"{key} holds {item!r}", item if isinstance(item, Mapping) else {}

    def make() -> Codec:
        try:
            return CODECS[name](settings)
        except ConfigError:
            raise
        except ValueError as error:
            raise ConfigError(f"{told}: {error}") from None

    made = loaded(told, make, f"making {name}")
    if not set(dir(made)) >= PARTS:
        raise ConfigError(f"{told}: a {type(made).__name__}, expected a codec")
    return made  # type: ignore[no-any-return]


def _require_sense(key: str, names: list[str], lossy: Sequence[Codec]) -> None:
    if len(set(names)) != len(names):
        raise ConfigError(f"{key} = {names}: each codec at most once")
    if ZSTD in names and names[-1] != ZSTD:
        raise ConfigError(f"{key} = {names}: zstd comes last, since it packs the finished bytes")
    for place, codec in enumerate(lossy):
        if codec.sparse and key != "wire.up":
            raise ConfigError(
                f"{key} = {names}: {codec.name} is for the up-link only; the mean of the devices' updates is dense, "
                "and a sparse down-link would need a memory at the server"
            )
        if codec.sparse and place:
            raise ConfigError(f"{key} = {names}: {codec.name} comes first, since it picks among the exact values")
    numbers = [codec.name for codec in lossy if not codec.sparse]
    if len(numbers) > 1:
        raise ConfigError(f"{key} = {names}: one of {', '.join(numbers)} at a time")
