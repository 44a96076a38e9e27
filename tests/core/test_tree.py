"""Trees: paths and back, equality and digests that miss nothing, and the mean against its closed form."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from potluck.core import tree
from potluck.core.mean import WeightedMean

keys = st.text(st.characters(codec="utf-8", exclude_characters="/"), min_size=1, max_size=5)
numbers = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
scalars = st.booleans() | numbers | st.text(max_size=5) | st.lists(numbers, max_size=3)
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.uint8, torch.bool]


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    values = torch.randn(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 2**31))))
    return (values * 3).to(draw(st.sampled_from(DTYPES)))


trees = st.recursive(
    st.dictionaries(keys, scalars | tensors(), max_size=4), lambda inner: st.dictionaries(keys, inner, max_size=3)
)


@given(trees)
def test_leaves_and_assemble_are_inverse(found: dict[str, Any]) -> None:
    by_path = dict(tree.leaves(found))
    assert list(by_path) == sorted(by_path, key=lambda path: path.split("/"))
    back = tree.assemble(by_path)
    assert tree.equal(back, found)
    assert back.keys() == found.keys()
    assert tree.tensors(found).keys() == {path for path, leaf in by_path.items() if isinstance(leaf, Tensor)}


@given(trees)
def test_a_copy_is_equal_and_has_the_same_digest(found: dict[str, Any]) -> None:
    copied = tree.map(found, torch.clone)
    assert tree.equal(copied, found)
    assert tree.digest(copied) == tree.digest(found)
    assert (tree.digest(found) == "") == (not found)


@given(trees, trees)
def test_equal_trees_and_only_they_have_equal_digests(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert (tree.digest(a) == tree.digest(b)) == tree.equal(a, b)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ({"a": 1}, {"a": 1.0}),
        ({"a": 1}, {"a": True}),
        ({"a": [1]}, {"a": [True]}),
        ({"a": 0.0}, {"a": -0.0}),
        ({"a": "1"}, {"a": 1}),
        ({"a": {}}, {}),
        ({"a": {"b": 1}}, {"a": 1, "b": 1}),
        ({"a": 1, "b": 2}, {"a|1|b": 2}),
        ({"a": 1, "b": 2}, {'a", 1]\n["b': 2}),
        ({"a": torch.zeros(2, 3)}, {"a": torch.zeros(3, 2)}),
        ({"a": torch.zeros(1)}, {"a": torch.zeros(())}),
        ({"a": torch.zeros(1)}, {"a": -torch.zeros(1)}),
        ({"a": torch.zeros(4, dtype=torch.float16)}, {"a": torch.zeros(4, dtype=torch.bfloat16)}),
        ({"a": torch.zeros(0, 3)}, {"a": torch.zeros(3, 0)}),
        ({"a": torch.zeros(1), "b": torch.ones(1)}, {"a": torch.ones(1), "b": torch.zeros(1)}),
        ({"a": [1, 2]}, {"a": torch.tensor([1, 2])}),
    ],
)
def test_close_relatives_are_different(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert not tree.equal(a, b)
    assert tree.digest(a) != tree.digest(b)


def test_one_bit_changes_the_digest() -> None:
    weights = {"w": torch.zeros(1000)}
    before = tree.digest(weights)
    weights["w"].view(torch.uint8)[3999] = 1
    assert tree.digest(weights) != before


def test_the_digest_is_pinned() -> None:
    """Run folders hold digests: a change of this one makes them all unreadable, and belongs in the changelog."""
    found = {"w": torch.arange(6, dtype=torch.float32).reshape(2, 3), "n": 3, "inner": {"empty": {}, "s": "ü"}}
    assert tree.digest(found) == "9d9cdd8b464eb34a07b8eec76daebf9717f5cd1da4a075d3496f93069a4bab19"


def test_the_layout_in_memory_does_not_matter() -> None:
    x = torch.arange(2 * 3 * 4 * 4, dtype=torch.float32).reshape(2, 3, 4, 4)
    last = x.contiguous(memory_format=torch.channels_last)
    strided = x.transpose(0, 1).contiguous().transpose(0, 1)
    for other in (last, strided):
        assert tree.equal({"x": x}, {"x": other})
        assert tree.digest({"x": x}) == tree.digest({"x": other})


def test_nan_equals_itself() -> None:
    assert tree.equal({"a": torch.tensor([math.nan]), "b": math.nan}, {"a": torch.tensor([math.nan]), "b": math.nan})


@pytest.mark.parametrize("odd", [{"": 1}, {"a/b": 1}, {1: 1}, {"a": {"x/": 1}}, {1: 1, "a": 2}])
def test_odd_keys_are_refused(odd: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected a non-empty string without '/'"):
        list(tree.leaves(odd))


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ({"a": 1, "a/b": 2}, "goes through a leaf"),
        ({"a/b": 2, "a": 1}, "stands twice"),
        ({"a/b/c": 1, "a/b": torch.zeros(1)}, "stands twice"),
    ],
)
def test_a_path_through_a_leaf_is_refused(paths: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tree.assemble(paths)


A = {"w": torch.tensor([1.0, 2.0]), "n": torch.tensor(5), "inner": {"v": torch.tensor([[3.0]])}, "s": "left"}
B = {"w": torch.tensor([10.0, 20.0]), "n": torch.tensor(7), "inner": {"v": torch.tensor([[4.0]])}, "s": "right"}


def test_arithmetic_leaves_integers_and_scalars_of_the_left() -> None:
    assert tree.equal(
        tree.add(A, B, alpha=0.5), {**A, "w": torch.tensor([6.0, 12.0]), "inner": {"v": torch.full((1, 1), 5.0)}}
    )
    assert tree.equal(tree.subtract(B, A), {**B, "w": torch.tensor([9.0, 18.0]), "inner": {"v": torch.ones(1, 1)}})
    assert tree.equal(tree.scale(A, 2.0), {**A, "w": torch.tensor([2.0, 4.0]), "inner": {"v": torch.full((1, 1), 6.0)}})
    assert tree.norm(A) == math.sqrt(1 + 4 + 9)
    assert tree.nbytes(A) == 8 + 8 + 4


def test_arithmetic_minds_names_and_shapes() -> None:
    with pytest.raises(ValueError, match="differ in their names: x"):
        tree.add(A, {**B, "x": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"w: shapes \(2,\) and \(1,\) differ"):
        tree.subtract(A, {**B, "w": torch.zeros(1)})
    assert tree.add({"a": {}, "w": torch.ones(1)}, {"w": torch.ones(1)})["w"] == 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_finite_finds_every_odd_value(dtype: torch.dtype, odd: float) -> None:
    values = torch.full((77,), 60_000.0).to(dtype)
    assert tree.finite(values)
    assert tree.finite(torch.full((9,), torch.finfo(dtype).max, dtype=dtype)), "the sum overflows, no value does"
    for place in (0, 40, 76):
        assert not tree.finite(values.index_fill(0, torch.tensor([place]), odd))
    both = values.clone()
    both[3], both[4] = odd, -odd
    assert not tree.finite(both)
    assert tree.finite(torch.zeros(0, dtype=dtype))


# The weighted mean


def mean_of(replies: list[tuple[dict[str, Any], float]]) -> dict[str, Any]:
    mean = WeightedMean()
    for found, weight in replies:
        mean.add(found, weight)
    return mean.result()


@given(st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=6), st.integers(0, 2**31))
def test_the_mean_is_the_closed_form_in_float64(weights: list[float], seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    values = torch.randn(len(weights), 3, 4, generator=rng)
    v = torch.tensor(weights, dtype=torch.float64)
    exact = torch.einsum("k,kab->ab", v, values.double()) / v.sum()
    got = mean_of([({"a": {"w": values[k]}}, weight) for k, weight in enumerate(weights)])["a"]["w"]
    assert got.dtype == torch.float32
    assert torch.allclose(got.double(), exact, rtol=1.2e-7, atol=1e-7 * float(values.abs().max()))


@given(st.integers(1, 2**40), st.integers(0, 2**31))
def test_the_mean_of_one_is_that_one_bitwise(samples: int, seed: int) -> None:
    bits = torch.randint(0, 2**31, (256,), generator=torch.Generator().manual_seed(seed)).to(torch.int32)
    values = bits.view(torch.float32)
    values = values[values.isfinite()]
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        kept = values.to(dtype)
        kept = torch.cat([kept[kept.isfinite()], torch.tensor([-0.0, 0.0], dtype=dtype)])
        assert tree.equal(mean_of([({"w": kept}, float(samples))]), {"w": kept})


@given(st.lists(st.integers(1, 2**30), min_size=2, max_size=5), st.integers(0, 2**31))
def test_the_mean_of_equals_is_each_of_them_bitwise(samples: list[int], seed: int) -> None:
    values = torch.randn(64, generator=torch.Generator().manual_seed(seed))
    assert tree.equal(mean_of([({"w": values}, float(n)) for n in samples]), {"w": values})


@settings(max_examples=30)
@given(st.permutations(range(5)))
def test_small_whole_numbers_have_an_exact_mean_in_any_order(order: list[int]) -> None:
    replies = [({"w": torch.full((3,), float(2**k))}, 2.0**k) for k in range(5)]
    assert tree.equal(mean_of([replies[k] for k in order]), mean_of(replies))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8])
def test_integers_keep_the_largest_and_their_dtype(dtype: torch.dtype) -> None:
    first = torch.tensor([3, 9], dtype=dtype)
    got = mean_of([({"n": first}, 100.0), ({"n": torch.tensor([4, 1], dtype=dtype)}, 1.0)])["n"]
    assert tree.equal({"n": got}, {"n": torch.tensor([4, 9], dtype=dtype)})
    assert first.tolist() == [3, 9]


def test_truth_values_are_joined_by_or() -> None:
    got = mean_of([({"n": torch.tensor([True, False])}, 1.0), ({"n": torch.tensor([False, False])}, 1.0)])["n"]
    assert got.tolist() == [True, False]
    assert got.dtype == torch.bool


def test_the_inputs_of_a_mean_stay_as_they_are() -> None:
    first, second = torch.ones(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    mean_of([({"w": first}, 1.0), ({"w": second}, 1.0)])
    assert first.sum() == 3
    assert second.sum() == 0


W = {"w": torch.ones(2, 3)}


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"w": torch.ones(1, 3)}, r"w: shapes \(2, 3\) and \(1, 3\) differ"),
        ({"w": torch.ones(3)}, r"w: shapes \(2, 3\) and \(3,\) differ"),
        ({"w": torch.ones(())}, r"w: shapes \(2, 3\) and \(\) differ"),
        ({"v": torch.ones(2, 3)}, "differ in their names: v, w"),
        ({"w": torch.ones(2, 3), "v": torch.ones(1)}, "differ in their names: v"),
        ({}, "differ in their names: w"),
        ({"w": torch.ones(2, 3, dtype=torch.float64)}, "w: torch.float32 and torch.float64 differ"),
        ({"w": torch.ones(2, 3, dtype=torch.int64)}, "w: torch.float32 and torch.int64 differ"),
    ],
)
def test_what_does_not_fit_the_mean_is_refused(second: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mean_of([(W, 1.0), (second, 1.0)])


def test_a_first_tree_without_tensors_binds_the_others_too() -> None:
    with pytest.raises(ValueError, match="differ in their names: w"):
        mean_of([({}, 1.0), (W, 1.0)])


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan, math.inf])
def test_odd_weights_are_refused(weight: float) -> None:
    with pytest.raises(ValueError, match="expected a positive, finite number"):
        mean_of([(W, weight)])


def test_the_mean_of_nothing_is_an_error() -> None:
    assert not WeightedMean()
    with pytest.raises(ValueError, match="the mean of nothing"):
        WeightedMean().result()
