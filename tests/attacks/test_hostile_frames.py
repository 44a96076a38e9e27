"""Hostile replies: whatever the bytes, the answer is a WireError that names the device and the reason, or a sound tree.

A frame is taken apart into header, metadata and payload, one thing is made wrong, and it is put together again.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from typing import Any

import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from potluck.core import tree
from potluck.core.errors import WireError
from potluck.core.spec import Array, Free, Number, OneOf, Spec
from potluck.wire import frame
from potluck.wire.channel import make_channel
from potluck.wire.messages import Messages

DEVICE, ROUND = 3, 5
F32 = torch.float32
RANK = Free("rank", 1, 8)
SPEC: Spec = {
    "weights": {
        "conv.weight": Array(dtype=F32, shape=(8, 3, 3, 3)),
        "conv.bias": Array(dtype=F32, shape=(8,)),
        "count": Array(dtype=torch.int64, shape=()),
        "mask": Array(dtype=torch.bool, shape=(8,)),
        "dense": OneOf(
            (
                {"u": Array(dtype=F32, shape=(16, RANK)), "v": Array(dtype=F32, shape=(RANK, 16))},
                {"w": Array(dtype=F32, shape=(16, 16))},
            )
        ),
    },
    "samples": Number(kind=int, low=1, high=2**40),
}


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


GOOD: dict[str, Any] = {
    "weights": {
        "conv.weight": normal(8, 3, 3, 3),
        "conv.bias": normal(8),
        "count": torch.tensor(4),
        "mask": torch.arange(8) % 2 == 0,
        "dense": {"u": normal(16, 8), "v": normal(8, 16)},
    },
    "samples": 40,
}
FACTS = {"own": "a" * 64, "flops": 1e6, "notes": {"loss": 0.5}}
Attack = Callable[[dict[str, Any], dict[str, Any], bytes], bytes]
"""(header, metadata, payload) -> a frame."""
CHAINS = [[], ["float16"], ["int8"], ["zstd"], ["int8", "zstd"]]
every_chain = pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: "+".join(chain) or "plain")


def messages(chain: list[str], **changed: Any) -> Messages:
    made = make_channel(chain, direction="up")
    return Messages(
        **{
            "method": "fedavg",
            "digest": "c" * 64,
            "up": made,
            "down": make_channel([], direction="down"),
            "seed": 0,
            **changed,
        }
    )


def up_frame(chain: list[str], sent: dict[str, Any] = GOOD) -> bytearray:
    return messages(chain).write_up(sent, ROUND, DEVICE, None, FACTS)[0]


def read(chain: list[str], data: bytes | bytearray) -> dict[str, Any]:
    return messages(chain).read_up(data, ROUND, DEVICE, SPEC)[0]


def refused(chain: list[str], data: bytes | bytearray) -> str:
    """The reason for which a frame is refused; anything but a WireError that names the device fails the test."""
    with pytest.raises(WireError) as caught:
        read(chain, data)
    error = caught.value
    assert error.device == DEVICE
    assert str(error).startswith(f"device {DEVICE}: ")
    assert 0 < len(str(error)) < 1_000, "a reason is read by a person, and stands in the ledger"
    assert str(error).isprintable(), "a reason must not steer a terminal"
    return str(error)


def taken_apart(data: bytes | bytearray) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """(header without metadata, what stands under the key potluck, payload)."""
    size = int.from_bytes(data[:8], "little")
    head = json.loads(data[8 : 8 + size])
    return head, json.loads(head.pop("__metadata__")["potluck"]), bytes(data[8 + size :])


def header_of(text: bytes, payload: bytes = b"") -> bytes:
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + payload


def together(head: dict[str, Any], meta: Any, payload: bytes) -> bytes:
    text = meta if isinstance(meta, str) else json.dumps(meta)
    return header_of(json.dumps({"__metadata__": {"potluck": text}, **head}).encode(), payload)


def inside(attack: Attack) -> bytearray:
    """An attack on the frame within a zstd frame, whose own header is sound."""
    _, meta, payload = taken_apart(up_frame(["zstd"]))
    data = attack(*taken_apart(zstandard.ZstdDecompressor().decompress(payload)))
    body = torch.frombuffer(bytearray(zstandard.ZstdCompressor().compress(data)), dtype=torch.uint8)
    facts = {name: value for name, value in meta.items() if name not in ("format", "scalars")}
    return frame.encode({"zstd": body, "raw_bytes": len(data)}, facts)


def expect_everywhere(attack: Attack, reason: str) -> None:
    """The attack is refused for one of the reasons, as a plain frame and within zstd (there perhaps for its size)."""
    given_plain = refused([], attack(*taken_apart(up_frame([]))))
    assert any(part in given_plain for part in reason.split("|")), given_plain
    given_within = refused(["zstd"], inside(attack))
    assert any(part in given_within for part in [*reason.split("|"), "zstd frame announces"]), given_within


@every_chain
def test_what_is_attacked_below_is_sound_as_it_stands(chain: list[str]) -> None:
    made = up_frame(chain)
    got = read(chain, made)
    assert got.keys() == GOOD.keys()
    assert got["samples"] == 40
    assert torch.allclose(got["weights"]["conv.weight"], GOOD["weights"]["conv.weight"], atol=0.05)
    assert tree.equal(read(chain, together(*taken_apart(made))), got), "taking apart changes nothing"
    assert tree.equal(read(["zstd"], inside(together)), GOOD)


# Bytes


@every_chain
@settings(max_examples=60)
@given(share=st.floats(0, 1, exclude_max=True))
def test_truncated(chain: list[str], share: float) -> None:
    made = up_frame(chain)
    refused(chain, made[: int(share * len(made))])


@every_chain
@settings(max_examples=20)
@given(more=st.binary(min_size=1, max_size=64))
def test_padded(chain: list[str], more: bytes) -> None:
    refused(chain, up_frame(chain) + more)
    refused(chain, more + up_frame(chain))


@every_chain
@settings(max_examples=40)
@given(size=st.integers(0, 2**64 - 1) | st.integers(0, 4096))
def test_the_length_of_the_header(chain: list[str], size: int) -> None:
    made = up_frame(chain)
    if size != int.from_bytes(made[:8], "little"):
        refused(chain, struct.pack("<Q", size) + made[8:])


@every_chain
@settings(max_examples=150)
@given(changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=4))
def test_flipped_bytes_give_an_error_or_a_sound_tree(chain: list[str], changes: list[tuple[float, int]]) -> None:
    made = up_frame(chain)
    for place, mask in changes:
        made[int(place * len(made))] ^= mask
    sound_or_refused(chain, made)


@every_chain
@settings(max_examples=150)
@given(place=st.floats(0, 1, exclude_max=True), messages=st.binary(min_size=1, max_size=6))
def test_overwritten_headers_give_an_error_or_a_sound_tree(chain: list[str], place: float, messages: bytes) -> None:
    made = up_frame(chain)
    at = 8 + int(place * (int.from_bytes(made[:8], "little") - len(messages)))
    made[at : at + len(messages)] = messages
    sound_or_refused(chain, made)


@settings(max_examples=200)
@given(data=st.binary(max_size=200))
def test_noise(data: bytes) -> None:
    refused([], data)
    refused(["zstd"], data)
    refused([], header_of(data))
    refused([], header_of(b'{"__metadata__":{"potluck":' + json.dumps(data.decode("latin-1")).encode() + b"}}"))


def sound_or_refused(chain: list[str], made: bytearray) -> None:
    """No checksum guards a value, so another value may pass: then names, dtypes, shapes and ranges are right."""
    try:
        got = read(chain, made)
    except WireError:
        refused(chain, made)
        return
    found, wanted = tree.tensors(got), tree.tensors(GOOD)
    assert {path: (v.dtype, v.shape) for path, v in found.items()} == {
        path: (v.dtype, v.shape) for path, v in wanted.items()
    }
    assert all(bool(torch.isfinite(v).all()) for v in found.values())
    assert bool((found["weights/mask"].view(torch.uint8) < 2).all())
    assert type(got["samples"]) is int
    assert 1 <= got["samples"] <= 2**40


# The header


W = "weights/conv.weight"


def entry(**changed: Any) -> Attack:
    """Changes fields of the entry of one tensor."""

    def attack(head: dict[str, Any], meta: dict[str, Any], payload: bytes) -> bytes:
        head[W] |= changed
        return together(head, meta, payload)

    return attack


def renamed(name: str) -> Attack:
    def attack(head: dict[str, Any], meta: dict[str, Any], payload: bytes) -> bytes:
        head[name] = head.pop(W)
        return together(head, meta, payload)

    return attack


def shifted(by: int) -> Attack:
    """Moves one tensor's bytes, so that it overlaps the next one, or leaves a hole."""

    def attack(head: dict[str, Any], meta: dict[str, Any], payload: bytes) -> bytes:
        start, stop = head[W]["data_offsets"]
        head[W]["data_offsets"] = [start + by, stop + by]
        return together(head, meta, payload)

    return attack


