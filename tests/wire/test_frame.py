"""Frames: every tree comes back bitwise, and safetensors readers and writers agree with ours, both ways."""

from __future__ import annotations

import math
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from potluck.core import tree
from potluck.core.errors import WireError
from potluck.wire import frame
from potluck.wire.frame import DTYPES

names = st.text(st.characters(codec="utf-8", exclude_characters="/"), min_size=1, max_size=6)
keys = names.filter(lambda name: name not in (".", "..", "__metadata__"))
numbers = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
scalars = st.booleans() | numbers | st.text(st.characters(codec="utf-8"), max_size=6) | st.lists(numbers, max_size=3)


def bits(shape: list[int] | tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """Any bit pattern of a dtype, NaN payloads among them."""
    count = math.prod(shape) * dtype.itemsize
    drawn = torch.randint(0, 2 if dtype == torch.bool else 256, (count,), generator=torch.Generator().manual_seed(seed))
    return drawn.to(torch.uint8).view(dtype).reshape(tuple(shape))


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    return bits(shape, draw(st.sampled_from(list(DTYPES.values()))), draw(st.integers(0, 2**31)))


trees = st.recursive(
    st.dictionaries(keys, scalars | tensors(), max_size=4), lambda inner: st.dictionaries(keys, inner, max_size=3)
)


@given(trees)
def test_every_tree_comes_back_bitwise(sent: dict[str, Any]) -> None:
    made = frame.encode(sent, {"round": 3})
    got, facts = frame.decode(made)
    assert tree.equal(got, sent)
    assert dict(facts) == {"round": 3}
    assert frame.encode(got, facts) == made


@pytest.mark.parametrize("dtype", DTYPES.values())
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (7,), (2, 3, 4, 5)])
def test_every_dtype_and_shape(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    sent = {"a": {"w": bits(shape, dtype, 1)}, "b": bits((3,), torch.uint8, 2)}
    assert tree.equal(frame.decode(frame.encode(sent))[0], sent)


def test_layouts_in_memory_are_sent_row_major() -> None:
    x = torch.arange(2 * 3 * 4 * 4, dtype=torch.float32).reshape(2, 3, 4, 4)
    plain = frame.encode({"x": x})
    assert frame.encode({"x": x.contiguous(memory_format=torch.channels_last)}) == plain
    assert frame.encode({"x": x.transpose(1, 3).contiguous().transpose(1, 3)}) == plain
    wide = torch.zeros(2, 3, 4, 8)
    wide[..., ::2] = x
    assert frame.encode({"x": wide[..., ::2]}) == plain
    assert frame.encode({"x": torch.ones(3).expand(4, 3)}) == frame.encode({"x": torch.ones(4, 3)})
    weight = torch.nn.Parameter(x)
    assert frame.encode({"x": weight}) == plain


def test_tensors_of_a_writable_frame_are_views_of_it_and_others_are_copies() -> None:
    made = frame.encode({"x": torch.zeros(4)})
    got, _ = frame.decode(made)
    got["x"][:] = 1.0
    assert frame.decode(made)[0]["x"].sum() == 4
    kept = bytes(made)
    got, _ = frame.decode(kept)
    got["x"][:] = 2.0
    assert frame.decode(kept)[0]["x"].sum() == 4


def test_the_order_of_insertion_does_not_matter() -> None:
    a = {"x": torch.ones(2), "y": {"b": 1, "a": 2}}
    b = {"y": {"a": 2, "b": 1}, "x": torch.ones(2)}
    assert frame.encode(a, {"m": 1, "n": 2}) == frame.encode(b, {"n": 2, "m": 1})


def test_the_header_says_what_is_sent() -> None:
    made = frame.encode({"w": torch.zeros(3, 2), "n": torch.zeros((), dtype=torch.int64), "s": "ü"}, {"round": 1})
    header = frame.read_header(made)
    assert (header.entries["n"].start, header.entries["n"].stop) == (0, 8)
    assert (header.entries["w"].start, header.entries["w"].stop) == (8, 32)
    assert header.entries["w"].shape == (3, 2)
    assert header.tensor_bytes == 32
    assert (header.scalars, header.facts) == ({"s": "ü"}, {"round": 1})
    assert header.payload_at % 8 == 0
    assert len(made) == header.payload_at + 32
    assert frame.read_header(frame.encode({})).tensor_bytes == 0


# Interoperability with the safetensors package

MIXED = {name: bits((2, 3), dtype, number) for number, (name, dtype) in enumerate(DTYPES.items())}
MIXED |= {"zero": torch.zeros(0, 4), "scalar": torch.tensor(3.5), "ü/\U0001f600": torch.arange(5)}


def test_the_package_reads_our_frames() -> None:
    got = safetensors.torch.load(bytes(frame.encode({**tree.assemble(MIXED), "s": [1, "ü"]}, {"round": 1})))
    assert tree.equal(tree.assemble(got), tree.assemble(MIXED))


def test_we_read_the_frames_of_the_package() -> None:
    facts = frame.canonical({"format": 1, "scalars": {"s": "ü", "e": {}}, "round": 1})
    theirs = safetensors.torch.save(MIXED, {"potluck": facts})
    got, read = frame.decode(theirs)
    assert tree.equal(got, {**tree.assemble(MIXED), "s": "ü", "e": {}})
    assert dict(read) == {"round": 1}


@pytest.mark.parametrize("dtype", DTYPES.values())
def test_of_one_dtype_both_write_the_same_bytes(dtype: torch.dtype) -> None:
    found = {name: bits(shape, dtype, 3) for name, shape in [("b", (2, 3)), ("a/c", (5,)), ("a/b", ()), ("z", (0, 2))]}
    meta = frame.canonical({"format": 1, "scalars": {"s": 1}, "round": 1})
    theirs = safetensors.torch.save(found, {"potluck": meta})
    assert frame.encode(tree.assemble({**found, "s": 1}), {"round": 1}) == theirs


def test_both_align_every_tensor() -> None:
    for made in (
        frame.encode(tree.assemble(MIXED)),
        safetensors.torch.save(MIXED, {"potluck": '{"format":1,"scalars":{}}'}),
    ):
        header = frame.read_header(made)
        assert header.payload_at % 8 == 0
        assert all(entry.start % entry.dtype.itemsize == 0 for entry in header.entries.values())


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_a_file_without_our_metadata_is_refused(metadata: dict[str, str] | None) -> None:
    with pytest.raises(WireError, match='metadata without the key "potluck"'):
        frame.read_header(safetensors.torch.save({"w": torch.ones(2)}, metadata))


# What a frame cannot hold


@pytest.mark.parametrize(
    ("sent", "facts", "message"),
    [
        ({"a": {"n": math.nan}}, {}, "tensor 'a/n': holds NaN or infinity"),
        ({"a": [1.0, math.inf]}, {}, "tensor 'a': holds NaN or infinity"),
        ({"a": 2**63}, {}, "tensor 'a': a whole number of more than 64 bits"),
        ({"a": None}, {}, "tensor 'a': expected a scalar, or a list of scalars"),
        ({"a": (1, 2)}, {}, "tensor 'a': expected a scalar, or a list of scalars"),
        ({"a": [[1]]}, {}, "tensor 'a': expected a scalar, or a list of scalars"),
        ({"a": torch.zeros(2, dtype=torch.complex64)}, {}, "tensor 'a': torch.complex64 cannot be sent"),
        ({"..": torch.zeros(2)}, {}, "expected names joined by single slashes"),
        ({"__metadata__": torch.zeros(2)}, {}, "expected names joined by single slashes"),
        ({}, {"notes": {"loss": math.nan}}, "the facts beside the message hold NaN or infinity"),
    ],
)
def test_what_a_frame_cannot_hold_is_a_wire_error(sent: dict[str, Any], facts: dict[str, Any], message: str) -> None:
    with pytest.raises(WireError) as caught:
        frame.encode(sent, facts)
    assert message in str(caught.value)
