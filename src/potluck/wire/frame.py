"""A frame is a safetensors buffer: 8 bytes N, N bytes of JSON header, then the tensors' bytes, nothing else.

Tree paths are the tensor names. Everything that is not a tensor stands as canonical JSON in the header's metadata,
under the one key ``potluck``: {"format", "scalars": {path: value}, ...facts of the sender}. Any safetensors reader can
read it.

The buffer is written here, not by the safetensors package: joining memory views costs one copy of the payload, which
measured 15 times faster than ``safetensors.torch.save`` at 9 MB. A test holds the two formats together, both ways.
Nothing is allocated for a tensor before the whole header has been checked.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from potluck.core import tree as trees
from potluck.core.errors import WireError
from potluck.core.tree import Tree

Buffer = bytes | bytearray | memoryview
FORMAT = 1
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
MOST_HEADER_BYTES = 8 * 2**20
MOST_DIMENSIONS = 8
LOWEST_INTEGER, HIGHEST_INTEGER = -(2**63), 2**63 - 1
"""Whole numbers are of 64 bits, so that every language reads them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Where one tensor stands in the payload: bytes [start, stop)."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """A frame's checked header: ``facts`` of the sender, scalars by path, tensors by path, start of the payload."""

    facts: Mapping[str, Any]
    scalars: Mapping[str, Any]
    entries: Mapping[str, Entry]
    payload_at: int

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors."""
        return max((entry.stop for entry in self.entries.values()), default=0)


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces; NaN and infinity are refused."""
    return CANONICAL.encode(value)


def encode(tree: Tree, facts: Mapping[str, Any] | None = None) -> bytearray:
    """The frame of a tree. ``facts`` (JSON values) go into the metadata beside the scalars.

    Raises WireError for what a frame cannot hold: an odd name, a dtype beyond ``DTYPES``, a number that is not finite.
    """
    leaves = dict(trees.leaves(tree))
    scalars = {path: leaf for path, leaf in leaves.items() if not isinstance(leaf, Tensor)}
    held = [(path, leaf) for path, leaf in leaves.items() if isinstance(leaf, Tensor)]
    found = sorted(held, key=lambda item: (-item[1].element_size(), item[0]))
    for path, leaf in scalars.items():
        _require_path(path)
        _require_scalar(path, leaf)
    try:
        meta = canonical({**(facts or {}), "format": FORMAT, "scalars": scalars})
    except ValueError:
        raise WireError("the facts beside the message hold NaN or infinity") from None
    head: dict[str, Any] = {"__metadata__": {"potluck": meta}}
    parts: list[Buffer] = []
    at = 0
    for path, value in found:
        _require_path(path)
        if value.dtype not in NAMES:
            raise WireError(f"{value.dtype} cannot be sent: expected one of {', '.join(DTYPES)}", tensor=path)
        size = value.numel() * value.element_size()
        head[path] = {"dtype": NAMES[value.dtype], "shape": list(value.shape), "data_offsets": [at, at + size]}
        parts.append(trees.view_bytes(value))
        at += size
    text = COMPACT.encode(head).encode()
    text += b" " * (-len(text) % 8)
    return bytearray(b"").join([len(text).to_bytes(8, "little"), text, *parts])


def read_header(frame: Buffer, *, most_bytes: int | None = None) -> Header:
    """The header of a frame, wholly checked against the frame's length. Raises WireError; allocates no tensor."""
    data = memoryview(frame)
    if most_bytes is not None and len(data) > most_bytes:
        raise WireError(f"{len(data):,} bytes, expected at most {most_bytes:,}")
    if len(data) < 8:
        raise WireError(f"{len(data)} bytes are no frame: expected at least 8")
    size = int.from_bytes(data[:8], "little")
    if size > MOST_HEADER_BYTES or 8 + size > len(data):
        raise WireError(f"header of {size:,} bytes in a frame of {len(data):,}: truncated or oversized")
    if size % 8:
        raise WireError(f"header of {size:,} bytes: expected a multiple of 8, which keeps the tensors aligned")
    head = HEADER.read(bytes(data[8 : 8 + size]))
    meta = head.pop("__metadata__", None)
    if not isinstance(meta, dict) or not isinstance(meta.get("potluck"), str):
        raise WireError('metadata without the key "potluck": not a frame of ours')
    facts = METADATA.read(meta["potluck"])
    version = facts.pop("format", None)
    if type(version) is not int or version != FORMAT:
        raise WireError(f"another format version than {FORMAT}: upgrade Potluck on one of the two sides")
    scalars = facts.pop("scalars", None)
    if not isinstance(scalars, dict):
        raise WireError("metadata without scalars")
    for name, fact in facts.items():
        if not (_flat(fact) or (isinstance(fact, dict) and all(map(_flat, fact.values())))):
            raise WireError(f"fact {name[:80]!r}: expected a scalar, a list of scalars, or scalars by name")
    entries = {name: _entry(name, value) for name, value in head.items()}
    _require_gapless(entries, len(data) - 8 - size)
    for path in [*scalars, *entries]:
        _require_path(path)
    for path, value in scalars.items():
        _require_scalar(path, value)
        if path in entries:
            raise WireError("stands twice, as a tensor and as a scalar", tensor=path[:80])
    return Header(facts=facts, scalars=scalars, entries=entries, payload_at=8 + size)


