"""Channels: chains of codecs, their limits, and chains that make no sense."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from potluck.core import seeds, tree
from potluck.core.errors import ConfigError, WireError
from potluck.core.spec import Array, Exactly, Free, Integers, Number, OneOf, spec_of
from potluck.wire import frame
from potluck.wire.channel import Channel, make_channel

CODECS = ("float16", "bfloat16", "int8")
CHAINS: list[list[str]] = [[], ["zstd"], *([name] for name in CODECS), *([name, "zstd"] for name in CODECS)]
every_chain = pytest.mark.parametrize("chain", CHAINS, ids="+".join)


def rng() -> torch.Generator:
    return seeds.generator(0, 1, 0, "codec")


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def packed(channel: Channel, sent: dict[str, Any], facts: dict[str, Any] | None = None) -> bytearray:
    return channel.pack(channel.compress(sent, None, rng())[0], facts or {})


SENT: dict[str, Any] = {
    "weights": {"w": normal(20, 30), "b": normal(5), "n": torch.tensor(7), "none": normal(0, 3)},
    "ids": [1, 2, 3],
    "samples": 12,
    "empty": {},
}


@every_chain
def test_every_chain_carries_a_tree_within_its_limit(chain: list[str]) -> None:
    channel, spec = make_channel(chain, direction="up"), spec_of(SENT)
    made = packed(channel, SENT, {"round": 1})
    got, header = channel.decode(made, facts={"round": 1}, spec=spec, limit=channel.limit(spec))
    assert channel.names == chain
    assert header.facts["codec"] == chain
    assert got["weights"]["w"].dtype == torch.float32
    assert torch.allclose(got["weights"]["w"], SENT["weights"]["w"], atol=0.05)
    exact = {**SENT, "weights": {**SENT["weights"], "w": got["weights"]["w"], "b": got["weights"]["b"]}}
    assert tree.equal(got, exact)
    if not set(chain) - {"zstd"}:
        assert tree.equal(got, SENT)
    assert packed(channel, SENT, {"round": 1}) == made


def test_zstd_packs_and_says_how_much_it_holds() -> None:
    channel = make_channel(["zstd"], direction="up")
    sent = {"w": torch.zeros(10_000)}
    made = packed(channel, sent)
    outer = frame.read_header(made)
    assert outer.entries.keys() == {"zstd"}
    assert len(made) < 2_000 < outer.scalars["raw_bytes"]
    got, header = channel.decode(made, facts={}, spec=spec_of(sent), limit=channel.limit(spec_of(sent)))
    assert tree.equal(got, sent)
    assert header.tensor_bytes == 40_000


@pytest.mark.parametrize(("sender", "receiver"), list(itertools.permutations(CHAINS[:4], 2)), ids=str)
def test_the_two_sides_must_have_the_same_chain(sender: list[str], receiver: list[str]) -> None:
    made = packed(make_channel(sender, direction="up"), SENT)
    with pytest.raises(WireError, match=r"codec is .*, expected"):
        make_channel(receiver, direction="up").decode(made, facts={}, limit=2**20)


def test_a_frame_beyond_the_limit_is_refused() -> None:
    made = packed(Channel(), SENT)
    with pytest.raises(WireError, match=rf"{len(made):,} bytes, expected at most {len(made) - 1:,}"):
        Channel().decode(made, facts={}, limit=len(made) - 1)
    Channel().decode(made, facts={}, limit=len(made))


names = st.text(st.characters(codec="utf-8", exclude_characters="/"), min_size=1, max_size=30)
keys = names.filter(lambda name: name not in (".", "..", "__metadata__"))
DTYPES = [torch.float32, torch.float64, torch.int64, torch.int8, torch.bool]
values = (
    st.tuples(st.lists(st.integers(0, 9), max_size=4), st.sampled_from(DTYPES)).map(lambda a: normal(*a[0]).to(a[1]))
    | st.text(st.characters(codec="utf-8"), max_size=300)
    | st.lists(st.integers(-(2**63), 2**63 - 1), max_size=50)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.just({})
)
trees = st.dictionaries(keys, st.dictionaries(keys, values, max_size=6) | values, max_size=6)


@settings(max_examples=60)
@given(trees, st.sampled_from(CHAINS))
def test_the_limit_is_an_upper_bound(sent: dict[str, Any], chain: list[str]) -> None:
    channel, spec = make_channel(chain, direction="up"), spec_of(sent)
    limit = channel.limit(spec)
    notes = {"\U0001f600" * 100 + str(k): 1 / 3 for k in range(20)}
    made = packed(channel, sent, {"notes": notes, "own": "a" * 64})
    assert len(made) <= limit
    got, _ = channel.decode(made, facts={}, spec=spec, limit=limit)
    assert got.keys() == sent.keys()


def test_names_and_lists_alone_stay_within_the_limit() -> None:
    """Where the header outweighs the tensors: many tensors, odd names, long lists of ids."""
    many = {'\u00e9\U0001f600\\"' * 10 + str(k): normal(1) for k in range(2_000)}
    ids = {"ids": list(range(10**9, 10**9 + 50_000))}
    for sent, spec in (
        (many, spec_of(many)),
        (ids, {"ids": Integers(low=0, high=2 * 10**9, most=50_000)}),
        (ids, spec_of(ids)),
        (
            {f"n{k}": -1.2345678901234567e-300 for k in range(5_000)},
            {f"n{k}": Number(kind=float) for k in range(5_000)},
        ),
        ({"s": "\u00e9" * 50_000}, {"s": Exactly(value="\u00e9" * 50_000)}),
    ):
        made = packed(Channel(), sent)
        assert len(made) <= Channel().limit(spec)
        assert len(made) > 0.1 * Channel().limit(spec), "a limit far above what is sent protects nobody"
        Channel().decode(made, facts={}, spec=spec, limit=Channel().limit(spec))


def test_what_cannot_be_compressed_stays_within_the_limit() -> None:
    bits = torch.randint(0, 256, (2**22,), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    channel, sent = make_channel(["zstd"], direction="up"), {"w": bits}
    made = packed(channel, sent)
    assert 2**22 < len(made) <= channel.limit(spec_of(sent))
    assert tree.equal(channel.decode(made, facts={}, spec=spec_of(sent), limit=channel.limit(spec_of(sent)))[0], sent)


RANK = Free("rank", 1, 16)
FACTORS: dict[str, Any] = {
    "w": OneOf(
        (
            {"u": Array(dtype=torch.float32, shape=(30, RANK)), "v": Array(dtype=torch.float32, shape=(RANK, 20))},
            {"full": Array(dtype=torch.float32, shape=(30, 20))},
        )
    ),
    "free": Array(dtype=torch.float32, shape=(RANK, 10)),
}


@every_chain
@pytest.mark.parametrize("rank", [1, 6, 16])
@pytest.mark.parametrize("full", [False, True])
def test_free_dimensions_and_forms_go_through_every_chain(chain: list[str], rank: int, full: bool) -> None:
    channel = make_channel(chain, direction="up")
    node = {"full": normal(30, 20)} if full else {"u": normal(30, rank), "v": normal(rank, 20)}
    sent = {"w": node, "free": normal(rank, 10)}
    made = packed(channel, sent)
    assert len(made) <= channel.limit(FACTORS)
    got, _ = channel.decode(made, facts={}, spec=FACTORS, limit=channel.limit(FACTORS))
    assert {path: value.shape for path, value in tree.tensors(got).items()} == {
        path: value.shape for path, value in tree.tensors(sent).items()
    }


@every_chain
@pytest.mark.parametrize(
    ("sent", "message"),
    [
        ({"w": {"full": normal(30, 20)}}, "missing"),
        ({"w": {"u": normal(30, 9)}, "free": normal(9, 10)}, "tensor 'w': holds none of the forms"),
        ({"free": normal(9, 10)}, "tensor 'w': holds none of the forms"),
        ({"w": {"u": normal(30, 9), "v": normal(8, 20)}, "free": normal(9, 10)}, "'rank' the same everywhere"),
        ({"w": {"full": normal(30, 20)}, "free": normal(17, 10)}, "tensor 'free"),
    ],
)
def test_no_chain_lets_a_part_go_missing(chain: list[str], sent: dict[str, Any], message: str) -> None:
    channel = make_channel(chain, direction="up")
    with pytest.raises(WireError) as caught:
        channel.decode(packed(channel, sent), facts={}, spec=FACTORS, limit=2**20)
    assert message in str(caught.value)


@every_chain
def test_a_form_that_is_optional_may_be_left_out_under_every_chain(chain: list[str]) -> None:
    forms: Any = FACTORS["w"]
    spec = {**FACTORS, "w": replace(forms, optional=True)}
    channel, sent = make_channel(chain, direction="up"), {"free": normal(9, 10)}
    got, _ = channel.decode(packed(channel, sent), facts={}, spec=spec, limit=channel.limit(spec))
    assert got.keys() == {"free"}


@every_chain
def test_a_module_may_have_the_name_of_a_codec(chain: list[str]) -> None:
    named = {name: normal(20, 30) for name in (*CODECS, "topk", "zstd", "scale")}
    sent = {"weights": named, **named, "free": {"int8": normal(20, 30), "scale": normal(1)}}
    channel = make_channel(chain, direction="up")
    got, _ = channel.decode(packed(channel, sent), facts={}, spec=spec_of(sent), limit=channel.limit(spec_of(sent)))
    assert tree.tensors(got).keys() == tree.tensors(sent).keys()
    for path, value in tree.tensors(got).items():
        assert torch.allclose(value, tree.tensors(sent)[path], atol=0.05), path


@pytest.mark.parametrize("sent", [{"~int8": normal(3)}, {"w": {"~scale": normal(70)}}])
def test_names_of_the_codecs_are_refused_where_there_are_codecs(sent: dict[str, Any]) -> None:
    with pytest.raises(WireError, match="names that begin with ~ are the codecs'"):
        packed(make_channel(["int8"], direction="up"), sent)
    assert tree.equal(Channel().decode(packed(Channel(), sent), facts={}, limit=2**20)[0], sent)


@pytest.mark.parametrize(
    ("chain", "message"),
    [
        (["gzip"], "wire.up holds 'gzip': expected some of float16, bfloat16, int8, topk, zstd"),
        ([3], "wire.up holds 3: expected some of"),
        ([["int8"]], r"wire.up holds \['int8'\]: expected some of"),
        ([{"int8": 1}], r"wire.up holds \{'int8': 1\}: int8 takes no settings"),
        (["int8", "int8"], "wire.up = .*: each codec at most once"),
        (["zstd", "int8"], "wire.up = .*: zstd comes last"),
        (["float16", "int8"], "wire.up = .*: one of float16, int8 at a time"),
    ],
)
def test_chains_that_make_no_sense(chain: list[Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_channel(chain, direction="up")
    with pytest.raises(ConfigError, match=r"wire\.down"):
        make_channel(chain, direction="down")
