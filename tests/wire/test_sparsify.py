"""Top-k with error feedback: its identities, its forms on the wire, and nodes that lie."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from potluck.core import seeds, tree
from potluck.core.errors import ConfigError, WireError
from potluck.core.spec import spec_of
from potluck.engines.seam import Letters
from potluck.wire import frame
from potluck.wire.channel import Channel, codec_names, make_channel
from potluck.wire.sparsify import TopK, largest


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def rng(round: int = 1) -> torch.Generator:
    return seeds.generator(0, round, 0, "codec")


def channel(fraction: float, *more: str, decay: float = 1.0) -> Channel:
    return make_channel([{"topk": fraction, "decay": decay}, *more], direction="up")


def sent_and_kept(
    found: Channel, given: dict[str, Any], memory: Any = None, round: int = 1
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(what the receiver sees, what the sender remembers)."""
    packed, kept = found.compress(given, memory, rng(round), round)
    spec = spec_of(given)
    return found.decode(found.pack(packed, {}), facts={}, spec=spec, limit=found.limit(spec))[0], kept


@given(st.integers(1, 400), st.floats(0.001, 1.0), st.integers(0, 2**31))
def test_the_largest_are_kept_the_lower_index_wins(count: int, fraction: float, seed: int) -> None:
    values = torch.randint(-4, 5, (count,), generator=torch.Generator().manual_seed(seed)).float()
    k = max(1, min(count, math.ceil(fraction * count)))
    wanted = sorted(sorted(range(count), key=lambda i: (-abs(float(values[i])), i))[:k])
    assert largest(values, k).tolist() == wanted


@given(st.integers(1, 300), st.floats(0.005, 1.0), st.integers(0, 2**31))
def test_what_is_sent_and_what_is_kept_make_the_whole(count: int, fraction: float, seed: int) -> None:
    """c + e = p bitwise, and ‖x - top_k(x)‖² ≤ (1 - k/d) ‖x‖²."""
    values = normal(count, seed=seed)
    got, kept = sent_and_kept(channel(fraction), {"w": values})
    left = kept.get("topk", {}).get("w", torch.zeros(count))
    assert torch.equal(got["w"] + left, values)
    assert not bool(((got["w"] != 0) & (left != 0)).any())
    k = max(1, math.ceil(fraction * count - 1e-9))
    assert int((got["w"] != 0).sum()) in (k, count)
    assert (
        float(left.double().square().sum())
        <= (1 - k / count) * float(values.double().square().sum()) * (1 + 1e-9) + 1e-12
    )


@pytest.mark.parametrize("more", [(), ("float16",), ("int8",), ("int8", "zstd"), ("zstd",)], ids=str)
def test_no_mass_is_lost_over_the_rounds(more: tuple[str, ...]) -> None:
    """Σ c_t + e_T = Σ Δ_t, with whatever stands behind topk in the chain."""
    found, memory = channel(0.1, *more), None
    total, wanted = torch.zeros(30, 40, dtype=torch.float64), torch.zeros(30, 40, dtype=torch.float64)
    for round in range(1, 8):
        update = normal(30, 40, seed=round)
        got, memory = sent_and_kept(found, {"w": update}, memory, round)
        total += got["w"].double()
        wanted += update.double()
        assert memory["round"] == round
    assert torch.allclose(total + memory["topk"]["w"].double(), wanted, rtol=0, atol=2e-5)
    assert float((total - wanted).abs().max()) > 0.1


