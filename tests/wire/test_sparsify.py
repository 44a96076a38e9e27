"""Top-k: the two identities, its format, error feedback over rounds, hostile nodes, and where it is refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from potluck.core import seeds, tree
from potluck.core.errors import ConfigError, WireError
from potluck.core.spec import Array, Exactly, Free, spec_of
from potluck.engines.contract import Request, Response
from potluck.engines.local.inprocess import InProcess
from potluck.engines.round import initial_checkpoint, run_rounds
from potluck.experiment import build, run
from potluck.experiment.config import Experiment
from potluck.experiment.prepare import prepare
from potluck.wire.channel import codec_names, make_channel
from potluck.wire.codecs.topk import TopK, largest

MakeExperiment = Callable[..., Experiment]


def rng() -> torch.Generator:
    return seeds.generator(0, 1, 0, "codec")


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@given(st.integers(1, 300), st.sampled_from([0.001, 0.01, 0.03, 0.2, 0.5, 0.97, 1.0]), st.integers(0, 99))
def test_the_error_is_within_its_bound(size: int, fraction: float, seed: int) -> None:
    value = normal(size, seed=seed)
    node, left = TopK(fraction).encode(value, None, rng())
    k = max(1, math.ceil(fraction * size))
    if left is None:
        assert node is value
        return
    sent = TopK(fraction).decode(node)
    assert int((sent != 0).sum()) == k
    assert torch.equal(sent + left, value)
    assert float(left.double().square().sum()) <= (1 - k / size) * float(value.double().square().sum()) + 1e-9


def test_nothing_is_lost_over_rounds() -> None:
    """Σ sent + e = Σ updates, to 1e-12 in float64: the codec is called with float64 by hand."""
    codec, memory = TopK(0.05), None
    sent, asked = torch.zeros(400, dtype=torch.float64), torch.zeros(400, dtype=torch.float64)
    for round in range(50):
        value = normal(400, seed=round, dtype=torch.float64)
        node, memory = codec.encode(value, memory, rng())
        part = torch.zeros_like(value)
        part[places(node, 400)] = node["~topk"]
        sent, asked = sent + part, asked + value
    assert float((sent + memory - asked).abs().max()) < 1e-12


def places(node: dict[str, Any], size: int) -> Tensor:
    flags = TopK().decode({**node, "~topk": torch.ones(len(node["~topk"]))})
    return flags.reshape(-1)[:size].nonzero().reshape(-1)


def test_ties_go_to_the_lower_index() -> None:
    assert largest(torch.tensor([1.0, -3.0, 3.0, 3.0, -3.0, 2.0]), 3).tolist() == [1, 2, 3]
    assert largest(torch.zeros(5), 2).tolist() == [0, 1]
    assert largest(torch.tensor([1.0, 2.0, 1.0, 1.0]), 2).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("size", "fraction", "k", "form"),
    [
        (1, 0.01, 1, ""),
        (2, 0.01, 1, "bitmap"),
        (100, 0.001, 1, "index"),
        (100, 0.07, 7, "bitmap"),
        (3200, 0.01, 32, "index"),
        (3200, 1 / 32, 100, "index"),
        (3200, 101 / 3200, 101, "bitmap"),
        (3200, 31 / 32, 3200, ""),
        (100, 1.0, 100, ""),
        (0, 0.5, 0, ""),
    ],
)
def test_the_smaller_form_is_chosen(size: int, fraction: float, k: int, form: str) -> None:
    codec = TopK(fraction)
    assert codec.form(size) == (k, form)
    value = normal(size)
    node, _ = codec.encode(value, None, rng())
    if not form:
        assert node is value
        return
    assert node.keys() == {"~topk", form, "shape"}
    bytes_sent = tree.nbytes(node)
    assert bytes_sent == 4 * k + min(4 * k, -(-size // 8))
    assert bytes_sent < 4 * size


@pytest.mark.parametrize(
    "chain", [["topk"], [{"topk": 0.2}], [{"topk": 0.2}, "int8"], [{"topk": 0.2}, "float16", "zstd"]]
)
def test_a_chain_carries_it_and_remembers_what_every_codec_lost(chain: list[Any]) -> None:
    channel = make_channel(chain, direction="up")
    update = {"update": {"w": normal(30, 40), "b": normal(6, seed=1), "n": torch.tensor(3)}, "samples": 4}
    sent, memory = channel.compress(update, None, rng(), 1)
    frame = channel.pack(sent, {})
    spec = spec_of(update)
    got, _ = channel.decode(frame, facts={}, spec=spec, limit=channel.limit(spec))
    for name in ("w", "b"):
        assert torch.allclose(got["update"][name] + memory["topk"]["update"][name], update["update"][name], atol=1e-6)
    assert got["samples"] == 4
    assert torch.equal(got["update"]["n"], torch.tensor(3))
    assert memory["round"] == 1
    again, later = channel.compress(update, memory, rng(), 2)
    seen, _ = channel.decode(channel.pack(again, {}), facts={}, spec=spec, limit=channel.limit(spec))
    total = got["update"]["w"] + seen["update"]["w"] + later["topk"]["update"]["w"]
    assert torch.allclose(total, 2 * update["update"]["w"], atol=1e-5)


def test_decay_counts_the_rounds_that_were_missed() -> None:
    channel = make_channel([{"topk": 0.1, "decay": 0.5}], direction="up")
    zero, value = {"w": torch.zeros(100)}, {"w": normal(100)}
    _, memory = channel.compress(value, None, rng(), 3)
    found = {}
    for round in (4, 5, 7):
        sent, _ = channel.compress(zero, memory, rng(), round)
        found[round] = float(TopK().decode(sent["w"]).abs().max())
    assert found[5] == pytest.approx(found[4] / 2)
    assert found[7] == pytest.approx(found[4] / 8)


def test_fraction_one_sends_everything_and_remembers_nothing() -> None:
    channel, value = make_channel([{"topk": 1}], direction="up"), {"w": normal(50)}
    sent, memory = channel.compress(value, None, rng(), 1)
    assert tree.equal(sent, value)
    assert memory == {}


@pytest.mark.parametrize("value", [torch.tensor([1.0, float("nan"), 2.0]), torch.full((200,), float("inf"))])
def test_what_is_not_finite_is_refused(value: Tensor) -> None:
    with pytest.raises(WireError, match="topk: holds NaN or infinity"):
        make_channel(["topk"], direction="up").compress({"w": value}, None, rng(), 1)


def test_a_receiver_expects_one_form_and_the_right_shape() -> None:
    leaf = Array(dtype=torch.float32, shape=(40, 80))
    assert TopK(0.01).respec(leaf) == {
        "~topk": Array(dtype=torch.float32, shape=(32,)),
        "index": Array(dtype=torch.int32, shape=(32,)),
        "shape": Exactly(value=[40, 80]),
    }
    assert TopK(0.5).respec(leaf)["bitmap"] == Array(dtype=torch.uint8, shape=(400,))
    free = Array(dtype=torch.float32, shape=(Free("r", 1, 9), 80))
    assert TopK(0.01).respec(free) == {"": free}
    assert TopK(1.0).respec(leaf) == {"": leaf}


GOOD: dict[str, Any] = {"~topk": torch.ones(2), "index": torch.tensor([1, 3], dtype=torch.int32), "shape": [5]}
HOSTILE = {
    "beyond the end": {"index": torch.tensor([1, 5], dtype=torch.int32)},
    "negative": {"index": torch.tensor([-1, 3], dtype=torch.int32)},
    "descending": {"index": torch.tensor([3, 1], dtype=torch.int32)},
    "twice": {"index": torch.tensor([3, 3], dtype=torch.int32)},
    "too few": {"index": torch.tensor([3], dtype=torch.int32)},
    "of floats": {"index": torch.ones(2)},
    "values of two dimensions": {"~topk": torch.ones(1, 2)},
    "a shape of words": {"shape": ["5"]},
    "a negative shape": {"shape": [-5]},
    "no shape": {"shape": None},
    "one thing more": {"bitmap": torch.zeros(1, dtype=torch.uint8)},
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_nodes(what: str) -> None:
    assert TopK().decode(GOOD).tolist() == [0, 1, 0, 1, 0]
    with pytest.raises(WireError, match="topk: "):
        TopK().decode({**GOOD, **HOSTILE[what]})


@pytest.mark.parametrize("bits", [[0b11100000], [0b11], [0b1, 0], []])
def test_hostile_bitmaps(bits: list[int]) -> None:
    node = {"~topk": torch.ones(1), "bitmap": torch.tensor(bits, dtype=torch.uint8), "shape": [5]}
    with pytest.raises(WireError, match="topk: "):
        TopK().decode(node)


# --- in runs ---------------------------------------------------------------------------------------------------------

UPDATE = "method.send=update"


def test_fraction_one_is_fedavg_to_the_bit(small: MakeExperiment, tmp_path: Path) -> None:
    plain = run.run(small("fedavg", UPDATE), tmp_path / "plain")
    whole = run.run(small("fedavg", UPDATE, "wire.up=[{topk=1.0}]"), tmp_path / "whole")
    assert whole.summary["state_sha256"] == plain.summary["state_sha256"]


def test_a_resumed_run_keeps_the_memory(small: MakeExperiment, tmp_path: Path) -> None:
    sparse = (UPDATE, "wire.up=[{topk=0.1,decay=0.9},'zstd']")
    schedule = "train.schedule_rounds=4"
    whole = run.run(small("fedavg", *sparse, "rounds=4", schedule), tmp_path / "whole")
    run.run(small("fedavg", *sparse, "rounds=2", schedule), tmp_path / "part")
    resumed = run.resume(tmp_path / "part", more_rounds=2)
    assert resumed.summary["state_sha256"] == whole.summary["state_sha256"]
    dense = run.run(small("fedavg", UPDATE, "rounds=4"), tmp_path / "dense")
    assert whole.summary["bytes"]["up"] < 0.35 * dense.summary["bytes"]["up"]
    notes = whole.rounds[-1]["notes"]
    assert any("codec memory over update" in found for found in notes.values())


class Spoils:
    """Carries everything, but what one device answers in one round is lost, late or damaged."""

    def __init__(self, inner: InProcess, how: str) -> None:
        self.inner, self.how = inner, how
        self.orders: dict[tuple[int, int, str], Request] = {}

    def exchange(self, requests: Iterable[Request], deadline_s: float | None) -> Iterator[Response]:
        for response in self.inner.exchange(requests, deadline_s):
            request = response.request
            self.orders[request.device.id, request.round, request.verb] = request
            if (request.device.id, request.round, request.verb) != (2, 2, "train"):
                yield response
            elif self.how == "rejected":
                yield Response(request=request, status="ok", frame=response.frame[:-1])
            else:
                yield Response(request=request, status=self.how)  # type: ignore[arg-type]


@pytest.mark.parametrize("how", ["lost", "late", "rejected"])
def test_a_reply_that_did_not_merge_left_no_memory(small: MakeExperiment, how: str, tmp_path: Path) -> None:
    sparse = (UPDATE, "wire.up=[{topk=0.05}]", "fleet.participation=1.0", "data.partition.kind=iid")
    ready = prepare(small("fedavg", *sparse))
    engine = InProcess(runtime=build.make_runtime(ready.resolved, ready.shares, tmp_path))
    spoiled = Spoils(engine, how)
    first, second = run_rounds(ready.federation, spoiled, initial_checkpoint(ready.federation), 2)
    assert (second.checkpoint.acks[2], second.checkpoint.acks[3]) == (1, 2)
    assert second.checkpoint.codec[2] == first.checkpoint.codec[2]
    acknowledged = engine.runtime.store.load(2, 1)
    (third,) = run_rounds(ready.federation, spoiled, second.checkpoint, 3)
    order = spoiled.orders[2, 3, "train"]
    assert order.ack == 1
    alone = build.make_runtime(ready.resolved, ready.shares, tmp_path / "alone")  # holds the acknowledged memory only
    alone.store.save(2, 1, 1, acknowledged)
    alone.answer(order)
    assert tree.digest(alone.store.load(2, 3)["codec"]) == third.checkpoint.codec[2]


REFUSED = {
    ('wire.up=["topk"]',): 'set method.send = "update"',
    (UPDATE, 'wire.down=["topk"]'): "topk is for the up-link only",
    (UPDATE, "wire.up=[{topk=0.0}]"): "topk = 0: expected a share of the entries, 0 < topk <= 1",
    (UPDATE, "wire.up=[{topk=1.5}]"): "topk = 1.5: expected a share of the entries",
    (UPDATE, "wire.up=[{topk=nan}]"): "wire.up.0..topk = nan: expected a finite number",
    (UPDATE, "wire.up=[{topk=0.1,decay=2}]"): "decay = 2: expected 0",
    (UPDATE, "wire.up=[{topk=0.1,scope=1}]"): "expected { topk = 0.01 }",
    (UPDATE, "wire.up=[{int8=1}]"): "int8 takes no settings",
    (UPDATE, 'wire.up=["int8","topk"]'): "topk comes first",
    (UPDATE, 'wire.up=["topk",{topk=0.1}]'): "each codec at most once",
    (UPDATE, 'wire.up=["topk","int8","float16"]'): "one of int8, float16 at a time",
    ("method.name=local", 'wire.up=["topk"]'): "local forbids it",
}


@pytest.mark.parametrize("overrides", REFUSED, ids=" ".join)
def test_where_it_is_refused(small: MakeExperiment, overrides: tuple[str, ...]) -> None:
    method = "local" if "local" in overrides[0] else "fedavg"
    rest = [text for text in overrides if not text.startswith("method.name")]
    with pytest.raises(ConfigError, match=REFUSED[overrides]):
        prepare(small(method, *rest))


def test_names_of_codecs() -> None:
    assert codec_names(["int8", {"topk": 0.1, "decay": 0.5}, "zstd"]) == ["int8", "topk", "zstd"]
