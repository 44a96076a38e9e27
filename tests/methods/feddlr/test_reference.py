"""What devices hold follows the server's weights, whoever missed what, and nothing that was cut off is lost."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from potluck.core import tree
from potluck.core.errors import ModelError
from potluck.methods.feddlr.reference import Reference, advance, begin, follow, message


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def moved(weights: dict[str, Tensor], round: int) -> dict[str, Tensor]:
    """A change of rank two, with a bias and a counter."""
    change = normal(20, 2, seed=round) @ normal(2, 30, seed=99 + round)
    return {"w": weights["w"] + change, "b": weights["b"] + 1, "n": weights["n"] + 4}


def test_devices_hold_the_reference_to_the_bit_whatever_they_missed() -> None:
    weights = {"w": normal(20, 30), "b": normal(20), "n": torch.tensor(3)}
    reference: Reference = begin(weights)
    held: dict[int, Any] = {0: None, 1: None, 2: None}
    there = {1: [0, 1, 2], 2: [0, 1], 3: [0], 4: [0, 1, 2], 5: [0, 1, 2], 6: [0]}
    kinds = {}
    for round, present in there.items():
        for device in present:
            told = message(reference, device)
            kinds[round, device] = len(told["steps"]) if "steps" in told else 0
            held[device] = follow(held[device], told, "o_ikk")
            assert tree.equal(held[device], reference["weights"]), (round, device)
        weights = moved(weights, round)
        reference = advance(reference, weights, present, 0.9999, "squared", "o_ikk")
        assert int(reference["weights"]["n"]) == int(weights["n"])
    assert [kinds[1, device] for device in (0, 1, 2)] == [0, 0, 0]
    assert [kinds[4, device] for device in (0, 1, 2)] == [1, 2, 3]  # rounds missed, made up for by small steps
    assert sum(tree.nbytes(step) for step in reference["steps"].values()) < tree.nbytes(reference["weights"])


def test_a_device_that_was_away_for_too_long_is_sent_everything() -> None:
    weights = {"w": normal(20, 30), "b": normal(20), "n": torch.tensor(3)}
    reference = advance(begin(weights), weights, [7, 8], 0.9, "squared", "o_ikk")
    for round in range(12):
        weights = moved(weights, round)
        reference = advance(reference, weights, [7], 0.9999, "squared", "o_ikk")
    assert "steps" in message(reference, 7)
    assert message(reference, 8).keys() == message(reference, 9).keys() == {"weights"}


def test_a_message_that_does_not_fit_is_refused() -> None:
    held = {"w": normal(20, 30)}
    step = {"w": {"a": normal(20, 2), "b": normal(2, 29)}}
    for before, told in (
        (None, {"steps": {"2": {"w": {"a": normal(20, 2), "b": normal(2, 30)}}}}),
        (held, {"steps": {"2": step}}),
        (held, {"steps": {"2": {"other": step["w"]}}}),
        (held, {}),
    ):
        with pytest.raises(ModelError, match=r"a step that does not fit|does not hold"):
            follow(before, told, "o_ikk")  # type: ignore[arg-type]


def test_a_dense_step_is_sent_as_the_weights_themselves() -> None:
    weights = {"w": normal(20, 30)}
    reference = advance(begin(weights), {"w": normal(20, 30, seed=1)}, [0], 1.0, "squared", "o_ikk")
    assert message(reference, 0).keys() == {"weights"}
    assert torch.allclose(reference["weights"]["w"], normal(20, 30, seed=1), atol=1e-6)


def test_what_is_cut_off_is_sent_later() -> None:
    reference, target = begin({"w": torch.zeros(20, 30)}), {"w": normal(20, 30)}
    distances = []
    for _ in range(60):
        reference = advance(reference, target, [0], 0.5, "squared", "o_ikk")
        distances.append(float((reference["weights"]["w"] - target["w"]).norm()))
    assert distances[0] > 1
    assert distances[-1] < 1e-5