def tensors_of(frame: Buffer, header: Header) -> dict[str, Any]:
    """The tree of a frame whose header has been checked. Tensors are views of ``frame`` where that is writable."""
    data = memoryview(frame)
    own = bytearray(data) if data.readonly else frame
    by_path: dict[str, Any] = dict(header.scalars)
    for path, entry in header.entries.items():
        by_path[path] = _tensor(own, header.payload_at, entry)
        if entry.dtype == torch.bool and bool((by_path[path].view(torch.uint8) > 1).any()):
            raise WireError("a truth value is neither 0 nor 1", tensor=path[:80])
    try:
        return trees.assemble(by_path)
    except ValueError as error:
        raise WireError(str(error)) from None


def decode(frame: Buffer, *, most_bytes: int | None = None) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """(tree, facts) of a frame that stands by itself, such as a file of the run folder."""
    header = read_header(frame, most_bytes=most_bytes)
    return tensors_of(frame, header), header.facts


def _tensor(own: Buffer, payload_at: int, entry: Entry) -> Tensor:
    if entry.start == entry.stop:
        return torch.empty(entry.shape, dtype=entry.dtype)
    count = (entry.stop - entry.start) // entry.dtype.itemsize
    return torch.frombuffer(own, dtype=entry.dtype, count=count, offset=payload_at + entry.start).view(entry.shape)


class _Strict(json.JSONDecoder):
    """JSON without keys that stand twice, numbers that are not finite, or whole numbers of more than 64 bits."""

    def __init__(self, what: str) -> None:
        super().__init__(
            object_pairs_hook=self._unique,
            parse_constant=self._no_constant,
            parse_float=self._finite,
            parse_int=self._whole,
        )
        self.what = what

    def _unique(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            raise WireError(f"{self.what} names a key twice")
        return made

    def _no_constant(self, name: str) -> float:
        raise WireError(f"{self.what} holds {name}: expected finite numbers")

    def _finite(self, digits: str) -> float:
        number = float(digits)
        return number if math.isfinite(number) else self._no_constant(digits[:20])

    def _whole(self, digits: str) -> int:
        if len(digits) > 20 or not LOWEST_INTEGER <= int(digits) <= HIGHEST_INTEGER:
            raise WireError(f"{self.what} holds the number {digits[:20]}...: expected at most 64 bits")
        return int(digits)

    def read(self, text: bytes | str) -> dict[str, Any]:
        """The object that the text is. Raises WireError."""
        try:
            value = self.decode(text if isinstance(text, str) else text.decode())
        except (ValueError, RecursionError) as error:
            if isinstance(error, WireError):
                raise
            raise WireError(f"{self.what} is not JSON") from None
        if not isinstance(value, dict):
            raise WireError(f"{self.what} is not a JSON object")
        return value


HEADER, METADATA = _Strict("header"), _Strict("metadata")
CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)
COMPACT = json.JSONEncoder(separators=(",", ":"))


def _require_path(path: str) -> None:
    if path == "__metadata__" or any(part in ("", ".", "..") for part in path.split("/")):
        raise WireError("expected names joined by single slashes, without '.' or '..'", tensor=path[:80])


def _require_scalar(path: str, value: Any) -> None:
    if value != {} and not _flat(value):
        raise WireError("expected a scalar, or a list of scalars", tensor=path[:80])
    for part in value if isinstance(value, list) else [value]:
        if isinstance(part, float) and not math.isfinite(part):
            raise WireError("holds NaN or infinity", tensor=path[:80])
        if isinstance(part, int) and not LOWEST_INTEGER <= part <= HIGHEST_INTEGER:
            raise WireError("a whole number of more than 64 bits", tensor=path[:80])


def _flat(value: Any) -> bool:
    """Whether ``value`` is a scalar or a list of scalars: nothing that nests."""
    return all(isinstance(part, (bool, int, float, str)) for part in (value if isinstance(value, list) else [value]))


def _entry(name: str, value: Any) -> Entry:
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise WireError("expected dtype, shape and data_offsets", tensor=name[:80])
    dtype, shape, offsets = DTYPES.get(str(value["dtype"])), value["shape"], value["data_offsets"]
    if dtype is None:
        raise WireError(f"unknown dtype {str(value['dtype'])[:20]!r}", tensor=name[:80])
    if not (_naturals(shape) and len(shape) <= MOST_DIMENSIONS and _naturals(offsets) and len(offsets) == 2):
        raise WireError("expected a shape and offsets of natural numbers", tensor=name[:80])
    start, stop = offsets
    if math.prod(max(1, size) for size in shape) > HIGHEST_INTEGER:
        raise WireError("a shape of more than 64 bits", tensor=name[:80])
    if stop - start != math.prod(shape) * dtype.itemsize or start % dtype.itemsize:
        raise WireError(f"shape {tuple(shape)} does not fill bytes {start} to {stop}", tensor=name[:80])
    return Entry(dtype=dtype, shape=tuple(shape), start=start, stop=stop)


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**48 for item in value)


def _require_gapless(entries: Mapping[str, Entry], payload: int) -> None:
    at = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start != at:
            raise WireError(f"starts at byte {entry.start}, expected {at}: overlap or hole", tensor=name[:80])
        at = entry.stop
    if at != payload:
        raise WireError(f"the tensors fill {at:,} bytes, the frame holds {payload:,}: truncated or padded")