def extra(name: str, dtype: str = "F32", shape: tuple[int, ...] = (2,), size: int = 8) -> Attack:
    """Adds a tensor at the end, with its bytes."""

    def attack(head: dict[str, Any], meta: dict[str, Any], payload: bytes) -> bytes:
        head[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [len(payload), len(payload) + size]}
        return together(head, meta, payload + bytes(size))

    return attack


def removed(head: dict[str, Any], meta: dict[str, Any], payload: bytes) -> bytes:
    last = max((name for name in head if name != W), key=lambda name: head[name]["data_offsets"])
    start, _ = head.pop(last)["data_offsets"]
    return together(head, meta, payload[:start])


def aliased(head: dict[str, Any], meta: dict[str, Any], payload: bytes) -> bytes:
    head["weights/dense/u"] = {**head["weights/dense/v"], "shape": [16, 8]}
    return together(head, meta, payload)


def named_twice(head: dict[str, Any], meta: dict[str, Any], payload: bytes) -> bytes:
    text = json.dumps({"__metadata__": {"potluck": json.dumps(meta)}, **head})
    return header_of(f'{text[:-1]}, "{W}": {json.dumps(head[W])}}}'.encode(), payload)


def utf16(head: dict[str, Any], meta: dict[str, Any], payload: bytes) -> bytes:
    return header_of(json.dumps({"__metadata__": {"potluck": json.dumps(meta)}, **head}).encode("utf-16-le"), payload)


