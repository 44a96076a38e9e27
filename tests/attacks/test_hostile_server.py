"""A server whose messages do not suit a device: refused with the reason, and the device's own state stays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from potluck.engines.contract import Request, Response
from potluck.engines.local.inprocess import InProcess
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


def answers(method: str, change: Change, small: MakeExperiment, folder: Path) -> Response:
    ready = run.prepare(small(method, "rounds=1"))
    runtime = build.make_runtime(ready.resolved, ready.shares, folder / "own")
    federation, device = ready.federation, ready.federation.fleet.devices[0]
    server_context = federation.server_context(1)
    down = federation.method.broadcast(federation.method.initial_state(server_context), device, server_context)
    frame, size = federation.messages.write_down(change(down), 1)
    request = Request(device=device, round=1, verb="train", frame=frame, tensor_bytes=size)
    (response,) = InProcess(runtime=runtime).exchange([request], None)
    return replace(response, request=request)


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("method", ["fedavg", "fedprox", "fedode", "feddeq", "fedhm"])
def test_a_message_that_does_not_suit_is_refused(method: str, name: str, small: MakeExperiment, tmp_path: Path) -> None:
    change, reason = CHANGES[name]
    response = answers(method, change, small, tmp_path)
    assert response.status == "rejected"
    assert reason in response.reason
    assert not list((tmp_path / "own").glob("*.safetensors"))


def test_a_message_as_it_should_be_is_taken(small: MakeExperiment, tmp_path: Path) -> None:
    assert answers("fedavg", lambda down: down, small, tmp_path).status == "ok"
