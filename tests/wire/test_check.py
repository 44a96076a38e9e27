"""The check against a spec: nothing missing, nothing more, nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from potluck.core import tree
from potluck.core.errors import WireError
from potluck.core.spec import Array, Exactly, Free, Integers, Number, OneOf, optional, spec_of
from potluck.wire import check, frame

RANK = Free("rank", 1, 4)
F32 = torch.float32
SPEC: dict[str, Any] = {
    "weights": {"w": Array(dtype=F32, shape=(2, 3)), "n": Array(dtype=torch.int64, shape=())},
    "factors": {"u": Array(dtype=F32, shape=(5, RANK)), "v": Array(dtype=F32, shape=(RANK, 6))},
    "layer": OneOf(
        (
            {
                "u": Array(dtype=F32, shape=(4, Free("layer", 1, 2))),
                "v": Array(dtype=F32, shape=(Free("layer", 1, 2), 4)),
            },
            {"w": Array(dtype=F32, shape=(4, 4)), "b": Array(dtype=F32, shape=(4,), optional=True)},
        )
    ),
    "samples": Number(kind=int, low=1, high=100),
    "share": Number(kind=float, low=0.0, high=1.0, optional=True),
    "ids": Integers(low=0, high=9, most=3),
    "kind": Exactly(value="a"),
    "empty": {},
}


def good() -> dict[str, Any]:
    return {
        "weights": {"w": torch.zeros(2, 3), "n": torch.tensor(1)},
        "factors": {"u": torch.zeros(5, 2), "v": torch.zeros(2, 6)},
        "layer": {"w": torch.zeros(4, 4)},
        "samples": 3,
        "ids": [1, 2],
        "kind": "a",
        "empty": {},
    }


def demand(sent: dict[str, Any], spec: dict[str, Any] | None = None) -> dict[str, Any]:
    """Both ways of asking, by header and by tensors, which must agree."""
    header = frame.read_header(frame.encode(sent))
    leaves = dict(tree.leaves(SPEC if spec is None else spec))
    faults = []
    for found in ({**header.scalars, **header.entries}, dict(tree.leaves(sent))):
        try:
            chosen = check.require_spec(found, leaves)
        except WireError as error:
            faults.append(str(error))
    assert len(set(faults)) <= 1
    assert len(faults) in (0, 2)
    if faults:
        raise WireError(faults[0])
    return chosen


def changed(path: str, value: Any) -> dict[str, Any]:
    by_path = dict(tree.leaves(good()))
    by_path.pop(path, None)
    return tree.assemble({**by_path, **({} if value is None else {path: value})})


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("samples", 3),
        ("share", 0.5),
        ("share", 1),
        ("ids", []),
        ("layer/b", torch.zeros(4)),
    ],
)
def test_what_the_spec_allows(path: str, value: Any) -> None:
    demand(changed(path, value))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("weights/w", None, "tensor 'weights/w': missing"),
        ("samples", None, "tensor 'samples': missing"),
        ("ids", None, "tensor 'ids': missing"),
        ("empty", None, "tensor 'empty': missing"),
        ("empty", 3, "tensor 'empty': expected an empty node"),
        ("empty", torch.zeros(1000), "tensor 'empty': expected an empty node"),
        ("empty/more", torch.zeros(1), "tensor 'empty/more': not expected here"),
        ("weights/more", torch.zeros(2), "tensor 'weights/more': not expected here"),
        ("weights/more", {}, "tensor 'weights/more': not expected here"),
        ("more", 1, "tensor 'more': not expected here"),
        ("weights/w", torch.zeros(3, 2), "tensor 'weights/w': got shape (3, 2), expected (2, 3)"),
        ("weights/w", torch.zeros(6), "tensor 'weights/w': got shape (6,), expected (2, 3)"),
        ("weights/w", torch.zeros(1, 3), "tensor 'weights/w': got shape (1, 3), expected (2, 3)"),
        ("weights/w", torch.zeros(2, 3).double(), "tensor 'weights/w': got torch.float64, expected torch.float32"),
        ("weights/w", torch.zeros(2, 3).half(), "tensor 'weights/w': got torch.float16, expected torch.float32"),
        ("weights/n", torch.tensor([1]), "tensor 'weights/n': got shape (1,), expected ()"),
        ("weights/w", 1.0, "tensor 'weights/w': expected a tensor, got a scalar"),
        ("weights/w", {}, "tensor 'weights/w': expected a tensor, got a scalar"),
        ("samples", torch.tensor(3), "tensor 'samples': got a tensor, expected a scalar"),
        ("samples", 0, "got 0, expected int in [1, 100]"),
        ("samples", True, "got True, expected int in [1, 100]"),
        ("share", 2.0, "got 2.0, expected float in [0, 1]"),
        ("kind", "b", "got 'b', expected 'a'"),
        ("ids", [1, 2, 3, 4], "at most 3 integers"),
        ("factors/u", torch.zeros(5, 3), "with 'rank' the same everywhere"),
        ("factors/u", torch.zeros(5, 0), "expected (5, 1..4)"),
        ("layer/w", None, "tensor 'layer': holds none of the forms"),
        ("layer/u", torch.zeros(4, 1), "tensor 'layer/u': not expected here"),
        ("layer/w", torch.zeros(4, 3), "tensor 'layer/w': got shape (4, 3), expected (4, 4)"),
    ],
)
def test_what_the_spec_forbids(path: str, value: Any, message: str) -> None:
    with pytest.raises(WireError) as caught:
        demand(changed(path, value))
    assert message in str(caught.value)


def test_the_other_form_of_a_node() -> None:
    sent = good()
    sent["layer"] = {"u": torch.zeros(4, 2), "v": torch.zeros(2, 4)}
    assert {path for path in demand(sent) if path.startswith("layer")} == {"layer/u", "layer/v"}
    sent["layer"] = {"u": torch.zeros(4, 2), "v": torch.zeros(1, 4)}
    with pytest.raises(WireError, match="'layer' the same everywhere"):
        demand(sent)
    sent["layer"] = {"u": torch.zeros(4, 2)}
    with pytest.raises(WireError, match="holds none of the forms"):
        demand(sent)
    sent["layer"] = {"u": torch.zeros(4, 2), "v": torch.zeros(2, 4), "w": torch.zeros(4, 4)}
    with pytest.raises(WireError, match="not expected here"):
        demand(sent)


def test_an_optional_spec_takes_a_part_but_nothing_else() -> None:
    spec = optional({key: value for key, value in SPEC.items() if key != "empty"})
    demand({"weights": {"n": torch.tensor(1)}}, spec)
    demand({"weights": {}}, spec)
    with pytest.raises(WireError, match="tensor 'weights/w': got shape"):
        demand({"weights": {"w": torch.zeros(1)}}, spec)
    with pytest.raises(WireError, match="tensor 'layer': holds none"):
        demand({"layer": {"v": torch.zeros(2, 4)}}, spec)
    with pytest.raises(WireError, match="tensor 'empty': not expected here"):
        demand({"empty": {}}, spec)


@given(
    st.dictionaries(
        st.text("abc", min_size=1, max_size=3),
        st.integers(0, 5) | st.lists(st.integers(0, 3), max_size=3).map(torch.zeros) | st.just({}),
        max_size=5,
    )
)
def test_a_tree_meets_its_own_spec_and_misses_it_without_a_leaf(sent: dict[str, Any]) -> None:
    demand(sent, spec_of(sent))
    for key in sent:
        with pytest.raises(WireError, match="missing"):
            demand({other: value for other, value in sent.items() if other != key}, spec_of(sent))


def test_values_that_are_not_finite_are_named_unless_allowed() -> None:
    sent = {"a": {"w": torch.tensor([1.0, float("nan")])}, "n": torch.tensor(3)}
    with pytest.raises(WireError, match="tensor 'a/w': holds NaN or infinity"):
        check.require_finite(sent)
    check.require_finite(sent, {"a/w": Array(dtype=F32, shape=(2,), finite=False)})


FACTS = {"method": "fedavg", "round": 1, "device": 0, "codec": ["int8"]}


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"method": "fedprox"}, "method is 'fedprox', expected 'fedavg'"),
        ({"round": 2}, "round is 2, expected 1"),
        ({"round": True}, "round is True, expected 1"),
        ({"round": 1.0}, "round is 1.0, expected 1"),
        ({"device": False}, "device is False, expected 0"),
        ({"codec": []}, r"codec is \[\], expected \['int8'\]"),
        ({"own": 3}, "own is 3, expected a digest in hexadecimal"),
        ({"own": "x" * 64}, "expected a digest in hexadecimal"),
        ({"codec_memory": ["a"]}, "codec_memory is .*, expected a digest in hexadecimal"),
        ({"own": "a" * 64 + "\n"}, "expected a digest in hexadecimal"),
        ({"flops": "many"}, "flops is 'many', expected a number from 0"),
        ({"flops": -1.0}, r"flops is -1.0, expected a number from 0"),
        ({"flops": True}, "flops is True"),
        ({"notes": [1]}, r"notes are \[1\], expected at most 64 figures"),
        ({"notes": "loss"}, "notes are 'loss'"),
        ({"notes": {"loss": "low"}}, "note 'loss' is 'low'"),
        ({"notes": {"loss": [1]}}, "note 'loss' is"),
        ({"notes": {"a\x1b[31m": 1}}, "expected a figure with a short name"),
        ({"notes": {"a" * 121: 1}}, "expected a figure with a short name"),
        ({"notes": {str(k): k for k in range(65)}}, "at most 64 figures"),
    ],
)
def test_facts_that_do_not_fit(facts: dict[str, Any], message: str) -> None:
    with pytest.raises(WireError, match=message):
        check.require_facts({**FACTS, **facts}, FACTS)


def test_facts_that_fit() -> None:
    own = {"own": "0" * 64, "codec_memory": "", "flops": 1e9, "notes": {"loss": 0.5, "steps": 3, "done": True}}
    check.require_facts({**FACTS, **own, "more": 1}, FACTS)
    with pytest.raises(WireError, match="device is None, expected 0"):
        check.require_facts({"method": "fedavg", "round": 1, "codec": ["int8"]}, FACTS)
