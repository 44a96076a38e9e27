"""Local training: nothing is sent but headers, and each device is what it would be alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from potluck.core import seeds, tree
from potluck.engines.contract import Engine, Request, Response
from potluck.engines.local.inprocess import InProcess
from potluck.engines.round import initial_checkpoint, run_rounds
from potluck.experiment import build
from potluck.experiment.config import Experiment
from potluck.experiment.prepare import Prepared, prepare
from potluck.nets import zoo
from potluck.nets.weights import weights_of
from potluck.wire import frame

MakeExperiment = Callable[..., Experiment]
SETTINGS = (
    "model.name=mlp",
    "train.batch_size=16",
    "train.momentum=0.5",
    "train.channels_last=false",
    "fleet.participation=0.5",
)


class Watched:
    """An engine that remembers which device trained in which round."""

    def __init__(self, inner: Engine) -> None:
        self.inner = inner
        self.trained: list[tuple[int, int]] = []

    def exchange(self, requests: Iterable[Request], deadline_s: float | None) -> Iterator[Response]:
        for response in self.inner.exchange(requests, deadline_s):
            if response.request.verb == "train":
                self.trained.append((response.request.round, response.request.device.id))
            yield response


def alone(ready: Prepared, device: int, rounds: list[int]) -> dict[str, Tensor]:
    """One device that trains in these rounds by itself, written out."""
    data = ready.shares.train[device]
    torch.manual_seed(seeds.derived(0, 0, seeds.SERVER, "initial weights"))
    net = zoo.make("mlp", data.inputs, data.facts.outputs, "group")
    x, y = data.x, data.y
    for round in rounds:
        optimiser = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.5)
        order = torch.randperm(len(y), generator=seeds.generator(0, round, device, "train"))
        for rows in torch.split(order, 16):
            optimiser.zero_grad()
            F.cross_entropy(net(x[rows]), y[rows]).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    return weights_of(net)


def test_each_device_is_what_it_would_be_alone(small: MakeExperiment, tmp_path: Path) -> None:
    ready = prepare(small("local", "rounds=4", *SETTINGS))
    engine = Watched(InProcess(runtime=build.make_runtime(ready.resolved, ready.shares, tmp_path)))
    *_, last = run_rounds(ready.federation, engine, initial_checkpoint(ready.federation), 4)
    drawn: dict[int, list[int]] = {device.id: [] for device in ready.federation.fleet.devices}
    for round, device in engine.trained:
        drawn[device].append(round)
    assert len({len(rounds) for rounds in drawn.values()}) > 1, "some were drawn more often than others"
    for device, rounds in drawn.items():
        digest = tree.digest({"weights": alone(ready, device, rounds)}) if rounds else ""
        assert last.checkpoint.local_states.get(device, "") == digest
        assert last.checkpoint.acks.get(device, 0) == max(rounds, default=0)


def test_a_device_that_was_never_drawn_keeps_its_initial_net(small: MakeExperiment, tmp_path: Path) -> None:
    ready = prepare(small("local", "rounds=1", *SETTINGS))
    engine = Watched(InProcess(runtime=build.make_runtime(ready.resolved, ready.shares, tmp_path)))
    (result,) = run_rounds(ready.federation, engine, initial_checkpoint(ready.federation), 1)
    idle = [device for device in ready.federation.fleet.devices if (1, device.id) not in engine.trained]
    assert idle
    for device in idle:
        net = ready.federation.method.model(None, None, device)
        assert tree.equal(weights_of(net), alone(ready, device.id, []))
    evaluated = {device: score["all"]["right"].sum() for device, score in result.scores.items()}
    assert evaluated.keys() == {device.id for device in ready.federation.fleet.devices}
    assert len({float(evaluated[device.id]) for device in idle}) == 1


def test_only_headers_cross_the_links(small: MakeExperiment, tmp_path: Path) -> None:
    ready = prepare(small("local", "rounds=2", *SETTINGS))
    engine = InProcess(runtime=build.make_runtime(ready.resolved, ready.shares, tmp_path))
    for result in run_rounds(ready.federation, engine, initial_checkpoint(ready.federation), 2):
        rows = [row for row in result.rows if row.verb == "train"]
        assert rows
        assert {row.tensor_bytes for row in rows} == {0}
        assert all(0 < row.encoded_bytes < 1_000 for row in rows)


def test_messages_are_empty_trees(small: MakeExperiment) -> None:
    ready = prepare(small("local", *SETTINGS))
    method, device = ready.federation.method, ready.federation.fleet.devices[0]
    broadcast, _ = frame.decode(ready.federation.messages.write_down({}, 1)[0])
    assert broadcast == {}
    assert method.update_spec({}, device, None) == {}
    state: dict[str, Any] = {}
    assert method.aggregate(state, iter(()), None) is state
    assert len({method.variant(device) for device in ready.federation.fleet.devices}) == 4
