"""Codecs: what they keep, what they cost, and that ``int8`` is unbiased."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from potluck.core import seeds, tree
from potluck.core.errors import WireError
from potluck.wire import frame
from potluck.wire.channel import Channel, make_channel


def rng(seed: int = 0) -> torch.Generator:
    return seeds.generator(seed, 1, 0, "codec")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def there_and_back(channel: Channel, sent: dict[str, Any], seed: int = 0) -> dict[str, Any]:
    packed = channel.pack(channel.compress(sent, None, rng(seed))[0], {})
    return channel.decode(packed, facts={}, limit=2**24)[0]


# float16 and bfloat16


@pytest.mark.parametrize(("name", "dtype"), [("float16", torch.float16), ("bfloat16", torch.bfloat16)])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (65,), (2, 3, 4, 5)])
def test_casts_round_to_the_nearest(name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    sent = {"a": {"w": normal(*shape)}, "n": torch.tensor(2**40), "d": normal(3).double(), "s": 1}
    got = there_and_back(make_channel([name], direction="up"), sent)
    assert tree.equal(got, {**sent, "a": {"w": sent["a"]["w"].to(dtype).float()}})  # type: ignore[index]


def test_casts_take_two_bytes_a_value() -> None:
    for name in ("float16", "bfloat16"):
        channel = make_channel([name], direction="up")
        packed = channel.pack(channel.compress({"w": normal(100)}, None, rng())[0], {})
        assert frame.read_header(packed).tensor_bytes == 200


def test_half_precision_overflows_with_the_name_of_the_tensor() -> None:
    channel = make_channel(["float16"], direction="up")
    assert there_and_back(channel, {"w": torch.tensor([65_504.0])})["w"] == 65_504
    with pytest.raises(WireError) as caught:
        channel.compress({"weights": {"conv.weight": torch.tensor([0.0, 65_520.0])}}, None, rng())
    assert str(caught.value) == "tensor 'weights/conv.weight': float16: a value beyond 65,504; use bfloat16"


def test_bfloat16_overflows_only_beyond_its_own_range() -> None:
    channel = make_channel(["bfloat16"], direction="up")
    assert there_and_back(channel, {"w": torch.tensor([1e30])})["w"].isfinite()
    with pytest.raises(WireError, match=r"tensor 'w': bfloat16: a value beyond 3\.3895e\+38; send float32"):
        channel.compress({"w": torch.tensor([torch.finfo(torch.float32).max])}, None, rng())


@pytest.mark.parametrize("name", ["float16", "bfloat16", "int8"])
@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused_by_name(name: str, odd: float) -> None:
    values = torch.ones(100)
    values[57] = odd
    with pytest.raises(WireError, match=r"tensor 'a/w': .*NaN or infinity"):
        make_channel([name], direction="up").compress({"a": {"w": values}}, None, rng())


# int8

INT8 = make_channel(["int8"], direction="up")


def test_int8_is_unbiased() -> None:
    v = torch.cat([normal(60), torch.tensor([0.0, 1e-4, -1e-4, 3.0])])
    step = float(v.abs().max()) / 127
    draws, generator = 10_000, rng()
    codec = INT8.lossy[0]
    total, squares = torch.zeros(64, dtype=torch.float64), torch.zeros(64, dtype=torch.float64)
    for _ in range(draws):
        node, _ = codec.encode(v, None, generator)
        got = codec.decode(node).double()  # type: ignore[arg-type]
        total += got
        squares += got.square()
    mean = total / draws
    error = ((squares / draws - mean.square()).clamp(min=0) / draws).sqrt()
    assert bool(((mean - v.double()).abs() <= 4 * error + 1e-6 * step).all())
    assert float(error.max()) > 0.1 * step / math.sqrt(draws), "rounding that does not vary is not stochastic"


@given(st.integers(0, 2**31), st.floats(1e-20, 1e20), st.sampled_from([(64,), (1000,), (8, 8), (4, 3, 3, 3)]))
def test_the_error_of_int8_is_below_one_step(seed: int, scale: float, shape: tuple[int, ...]) -> None:
    v = normal(*shape, seed=seed) * scale
    got = there_and_back(INT8, {"w": v}, seed)["w"]
    step = float(v.abs().max()) / 127
    assert got.shape == v.shape
    assert got.dtype == torch.float32
    assert float((got.double() - v.double()).abs().max()) < step * (1 + 1e-4)
    assert float(got.abs().max()) <= float(v.abs().max()) * (1 + 1e-6)


def test_int8_takes_a_byte_a_value_and_four_for_the_scale() -> None:
    sent, memory = INT8.compress({"a": {"w": normal(10, 10)}, "b": normal(64), "n": torch.arange(100)}, None, rng())
    assert memory == {}
    assert sent["a"]["w"]["~int8"].dtype == torch.int8
    assert tree.nbytes(sent) == 100 + 4 + 64 + 4 + 800
    assert frame.read_header(INT8.pack(sent, {})).tensor_bytes == 972


@pytest.mark.parametrize("shape", [(63,), (), (1,), (0,), (3, 21), (100, 0)])
def test_fewer_than_64_values_pass_as_they_are(shape: tuple[int, ...]) -> None:
    sent = {"w": normal(*shape)}
    assert tree.equal(INT8.compress(sent, None, rng())[0], sent)
    assert tree.equal(there_and_back(INT8, sent), sent)


def test_zeros_stay_zeros_and_extremes_stay_exact() -> None:
    assert tree.equal(there_and_back(INT8, {"w": torch.zeros(80)}), {"w": torch.zeros(80)})
    signs = torch.tensor([127.0, -127.0] * 40)
    assert tree.equal(there_and_back(INT8, {"w": signs}), {"w": signs})
    whole = torch.arange(-127, 128).float()
    assert tree.equal(there_and_back(INT8, {"w": whole}), {"w": whole})


def test_rounding_depends_on_the_generator_alone() -> None:
    sent = {"w": normal(200)}
    assert tree.equal(there_and_back(INT8, sent, 1), there_and_back(INT8, sent, 1))
    assert not tree.equal(there_and_back(INT8, sent, 1), there_and_back(INT8, sent, 2))


def test_integers_and_double_precision_pass_exactly() -> None:
    sent = {"n": torch.arange(200), "d": normal(200).double(), "h": normal(200).half(), "m": torch.ones(99) > 0}
    assert tree.equal(there_and_back(INT8, sent), sent)


@pytest.mark.parametrize(
    "node",
    [
        {"~int8": torch.zeros(100, dtype=torch.int8)},
        {"~int8": torch.zeros(100, dtype=torch.int8), "scale": 1.0},
        {"~int8": 3, "scale": torch.ones(1)},
        {"~int8": torch.zeros(100), "scale": torch.ones(1)},
        {"~int8": torch.zeros(100, dtype=torch.int8), "scale": torch.ones(7)},
        {"~int8": torch.zeros(100, dtype=torch.int8), "scale": torch.ones(1).double()},
        {"~int8": torch.zeros(100, dtype=torch.int8), "scale": torch.ones(1), "more": 1},
    ],
)
def test_a_damaged_node_is_refused_without_a_spec_too(node: dict[str, Any]) -> None:
    with pytest.raises(WireError, match="tensor 'w': int8: expected"):
        INT8.decode(INT8.pack({"a": {"w": node}}, {}), facts={}, limit=2**20)


@pytest.mark.parametrize(
    "node", [{"~float16": 1}, {"~float16": torch.ones(2)}, {"~float16": torch.ones(2).half(), "x": 1}]
)
def test_a_damaged_cast_is_refused_without_a_spec_too(node: dict[str, Any]) -> None:
    channel = make_channel(["float16"], direction="down")
    with pytest.raises(WireError, match="tensor 'w': float16: expected one tensor"):
        channel.decode(channel.pack({"w": node}, {}), facts={}, limit=2**20)
