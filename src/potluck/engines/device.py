"""The device's part of an exchange: the same code answers a request in this process, in a pool's worker or on a phone.

*What was not aggregated did not happen*: a device keeps two local states, the acknowledged one and the newest, and a
request says from which aggregated round to start (``ack``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from potluck.core import meter, seeds, tree
from potluck.core.contexts import DeviceContext
from potluck.core.errors import ModelError, TrainingError, WireError
from potluck.core.types import Device, Shard
from potluck.engines.contract import Request, Response
from potluck.engines.local_state import LocalStateStore, UnusableStateError
from potluck.fleet import link
from potluck.methods.protocol import deployed
from potluck.tasks.task import LearningTask
from potluck.training.evaluate import Metric, Score, evaluate
from potluck.wire import frame
from potluck.wire.messages import Messages

MOST_NOTES = 32
"""A reply carries at most so many figures for the record."""
AMONG_PEERS = ("post", "absorb")
"""The round loop counts the links of these: it knows how many peers there are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRuntime:
    """Answers requests. ``shard`` gives a device's training data, ``test`` what its models are evaluated on."""

    method: Any
    messages: Messages
    shard: Callable[[Device], Shard]
    public: Shard | None
    test: Callable[[Device], Shard]
    own: Callable[[Device], Shard]
    """What a device has held out of its own data."""
    store: LocalStateStore
    seed: int
    task: LearningTask
    metric: Metric | None
    """A metric of one's own, summed beside those of the task."""
    domains: int
    compute: str = "cpu"
    newest: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """The frame that was read last and what it holds: devices of a tier are sent the same one."""

    def answer(self, request: Request) -> Response:
        """The response, with simulated seconds. A training that fails or a frame that is wrong is ``rejected``."""
        verbs = {
            "train": self._train,
            "post": self._publish,
            "absorb": self._receive,
            "settle": self._finalise,
            "evaluate": self._evaluate,
            "score": self._score,
        }
        device, linked = request.device, request.verb not in AMONG_PEERS
        down_s = link.down_seconds(device, len(request.frame)) if linked else 0.0
        with meter.metering() as costs:
            try:
                made = verbs[request.verb](request, costs)
            except (TrainingError, WireError, UnusableStateError) as error:
                seconds = down_s + link.work_seconds(device, costs.flops)
                return Response(request=request, status="rejected", reason=str(error), seconds=seconds)
        up_s = link.up_seconds(device, len(made)) if linked else 0.0
        seconds = down_s + link.work_seconds(device, costs.flops) + up_s
        return Response(request=request, status="ok", frame=made, seconds=seconds, parts=costs.seconds)

    def _context(self, request: Request) -> DeviceContext:
        data = self.shard(request.device)
        return DeviceContext(round=request.round, device=request.device, data=data, public=self.public, seed=self.seed)

    def _message(self, request: Request) -> Mapping[str, Any]:
        """The message of a request, read and checked once for all devices that are sent this very frame."""
        known = self.newest
        if known.get("frame") is not request.frame or known["round"] != request.round:
            known.clear()
            read = self.messages.read_down(request.frame, request.round)
            known.update(frame=request.frame, round=request.round, tree=read)
        found: Mapping[str, Any] = known["tree"]
        return found

    def _train(self, request: Request, costs: meter.Meter) -> bytearray:
        device = request.device
        with meter.part("decode"):
            message = self._message(request)
            held = self.store.load(device.id, request.ack)
        with meter.part("train"):
            local_state, update = self._trained(held.get("own"), message, request)
        with meter.part("encode"):
            facts = _facts(local_state, costs)
            made, memory = self.messages.write_up(update, request.round, device.id, held.get("codec"), facts)
            if local_state or memory:
                self.store.save(device.id, request.round, request.ack, {"own": local_state or {}, "codec": memory})
        return made

    def _trained(self, local_state: Any, message: Mapping[str, Any], request: Request) -> tuple[Any, Any]:
        """What the method makes of a message; WireError for one that does not suit this device's net."""
        try:
            return self.method.train(local_state, message, self._context(request))  # type: ignore[no-any-return]
        except ModelError as error:
            raise WireError(f"the server's message does not suit this device: {error}") from None

    def _publish(self, request: Request, costs: meter.Meter) -> bytearray:
        """A peer's first half of a round. What it leaves counts only with the second half."""
        device, context = request.device, self._context(request)
        self.messages.read_down(request.frame, request.round)
        local_state = self.store.load(device.id, request.ack).get("own") or self.method.initial_state(context)
        with meter.part("train"):
            local_state, update = self.method.publish(local_state, context)
        made, _ = self.messages.write_up(update, request.round, device.id, None, {})
        half = {"own": local_state, "codec": {}, "posted": dict(costs.notes)}
        self.store.save(device.id, request.round, request.ack, half)
        return made

    def _receive(self, request: Request, costs: meter.Meter) -> bytearray:
        """A peer's second half: it learns from the others' updates, given frame by frame."""
        device, context = request.device, self._context(request)
        half = self.store.load(device.id, request.round)
        local_state = half["own"]
        with meter.part("decode"):
            frames = frame.decode(request.frame)[0].get("inbox", {})
            spec = self.method.update_spec(local_state, context)
            inbox = {
                int(peer): self.messages.read_up(tree.view_bytes(data), request.round, int(peer), spec)[0]
                for peer, data in frames.items()
            }
        with meter.part("train"):
            local_state = self.method.receive(local_state, inbox, context)
        costs.notes = {**half.get("posted", {}), **costs.notes}
        self.store.save(device.id, request.round, request.ack, {"own": local_state, "codec": {}})
        return self.messages.write_up({}, request.round, device.id, None, _facts(local_state, costs))[0]

    def _finalise(self, request: Request, costs: meter.Meter) -> bytearray:
        """A relayed device at the end of a run: it receives what was held for it, and publishes nothing."""
        device = request.device
        local_state = self._finalised(request, self.messages.read_down(request.frame, request.round))
        self.store.save(device.id, request.round, None, {"own": local_state, "codec": {}})
        return self.messages.write_up({}, request.round, device.id, None, _facts(local_state, costs))[0]

    def _finalised(self, request: Request, message: Mapping[str, Any]) -> Any:
        held = self.store.load(request.device.id, request.ack).get("own") or None
        return held if held is None else self.method.finalised(held, message, self._context(request))

    def _evaluate(self, request: Request, costs: meter.Meter) -> bytearray:
        ask = self.messages.read_down(request.frame, request.round)
        if self.method.traits.relayed:
            local_state = self._finalised(request, ask.get("down", {}))
        else:
            local_state = self.store.load(request.device.id, request.ack).get("own") or None
        net = deployed(self.method, None, local_state, request.device)
        found = self._measure(net, _rows(self._tested(request.device, ask), ask, self.seed))
        return self.messages.write_up(found, request.round, request.device.id, None, {})[0]

    def _score(self, request: Request, costs: meter.Meter) -> bytearray:
        ask, _ = frame.decode(request.frame)
        net = self.method.model(ask.get("state", {}), None, request.device)
        return frame.encode(self._measure(net, _rows(self._tested(request.device, ask), ask, self.seed)))

    def _tested(self, device: Device, ask: Mapping[str, Any]) -> Shard:
        return self.own(device) if ask.get("own") else self.test(device)

    def _measure(self, net: torch.nn.Module, shard: Shard) -> Score:
        with meter.part("evaluate"):
            return evaluate(net, shard, self.task, metric=self.metric, domains=self.domains, device=self.compute)


def _facts(local_state: Any, costs: meter.Meter) -> dict[str, Any]:
    """What a device says beside its message: the digest of its new local state, its FLOPs and its notes."""
    notes = dict(list(costs.notes.items())[:MOST_NOTES])
    return {"own": tree.digest(local_state) if local_state else "", "flops": costs.flops, "notes": notes}


def _rows(test: Shard, ask: Mapping[str, Any], seed: int) -> Shard:
    """The asked-for part of the test share: ``samples`` of it (0: all), of these rows [start, stop)."""
    samples = ask["samples"]
    if samples and samples < len(test):
        drawn = torch.randperm(len(test), generator=seeds.generator(seed, 0, seeds.SERVER, "evaluate"))[:samples]
        test = test.take(drawn.sort().values)
    return test.take(torch.arange(ask["start"], min(ask["stop"], len(test))))