@pytest.mark.parametrize(
    ("count", "fraction", "k", "places"),
    [
        (1000, 0.01, 10, "index"),
        (1000, 0.03, 30, "index"),
        (1000, 0.032, 32, "bitmap"),
        (1000, 0.07, 70, "bitmap"),
        (1000, 0.5, 500, "bitmap"),
        (1000, 0.96, 960, "bitmap"),
        (1000, 0.97, 1000, ""),
        (1000, 1.0, 1000, ""),
        (8, 0.001, 1, "bitmap"),
        (2, 0.5, 1, "bitmap"),
        (1, 0.5, 1, ""),
        (0, 0.5, 0, ""),
    ],
)
def test_the_smaller_form_is_sent_with_exact_bytes(count: int, fraction: float, k: int, places: str) -> None:
    assert TopK(fraction).form(count) == (k, places)
    found, given = channel(fraction), {"w": normal(count)}
    packed, kept = found.compress(given, None, rng())
    size = 4 * k + {"index": 4 * k, "bitmap": -(-count // 8), "": 0}[places]
    assert frame.read_header(found.pack(packed, {})).tensor_bytes == size
    assert size <= 4 * count
    assert bool(kept) == bool(places)


def test_all_of_it_is_the_tensor_itself_bitwise() -> None:
    given = {"w": normal(20, 30), "b": normal(3), "n": torch.arange(500), "d": normal(500).double(), "s": 3}
    got, kept = sent_and_kept(channel(1.0), given)
    assert tree.equal(got, given)
    assert kept == {}
    part, _ = sent_and_kept(channel(0.1), given)
    assert tree.equal({**part, "w": given["w"], "b": given["b"]}, given), "integers and float64 pass exactly"


def test_a_memory_weakens_for_each_round_that_was_missed() -> None:
    found = channel(0.1, decay=0.5)
    update = normal(100)
    _, kept = sent_and_kept(found, {"w": update}, None, 1)
    for round, factor in ((2, 1.0), (3, 0.5), (5, 0.125)):
        got, after = sent_and_kept(found, {"w": torch.zeros(100)}, kept, round)
        assert torch.equal(got["w"] + after["topk"]["w"], kept["topk"]["w"] * factor)


def test_inputs_are_not_mutated_and_layouts_do_not_matter() -> None:
    found, given = channel(0.1), {"w": normal(4, 6, 5, 5)}
    _, kept = sent_and_kept(found, given)
    before = tree.map({"given": given, "kept": kept}, torch.clone)
    last = {"w": given["w"].contiguous(memory_format=torch.channels_last)}
    first, again = (sent_and_kept(found, one, kept, 2) for one in (given, last))
    assert tree.equal({"given": given, "kept": kept}, before)
    assert tree.equal(first[0], again[0])
    assert tree.equal(first[1], again[1])


@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_values_that_are_not_finite_are_refused_by_name(odd: float) -> None:
    with pytest.raises(WireError, match="tensor 'a/w': topk: holds NaN or infinity"):
        channel(0.1).compress({"a": {"w": torch.full((100,), odd)}}, None, rng())


# On the way up


SENT = {"weights": {"w": normal(40, 50), "b": normal(20), "n": torch.tensor(1)}, "samples": 4}
SPEC = {**spec_of(SENT)}


def letters(*chain: Any) -> Letters:
    up, down = make_channel(list(chain), direction="up"), make_channel([], direction="down")
    return Letters(method="fedavg", digest="c" * 64, up=up, down=down, seed=0)


@pytest.mark.parametrize("chain", [({"topk": 0.01},), ({"topk": 0.1}, "int8", "zstd"), ("topk", "float16")], ids=str)
def test_a_reply_carries_the_digest_of_its_memory(chain: tuple[Any, ...]) -> None:
    post = letters(*chain)
    made, kept = post.write_up(SENT, 5, 3, None, {"notes": {"loss": 0.5}})
    got, header = post.read_up(made, 5, 3, SPEC)
    assert header.facts["codec_memory"] == tree.digest(kept)
    assert header.facts["notes"].keys() == {"loss", "codec memory over update"}
    assert got["weights"]["w"].shape == (40, 50)
    assert len(made) <= post.up.limit(SPEC)


def lying(changed: dict[str, Any], fraction: float = 0.01) -> bytearray:
    """The reply under topk with leaves of its compressed tree replaced (None: left out)."""
    post = letters({"topk": fraction})
    by_path = {**dict(tree.leaves(post.up.compress(SENT, None, rng())[0])), **changed}
    packed = tree.assemble({path: value for path, value in by_path.items() if value is not None})
    facts = {"method": "fedavg", "config": "c" * 64, "kind": "up", "round": 5, "device": 3}
    return post.up.pack(packed, facts)


I32 = torch.int32
W = "weights/w"


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({f"{W}/index": torch.arange(20, dtype=I32) - 1}, "indices are not ascending within 0..1999"),
        ({f"{W}/index": torch.arange(1981, 2001, dtype=I32)}, "indices are not ascending within 0..1999"),
        ({f"{W}/index": torch.zeros(20, dtype=I32)}, "indices are not ascending"),
        ({f"{W}/index": torch.arange(20, dtype=I32).flip(0)}, "indices are not ascending"),
        ({f"{W}/index": torch.full((20,), 2**31 - 1, dtype=I32)}, "indices are not ascending"),
        ({f"{W}/index": torch.arange(19, dtype=I32)}, "got shape (19,), expected (20)"),
        ({f"{W}/index": torch.arange(20)}, "got torch.int64, expected torch.int32"),
        ({f"{W}/index": None}, "missing"),
        ({f"{W}/index": None, f"{W}/bitmap": torch.zeros(250, dtype=torch.uint8)}, "not expected here"),
        ({f"{W}/bitmap": torch.zeros(250, dtype=torch.uint8)}, "not expected here"),
        ({f"{W}/shape": [50, 40]}, "got [50, 40], expected [40, 50]"),
        ({f"{W}/shape": [2**31, 2**31]}, "expected [40, 50]"),
        ({f"{W}/shape": [-40, -50]}, "expected [40, 50]"),
        ({f"{W}/shape": [40.0, 50]}, "expected [40, 50]"),
        ({f"{W}/shape": "40"}, "expected [40, 50]"),
        ({f"{W}/shape": None}, "missing"),
        ({f"{W}/shape": torch.tensor([40, 50])}, "got a tensor, expected a scalar"),
        ({f"{W}/topk": normal(19)}, "got shape (19,)"),
        ({f"{W}/topk": normal(20).double()}, "got torch.float64"),
        ({f"{W}/topk": torch.full((20,), math.nan)}, "holds NaN or infinity"),
        ({f"{W}/topk": None}, "missing"),
        ({f"{W}/more": torch.zeros(1)}, "not expected here"),
        ({"weights/b/bitmap": torch.full((3,), 255, dtype=torch.uint8)}, "the bitmap marks places beyond 19"),
        ({"weights/b/bitmap": torch.zeros(3, dtype=torch.uint8)}, "1 values for 0 places"),
        ({"weights/b/bitmap": torch.tensor([3, 0, 0], dtype=torch.uint8)}, "1 values for 2 places"),
        ({"weights/b/bitmap": torch.zeros(4, dtype=torch.uint8)}, "got shape (4,), expected (3)"),
        ({"weights/b/bitmap": torch.zeros(3, dtype=torch.int8)}, "got torch.int8, expected torch.uint8"),
    ],
    ids=range(27),
)
def test_nodes_that_lie(changed: dict[str, Any], reason: str) -> None:
    with pytest.raises(WireError) as caught:
        letters({"topk": 0.01}).read_up(lying(changed), 5, 3, SPEC)
    assert str(caught.value).startswith("device 3: ")
    assert reason in str(caught.value)