def marked(head: dict[str, Any], meta: dict[str, Any], payload: bytes) -> bytes:
    return header_of(
        b"\xef\xbb\xbf" + json.dumps({"__metadata__": {"potluck": json.dumps(meta)}, **head}).encode(), payload
    )


def unaligned(head: dict[str, Any], meta: dict[str, Any], payload: bytes) -> bytes:
    text = json.dumps({"__metadata__": {"potluck": json.dumps(meta)}, **head}).encode()
    text += b" " * (-len(text) % 8) + b"   "
    return len(text).to_bytes(8, "little") + text + payload


SIZE = 8 * 3 * 3 * 3
HEADERS: dict[str, tuple[Attack, str]] = {
    "overlap": (shifted(-4), "does not fill|overlap or hole"),
    "hole": (shifted(4), "overlap or hole"),
    "far away": (shifted(2**40), "overlap or hole"),
    "unaligned tensor": (shifted(1), "does not fill|overlap or hole"),
    "two tensors, the same bytes": (aliased, "overlap or hole|truncated or padded"),
    "missing tensor": (removed, "missing|none of the forms"),
    "extra tensor": (extra("weights/more"), "not expected here"),
    "extra tensor at the root": (extra("more"), "not expected here"),
    "extra empty tensor": (extra("more", shape=(0,), size=0), "not expected here"),
    "tensor below a tensor": (extra(f"{W}/more"), "not expected here"),
    "tensor instead of a scalar": (extra("samples", "I64", (1,), 8), "stands twice"),
    "tensor instead of a node": (extra("weights"), "not expected here"),
    "both forms of a node": (extra("weights/dense/w", shape=(16, 16), size=1024), "not expected here"),
    "renamed tensor": (renamed("weights/conv.weights"), "not expected here|missing"),
    "name with ..": (renamed("weights/../conv.weight"), "without '.' or '..'"),
    "name with .": (renamed("weights/./conv.weight"), "without '.' or '..'"),
    "name ends in ..": (renamed("weights/.."), "without '.' or '..'"),
    "absolute name": (renamed("/weights/conv.weight"), "single slashes"),
    "empty part": (renamed("weights//conv.weight"), "single slashes"),
    "trailing slash": (renamed("weights/conv.weight/"), "single slashes"),
    "empty name": (renamed(""), "single slashes"),
    "only a slash": (renamed("/"), "single slashes"),
    "name of control characters": (renamed("\x1b[31m\x00\n"), "not expected here|missing"),
    "name of a lone surrogate": (renamed("\ud800"), "not expected here|missing"),
    "very long name": (renamed("a" * 30_000), "not expected here|missing"),
    "named twice": (named_twice, "names a key twice"),
    "wider dtype": (entry(dtype="F64"), "does not fill"),
    "dtype of the same width": (entry(dtype="I32"), "got torch.int32, expected torch.float32"),
    "narrower dtype": (entry(dtype="F16", shape=[2 * SIZE]), "got torch.float16|got shape"),
    "unknown dtype": (entry(dtype="F8_E4M3"), "unknown dtype"),
    "lower case dtype": (entry(dtype="f32"), "unknown dtype"),
    "dtype is a number": (entry(dtype=32), "unknown dtype"),
    "dtype is a list": (entry(dtype=["F32"]), "unknown dtype"),
    "dtype is null": (entry(dtype=None), "unknown dtype"),
    "dtype is a long text": (entry(dtype="F" * 20_000), "unknown dtype"),
    "flat shape": (entry(shape=[SIZE]), "got shape"),
    "permuted shape": (entry(shape=[3, 8, 3, 3]), "got shape"),
    "one more dimension": (entry(shape=[1, 8, 3, 3, 3]), "got shape"),
    "no dimension": (entry(shape=[]), "does not fill"),
    "larger shape": (entry(shape=[8, 3, 3, 4]), "does not fill"),
    "empty shape": (entry(shape=[8, 0, 3, 3]), "does not fill"),
    "negative size": (entry(shape=[-8, -3, 3, 3]), "natural numbers"),
    "size is a fraction": (entry(shape=[8.0, 3, 3, 3]), "natural numbers"),
    "size is true": (entry(shape=[True, SIZE]), "natural numbers"),
    "size is a text": (entry(shape=["8", 3, 3, 3]), "natural numbers"),
    "shape is a number": (entry(shape=SIZE), "natural numbers"),
    "shape is a text": (entry(shape="8333"), "natural numbers"),
    "shape is an object": (entry(shape={"0": 8}), "natural numbers"),
    "shape is null": (entry(shape=None), "natural numbers"),
    "shape of 9 dimensions": (entry(shape=[1, 1, 1, 1, 1, 8, 3, 3, 3]), "natural numbers"),
    "shape of 10,000 dimensions": (entry(shape=[1] * 10_000), "natural numbers"),
    "product of 2**64": (entry(shape=[2**32, 2**32]), "more than 64 bits"),
    "product of 2**64 + size": (entry(shape=[2**47, 2**17, 1, 1]), "more than 64 bits"),
    "product that wraps to zero": (entry(shape=[0, 2**47, 2**47], data_offsets=[0, 0]), "more than 64 bits"),
    "size of 2**48": (entry(shape=[2**48, 0]), "natural numbers"),
    "size of 2**70": (entry(shape=[2**70]), "64 bits"),
    "number of 4,000 digits": (entry(shape=[10**4000]), "64 bits"),
    "negative offset": (entry(data_offsets=[-4, 4 * SIZE - 4]), "natural numbers"),
    "offset is a fraction": (entry(data_offsets=[0.0, 4.0 * SIZE]), "natural numbers"),
    "offsets backwards": (entry(data_offsets=[4 * SIZE, 0]), "does not fill"),
    "offsets beyond the end": (entry(data_offsets=[2**30, 2**30 + 4 * SIZE]), "overlap or hole|truncated"),
    "offsets near 2**63": (entry(data_offsets=[2**63 - 4 * SIZE - 1, 2**63 - 1]), "natural numbers"),
    "three offsets": (entry(data_offsets=[0, 4 * SIZE, 8]), "natural numbers"),
    "one offset": (entry(data_offsets=[0]), "natural numbers"),
    "offsets are null": (entry(data_offsets=None), "natural numbers"),
    "offset is true": (entry(data_offsets=[False, 4 * SIZE]), "natural numbers"),
    "another field": (entry(more=1), "expected dtype, shape and data_offsets"),
    "UTF-16": (utf16, "is not JSON|multiple"),
    "byte order mark": (marked, "is not JSON"),
    "unaligned payload": (unaligned, "multiple of 8"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers(name: str) -> None:
    attack, reason = HEADERS[name]
    expect_everywhere(attack, reason)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"3",
        b'"a"',
        b"{}",
        b'{"__metadata__": {}}',
        b'{"__metadata__": null}',
        b'{"__metadata__": []}',
        b'{"__metadata__": "potluck"}',
        b'{"__metadata__": {"potluck": null}}',
        b'{"__metadata__": {"potluck": {}}}',
        b'{"__metadata__": {"potluck": 3}}',
        b'{"__metadata__": {"potluck": ""}}',
        b'{"__metadata__": {"potluck": "{"}}',
        b'{"__metadata__": {"potluck": "[]"}}',
        b'{"__metadata__": {"potluck": "null"}}',
        b'{"__metadata__": {"potluck": "\\ud800"}}',
        b'{"__metadata__": {"potluck": "{\\"a\\": \\"\\ud800\\"}"}}',
        b'{"__metadata__": {"potluck": "{}", "potluck": "{}"}}',
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": -Infinity}',
        b'{"a": 1e999}',
        b'{"a": ' + b"9" * 5_000 + b"}",
        b'{"a": ' + b"9" * 21 + b"}",
        b'{"a": -' + b"9" * 21 + b"}",
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b'{"a": ' + b"[" * 900 + b"]" * 900 + b"}",
        b"\xff\xfe\x00",
        b'{"\xff": 1}',
        b"{'a': 1}",
        b'{"a": 1,}',
        b'{"a": 1} {"b": 2}',
        b"\x00" * 64,
    ],
)
def test_headers_that_are_no_headers(text: bytes) -> None:
    refused([], header_of(text))
    refused(["zstd"], header_of(text))


