"""zstd payloads that want more memory than they may have, or are not what they announce."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
import torch
import zstandard

from potluck.core.errors import WireError
from potluck.core.spec import Array, Number
from potluck.wire import frame
from potluck.wire.channel import make_channel
from potluck.wire.messages import Messages

SPEC = {"w": Array(dtype=torch.float32, shape=(1000,)), "samples": Number(kind=int, low=1, high=100)}
GOOD = {"w": torch.arange(1000, dtype=torch.float32), "samples": 3}
LETTERS = Messages(
    method="fedavg",
    digest="c" * 64,
    up=make_channel(["zstd"], direction="up"),
    down=make_channel([], direction="down"),
    seed=0,
)
FACTS = {"method": "fedavg", "config": "c" * 64, "kind": "up", "round": 5, "device": 3, "codec": ["zstd"]}
BOMB = 2**28
"""256 MB, from 8 kB."""
ALLOWED = 2**20
"""Bytes that refusing a bomb may take: far above the limit of the spec (70 kB), far below the bomb."""


def inner(tree: dict[str, Any] = GOOD, **changed: Any) -> bytes:
    return bytes(frame.encode(tree, {**FACTS, **changed}))


def outer(payload: bytes, raw: Any, more: dict[str, Any] | None = None) -> bytearray:
    body = torch.tensor(list(payload), dtype=torch.uint8)
    return frame.encode({"zstd": body, "raw_bytes": raw, **(more or {})}, FACTS)


def squeezed(data: bytes, **options: Any) -> bytes:
    return zstandard.ZstdCompressor(level=3, **options).compress(data)


def zeros(announced: bool) -> bytes:
    """A payload of 256 MB of zeros, made in pieces."""
    packer = zstandard.ZstdCompressor(level=1, write_content_size=announced).compressobj(size=BOMB if announced else -1)
    piece = bytes(2**20)
    return b"".join([*(packer.compress(piece) for _ in range(BOMB // len(piece))), packer.flush()])


def refused(data: bytes | bytearray) -> str:
    """The reason; and the memory that finding it took is small."""
    tracemalloc.start()
    try:
        with pytest.raises(WireError) as caught:
            LETTERS.read_up(data, 5, 3, SPEC)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert caught.value.device == 3
    assert str(caught.value).startswith("device 3: ")
    assert peak < ALLOWED
    return caught.value.reason


def test_what_is_attacked_below_is_sound_as_it_stands() -> None:
    data = inner()
    got, _ = LETTERS.read_up(outer(squeezed(data), len(data)), 5, 3, SPEC)
    assert torch.equal(got["w"], GOOD["w"])


@pytest.fixture(scope="module", params=[True, False], ids=["size in the payload", "no size in the payload"])
def bomb(request: pytest.FixtureRequest) -> bytes:
    made = zeros(request.param)
    assert len(made) < 2**15
    return made


@pytest.mark.parametrize("raw", [1, 100, 60_000, BOMB, 2**62])
def test_bombs(bomb: bytes, raw: int) -> None:
    assert "zstd" in refused(outer(bomb, raw))


def test_a_bomb_is_a_bomb() -> None:
    """The measure itself: a reader that believes the payload does take the memory."""
    sized = zeros(announced=True)
    tracemalloc.start()
    out = zstandard.ZstdDecompressor().decompress(sized, max_output_size=100)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(out) == BOMB
    assert peak > BOMB


def test_a_payload_that_understates_its_size() -> None:
    data = inner()
    payload = bytearray(squeezed(data + bytes(2**24)))
    parameters = zstandard.get_frame_parameters(bytes(payload))
    assert parameters.content_size == len(data) + 2**24
    at = payload.index((len(data) + 2**24).to_bytes(4, "little"))
    payload[at : at + 4] = len(data).to_bytes(4, "little")
    assert zstandard.frame_content_size(bytes(payload)) == len(data)
    assert "damaged" in refused(outer(bytes(payload), len(data)))


DATA = inner()
PACKED = squeezed(DATA)
SKIPPABLE = (0x184D2A50).to_bytes(4, "little") + (8).to_bytes(4, "little") + bytes(8)


@pytest.mark.parametrize(
    ("payload", "raw", "reason"),
    [
        (PACKED, len(DATA) + 1, "another size"),
        (PACKED, len(DATA) - 1, "another size"),
        (PACKED, 0, "announces 0 bytes"),
        (PACKED, -1, "announces -1 bytes"),
        (PACKED, True, "announces True bytes"),
        (PACKED, float(len(DATA)), "announces"),
        (PACKED, str(len(DATA)), "announces"),
        (PACKED, [len(DATA)], "announces"),
        (PACKED, 2**62, "announces"),
        (PACKED + b"more", len(DATA), "damaged"),
        (PACKED + PACKED, len(DATA), "damaged"),
        (PACKED + SKIPPABLE, len(DATA), "damaged"),
        (SKIPPABLE + PACKED, len(DATA), "another size"),
        (PACKED[:-1], len(DATA), "damaged"),
        (PACKED[:9], len(DATA), "damaged"),
        (PACKED[:3], len(DATA), "damaged"),
        (b"", len(DATA), "damaged"),
        (b"\0" * 100, len(DATA), "damaged"),
        (DATA, len(DATA), "damaged"),
        (squeezed(DATA, write_content_size=False), len(DATA), "another size"),
        (squeezed(b""), 1, "another size"),
        (squeezed(PACKED), len(PACKED), "header of"),
        (squeezed(b"x" * 100), 100, "header of"),
    ],
    ids=range(23),
)
def test_payloads_that_are_not_what_they_announce(payload: bytes, raw: Any, reason: str) -> None:
    assert reason in refused(outer(payload, raw))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (inner(round=4), "round is 4, expected 5"),
        (inner(device=1), "device is 1, expected 3"),
        (inner(config="d" * 64), "config is"),
        (inner(codec=[]), "codec is []"),
        (inner(own=3), "own is 3"),
        (inner({"w": torch.zeros(999), "samples": 3}), "got shape (999,)"),
        (inner({"w": torch.full((1000,), float("nan")), "samples": 3}), "holds NaN or infinity"),
        (inner({**GOOD, "samples": 0}), "got 0"),
        (inner({**GOOD, "more": 1}), "not expected here"),
        (bytes(outer(PACKED, len(DATA))), "not expected here"),
        (inner()[:-4], "truncated or padded"),
        (inner() + b"\0" * 8, "truncated or padded"),
    ],
    ids=range(12),
)
def test_the_inner_frame_is_checked_like_any_other(data: bytes, reason: str) -> None:
    assert reason in refused(outer(squeezed(data), len(data)))


@pytest.mark.parametrize(
    "more", [{"more": 1}, {"more": torch.zeros(2)}, {"w": torch.zeros(1000)}, {"zstd2": {}}, {"samples": 3}], ids=str
)
def test_the_outer_frame_holds_nothing_else(more: dict[str, Any]) -> None:
    assert "zstd: expected one tensor" in refused(outer(PACKED, len(DATA), more))


def test_nested_bombs() -> None:
    """A frame in a frame in a frame: only one layer is ever opened."""
    data = DATA
    for _ in range(5):
        data = bytes(outer(squeezed(data), len(data)))
    assert "not expected here" in refused(data)


def test_bytes_flipped_in_the_payload() -> None:
    sound = 0
    for place in range(0, len(PACKED), 7):
        bad = bytearray(PACKED)
        bad[place] ^= 0x41
        made = outer(bytes(bad), len(DATA))
        try:
            got, _ = LETTERS.read_up(made, 5, 3, SPEC)
        except WireError:
            refused(made)
        else:
            sound += 1
            assert bool(got["w"].isfinite().all())
    assert sound < len(PACKED) / 7