def test_what_the_lies_start_from_is_sound() -> None:
    got, _ = letters({"topk": 0.01}).read_up(lying({}), 5, 3, SPEC)
    assert int((got["weights"]["w"] != 0).sum()) == 20


@settings(max_examples=200)
@given(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=3))
def test_flipped_bytes_give_an_error_or_a_sound_tree(changes: list[tuple[float, int]]) -> None:
    made = lying({})
    for place, mask in changes:
        made[int(place * len(made))] ^= mask
    try:
        got, _ = letters({"topk": 0.01}).read_up(made, 5, 3, SPEC)
    except WireError as error:
        assert str(error).startswith("device 3: ")  # noqa: PT017 - either outcome is right
    else:
        assert {path: value.shape for path, value in tree.tensors(got).items()} == {
            path: value.shape for path, value in tree.tensors(SENT).items()
        }
        assert all(bool(value.isfinite().all()) for value in tree.tensors(got).values())


def test_a_memory_of_another_shape_is_refused_even_if_it_would_broadcast() -> None:
    memory = {"topk": {"w": normal(1, 40)}, "round": 1}
    with pytest.raises(WireError, match=r"tensor 'w': topk: of shape \(30, 40\), what it remembers is of \(1, 40\)"):
        channel(0.1).compress({"w": normal(30, 40)}, memory, rng(2), 2)


# Settings


@pytest.mark.parametrize(
    ("chain", "message"),
    [
        ([{"topk": 0}], "wire.up: topk = 0: expected a share of the entries, 0 < topk <= 1"),
        ([{"topk": 1.5}], "wire.up: topk = 1.5: expected a share"),
        ([{"topk": math.nan}], "wire.up: topk = nan: expected a share"),
        ([{"topk": 0.1, "decay": 2}], "wire.up: decay = 2: expected 0"),
        ([{"topk": 0.1, "decay": -1}], "wire.up: decay = -1: expected 0"),
        ([{"topk": 0.1, "fraction": 1}], "wire.up holds .*fraction.*: expected"),
        ([{"topk": "much"}], "wire.up holds .*: expected numbers"),
        ([{"topk": [0.1]}], "wire.up holds .*: expected numbers"),
        ([{"topk": True}], "wire.up holds .*: expected numbers"),
        ([{"topk": 0.1, "decay": "slow"}], "wire.up holds .*: expected numbers"),
        (["int8", "topk"], "wire.up = .*: topk comes first"),
        (["topk", {"topk": 0.1}], "wire.up = .*: each codec at most once"),
        (["topk", "int8", "float16"], "wire.up = .*: one of float16, bfloat16, int8 at a time"),
    ],
)
def test_settings_that_make_no_sense(chain: list[Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_channel(chain, direction="up")


def test_topk_is_for_the_up_link_only() -> None:
    with pytest.raises(ConfigError, match=r"wire\.down = \['topk'\]: topk is for the up-link only"):
        make_channel(["topk"], direction="down")


def test_names_of_a_chain() -> None:
    assert codec_names([{"topk": 0.1, "decay": 0.5}, "int8", "zstd"]) == ["topk", "int8", "zstd"]
    assert make_channel(["topk"], direction="up").lossy == (TopK(0.01, 1.0),)