# The metadata


def fact(name: str, value: Any) -> Attack:
    def attack(head: dict[str, Any], meta: dict[str, Any], payload: bytes) -> bytes:
        return together(head, {**meta, name: value}, payload)

    return attack


def scalar(name: str, value: Any) -> Attack:
    def attack(head: dict[str, Any], meta: dict[str, Any], payload: bytes) -> bytes:
        return together(head, {**meta, "scalars": {**meta["scalars"], name: value}}, payload)

    return attack


def without(name: str) -> Attack:
    def attack(head: dict[str, Any], meta: dict[str, Any], payload: bytes) -> bytes:
        del meta[name]
        return together(head, meta, payload)

    return attack


def text(change: Callable[[str], str]) -> Attack:
    """Changes the metadata as text."""

    def attack(head: dict[str, Any], meta: dict[str, Any], payload: bytes) -> bytes:
        return together(head, change(json.dumps(meta)), payload)

    return attack


def nested(depth: int) -> Any:
    made: Any = 1
    for _ in range(depth):
        made = [made]
    return made


METADATA: dict[str, tuple[Attack, str]] = {
    "another run": (fact("config", "d" * 64), "config is"),
    "another method": (fact("method", "fedprox"), "method is 'fedprox', expected 'fedavg'"),
    "replayed from the round before": (fact("round", ROUND - 1), "round is 4, expected 5"),
    "from the round to come": (fact("round", ROUND + 1), "round is 6, expected 5"),
    "round is a fraction": (fact("round", float(ROUND)), "round is 5.0, expected 5"),
    "round is a text": (fact("round", str(ROUND)), "round is '5', expected 5"),
    "round is a list": (fact("round", [ROUND]), "round is [5], expected 5"),
    "of another device": (fact("device", DEVICE + 1), "device is 4, expected 3"),
    "of no device": (without("device"), "device is None"),
    "no round": (without("round"), "round is None"),
    "no method": (without("method"), "method is None"),
    "no config": (without("config"), "config is None"),
    "no chain": (without("codec"), "codec is None"),
    "no scalars": (without("scalars"), "metadata without scalars"),
    "no format": (without("format"), "another format version"),
    "a message of the server": (fact("kind", "down"), "kind is 'down', expected 'up'"),
    "another format": (fact("format", 2), "another format version"),
    "format is true": (fact("format", True), "another format version"),
    "another chain": (fact("codec", ["topk"]), "codec is ['topk']"),
    "chain is nested": (fact("codec", nested(500)), "expected a scalar, a list of scalars"),
    "method is nested": (fact("method", nested(900)), "expected a scalar, a list of scalars"),
    "method is a long text": (fact("method", "f" * 30_000), "method is 'ffff"),
    "unknown fact, nested": (fact("more", {"a": {"b": 1}}), "expected a scalar, a list of scalars"),
    "digest is a number": (fact("own", 7), "own is 7, expected a digest"),
    "digest is a list": (fact("own", ["a" * 64]), "expected a digest"),
    "digest is null": (fact("own", None), "expected a scalar"),
    "digest is short": (fact("own", "abc"), "expected a digest"),
    "digest is a path": (fact("own", "../" * 21 + "a"), "expected a digest"),
    "digest of the memory is an object": (fact("codec_memory", {"a": "b"}), "expected a digest"),
    "digest of the memory in capitals": (fact("codec_memory", "A" * 64), "expected a digest"),
    "flops are a text": (fact("flops", "1e9"), "flops is '1e9'"),
    "flops are negative": (fact("flops", -1), "flops is -1"),
    "notes are a list": (fact("notes", ["loss"]), "notes are ['loss']"),
    "notes are a text": (fact("notes", "loss"), "notes are 'loss'"),
    "notes are null": (fact("notes", None), "expected a scalar"),
    "a note is a text": (fact("notes", {"loss": "low"}), "note 'loss' is 'low'"),
    "a note is a list": (fact("notes", {"loss": [1.0]}), "note 'loss' is [1.0]"),
    "a note is an object": (fact("notes", {"loss": {"a": 1}}), "expected a scalar"),
    "a note is NaN": (fact("notes", {"loss": math.nan}), "holds NaN"),
    "a note is infinite": (fact("notes", {"loss": math.inf}), "holds Infinity"),
    "a note is a huge integer": (fact("notes", {"loss": 10**400}), "64 bits"),
    "a note is a huge fraction": (text(lambda t: t.replace('"loss": 0.5', '"loss": 1e999')), "holds 1e999"),
    "10,000 notes": (fact("notes", {str(k): 1 for k in range(10_000)}), "at most 64 figures|expected at most"),
    "a note with a long name": (fact("notes", {"a" * 1_000: 1}), "short name"),
    "a note that steers the terminal": (fact("notes", {"\x1b]0;a\x07": 1}), "short name"),
    "no samples": (scalar("samples", 0), "got 0, expected int"),
    "minus one sample": (scalar("samples", -1), "got -1, expected int"),
    "1e300 samples": (scalar("samples", 1e300), "got 1e+300, expected int"),
    "half a sample": (scalar("samples", 0.5), "got 0.5, expected int"),
    "40.0 samples": (scalar("samples", 40.0), "got 40.0, expected int"),
    "true samples": (scalar("samples", True), "got True, expected int"),
    "a text of samples": (scalar("samples", "40"), "got '40', expected int"),
    "null samples": (scalar("samples", None), "expected a scalar"),
    "a list of samples": (scalar("samples", [40]), "got [40], expected int"),
    "an empty node of samples": (scalar("samples", {}), "got {}, expected int"),
    "a tree of samples": (scalar("samples", {"a": 1}), "expected a scalar"),
    "2**41 samples": (scalar("samples", 2**41), "got 2199023255552, expected int"),
    "2**80 samples": (scalar("samples", 2**80), "64 bits"),
    "NaN samples": (scalar("samples", math.nan), "holds NaN"),
    "-0.0 samples": (scalar("samples", -0.0), "got -0.0, expected int"),
    "another scalar": (scalar("more", 1), "not expected here"),
    "another empty node": (scalar("more", {}), "not expected here"),
    "an empty node below a scalar": (scalar("samples/more", {}), "not expected here"),
    "a scalar below a node": (scalar("weights/more", 1), "not expected here"),
    "a scalar instead of a node": (scalar("weights", 1), "not expected here"),
    "a scalar over a tensor": (scalar("weights/conv.bias", 1), "stands twice|not expected"),
    "an empty node over a tensor": (scalar("weights/conv.bias", {}), "stands twice|expected a tensor"),
    "a nested scalar": (scalar("samples", nested(900)), "expected a scalar"),
    "a scalar with a path upwards": (scalar("../samples", 1), "without '.' or '..'"),
    "a scalar without a name": (scalar("", 1), "single slashes"),
    "a scalar twice": (text(lambda t: t.replace('"samples": 40', '"samples": 40, "samples": 41')), "names a key twice"),
    "a fact twice": (text(lambda t: t[:-1] + ', "round": 5}'), "names a key twice"),
    "scalars are a list": (fact("scalars", [40]), "metadata without scalars"),
    "scalars are null": (fact("scalars", None), "metadata without scalars"),
    "not JSON": (text(lambda t: t[:-1]), "metadata is not JSON"),
    "empty": (text(lambda t: ""), "metadata is not JSON"),
    "a list": (text(lambda t: f"[{t}]"), "metadata is not a JSON object"),
    "deep": (text(lambda t: "[" * 10_000), "metadata is not JSON"),
    "a lone surrogate": (text(lambda t: "\ud800"), "metadata is not JSON"),
    "a lone surrogate in a fact": (fact("method", "\ud800"), "method is '\\ud800'"),
}


