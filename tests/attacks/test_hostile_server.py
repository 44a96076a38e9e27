"""A server whose messages do not suit a device: refused with the reason, and the device's own state stays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from potluck.engines.inprocess import InProcess
from potluck.engines.seam import Delivery, Order
from potluck.experiment import build, run
from potluck.experiment.config import Experiment

MakeExperiment = Callable[..., Experiment]
Change = Callable[[dict[str, Any]], dict[str, Any]]


def with_weights(down: dict[str, Any], change: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, Any]:
    key = "weights" if "weights" in down else "full"
    name = sorted(down[key])[0]
    return {**down, key: {**down[key], name: change(down[key][name])}}


CHANGES: dict[str, tuple[Change, str]] = {
    "a shape": (lambda down: with_weights(down, lambda w: torch.zeros(*w.shape, 2)), "does not suit this device"),
    "a name": (lambda down: {**down, "weights": {"no.such": torch.zeros(3)}, "full": {}}, "does not suit this device"),
    "NaN": (lambda down: with_weights(down, lambda w: w * float("nan")), "NaN"),
}


def answers(method: str, change: Change, small: MakeExperiment, folder: Path) -> Delivery:
    ready = run.prepare(small(method, "rounds=1"))
    side = build.make_side(ready.experiment, ready.shares, folder / "own")
    course, device = ready.course, ready.course.fleet.devices[0]
    desk = course.desk(1)
    down = course.method.cast(course.method.start(desk), device, desk)
    frame, size = course.letters.write_down(change(down), 1)
    order = Order(device=device, round=1, verb="train", frame=frame, tensor_bytes=size)
    (delivery,) = InProcess(side=side).exchange([order], None)
    return replace(delivery, order=order)


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("method", ["fedavg", "fedprox", "fedode", "feddeq", "fedhm"])
def test_a_message_that_does_not_suit_is_refused(method: str, name: str, small: MakeExperiment, tmp_path: Path) -> None:
    change, reason = CHANGES[name]
    delivery = answers(method, change, small, tmp_path)
    assert delivery.status == "rejected"
    assert reason in delivery.reason
    assert not list((tmp_path / "own").glob("*.safetensors"))


def test_a_message_as_it_should_be_is_taken(small: MakeExperiment, tmp_path: Path) -> None:
    assert answers("fedavg", lambda down: down, small, tmp_path).status == "ok"