@pytest.mark.parametrize("name", METADATA)
def test_metadata(name: str) -> None:
    attack, reason = METADATA[name]
    expect_everywhere(attack, reason)


@every_chain
@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"method": "fedprox"}, "method is 'fedprox', expected 'fedavg'"),
        ({"digest": "d" * 64}, "config is"),
    ],
)
def test_frames_of_another_run(chain: list[str], changed: dict[str, Any], reason: str) -> None:
    made, _ = messages(chain, **changed).write_up(GOOD, ROUND, DEVICE, None, FACTS)
    assert reason in refused(chain, made)


@every_chain
def test_frames_of_another_round_device_or_direction(chain: list[str]) -> None:
    sender = messages(chain, down=make_channel(chain, direction="down"))
    assert "round is 4, expected 5" in refused(chain, sender.write_up(GOOD, 4, DEVICE, None, FACTS)[0])
    assert "device is 2, expected 3" in refused(chain, sender.write_up(GOOD, ROUND, 2, None, FACTS)[0])
    assert "kind is 'down', expected 'up'" in refused(chain, sender.write_down(GOOD, ROUND)[0])


# Values and trees


def replaced(path: str, value: Any) -> dict[str, Any]:
    """The good reply with one leaf replaced, or left out (None)."""
    by_path = dict(tree.leaves(GOOD))
    del by_path[path]
    return tree.assemble(by_path if value is None else {**by_path, path: value})


@pytest.mark.parametrize("chain", [[], ["zstd"]], ids=str)
@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("path", [W, "weights/conv.bias", "weights/dense/u"])
def test_values_that_are_not_finite(chain: list[str], odd: float, path: str) -> None:
    bad = tree.tensors(GOOD)[path].clone()
    bad.view(-1)[-1] = odd
    assert f"tensor '{path}': holds NaN or infinity" in refused(chain, up_frame(chain, replaced(path, bad)))


@every_chain
@pytest.mark.parametrize("path", [path for path, _ in tree.leaves(GOOD)])
def test_leaves_that_are_missing(chain: list[str], path: str) -> None:
    refused(chain, up_frame(chain, replaced(path, None)))


@every_chain
@pytest.mark.parametrize(
    ("path", "value"),
    [
        (W, normal(8, 3, 3, 4)),
        (W, normal(SIZE)),
        (W, normal(1, 3, 3, 3)),
        (W, normal(8, 3, 3, 3).double()),
        (W, torch.zeros(8, 3, 3, 3, dtype=torch.int32)),
        (W, 1.0),
        (W, {"more": normal(8)}),
        ("weights/conv.bias", normal(1)),
        ("weights/conv.bias", normal(0)),
        ("weights/conv.bias", normal()),
        ("weights/count", torch.tensor([4])),
        ("weights/count", torch.tensor(4.0)),
        ("weights/mask", torch.zeros(8, dtype=torch.uint8)),
        ("weights/dense/u", normal(16, 9)),
        ("weights/dense/u", normal(16, 7)),
        ("weights/dense/u", normal(16, 0)),
        ("weights/dense/v", normal(16, 8)),
        ("samples", torch.tensor(40)),
        ("samples", 10**18),
    ],
    ids=str,
)
def test_leaves_of_another_form(chain: list[str], path: str, value: Any) -> None:
    if isinstance(value, dict):
        by_path = dict(tree.leaves(GOOD))
        del by_path[path]
        refused(chain, up_frame(chain, tree.assemble({**by_path, f"{path}/more": value["more"]})))
    else:
        refused(chain, up_frame(chain, replaced(path, value)))


def test_truth_values_that_are_neither() -> None:
    head, meta, payload = taken_apart(up_frame([]))
    start, _ = head["weights/mask"]["data_offsets"]
    for byte in (2, 128, 255):
        bad = bytearray(payload)
        bad[start + 3] = byte
        assert "neither 0 nor 1" in refused([], together(head, meta, bytes(bad)))


# int8


def int8_frame(changed: dict[str, Any]) -> bytearray:
    """The good reply under int8, with leaves of its compressed tree replaced (None: left out)."""
    pen = messages(["int8"])
    by_path = {**dict(tree.leaves(pen.up.compress(GOOD, None, torch.Generator())[0])), **changed}
    sent = tree.assemble({path: value for path, value in by_path.items() if value is not None})
    facts = {"method": "fedavg", "config": "c" * 64, "kind": "up", "round": ROUND, "device": DEVICE}
    return pen.up.pack(sent, {**FACTS, **facts})


LEVELS = torch.full((8, 3, 3, 3), 127, dtype=torch.int8)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({f"{W}/scale": torch.tensor([math.nan])}, "holds NaN or infinity"),
        ({f"{W}/scale": torch.tensor([math.inf])}, "holds NaN or infinity"),
        ({f"{W}/scale": torch.tensor([3e38]), f"{W}/~int8": LEVELS}, "holds NaN or infinity"),
        ({f"{W}/scale": torch.tensor([3e38]), f"{W}/~int8": -LEVELS}, "holds NaN or infinity"),
        ({f"{W}/scale": torch.ones(2)}, "got shape (2,), expected (1)"),
        ({f"{W}/scale": torch.ones(())}, "got shape (), expected (1)"),
        ({f"{W}/scale": torch.ones(1).double()}, "got torch.float64"),
        ({f"{W}/scale": None}, "missing"),
        ({f"{W}/scale": 1.0}, "expected a tensor, got a scalar"),
        ({f"{W}/~int8": None}, "missing"),
        ({f"{W}/~int8": LEVELS.float()}, "got torch.float32, expected torch.int8"),
        ({f"{W}/~int8": LEVELS.view(-1)}, "got shape (216,)"),
        ({f"{W}/more": torch.ones(1)}, "not expected here"),
        ({"weights/dense/u/~int8": None}, "tensor 'weights/dense"),
        ({"weights/dense/u/scale": None}, "tensor 'u': int8: expected levels and a scale"),
        (
            {"weights/dense/u/~int8": None, "weights/dense/u/scale": None},
            "tensor 'weights/dense': holds none of the forms",
        ),
        (
            {"weights/dense/u/scale": torch.tensor([3e38]), "weights/dense/u/~int8": LEVELS.view(-1)[:128].view(16, 8)},
            "holds NaN",
        ),
        ({"weights/dense/v/~int8": LEVELS.view(-1)[:112].view(7, 16)}, "'rank' the same everywhere"),
    ],
    ids=str,
)
def test_int8(changed: dict[str, Any], reason: str) -> None:
    assert reason in refused(["int8"], int8_frame(changed))


def test_what_the_attacks_on_int8_start_from_is_sound() -> None:
    assert read(["int8"], int8_frame({f"{W}/scale": torch.tensor([1e30])})).keys() == GOOD.keys()
