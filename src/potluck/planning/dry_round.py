"""A dry round: one device of each tier does a small part of its real work, through real frames.

The method's own functions run, those of a round at the server and on a device (or publish and receive), and so do the
codecs: bytes are those of frames that were made. What grows with the work is measured at two sizes and drawn out in a
straight line: FLOPs over samples times epochs, memory, at each operation, over the batch. What a device holds of its
share is counted.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from potluck.core.contexts import Reply
from potluck.core.errors import TrainingError
from potluck.core.spec import extent
from potluck.core.types import Device, Shard
from potluck.engines.contract import Request, Response
from potluck.engines.peer_round import receive_request, spec_of_updates
from potluck.experiment import build
from potluck.experiment.prepare import Prepared
from potluck.methods.protocol import deployed
from potluck.planning.tensor_bytes import TensorBytes
from potluck.training.flops import training_flops

AFFORDABLE_FLOPS = 1e9
"""A dry request does all of a device's work up to here, and a part of it beyond: under a second on a slow core."""
LEAST_BATCH = 4
STEPS = 2
"""In the second step the optimiser's memory, the gradients and the activations are there at once."""
BYTES_A_VALUE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much work: samples a batch, samples, passes."""

    batch: int
    samples: int
    epochs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one device spends in one round. Bytes are of frames; among peers, of one update and all received."""

    down_bytes: int
    up_bytes: int
    flops: float
    absorb_flops: float
    memory_bytes: int


@dataclass(slots=True)
class DryRounds:
    """The dry rounds of a method: each tier's stand-in, how much it does, and the state so far."""

    ready: Prepared
    standins: Mapping[str, Device]
    state: Any
    folder: Path
    sizes: Mapping[str, Size]
    acks: dict[int, int] = field(default_factory=dict)
    slopes: dict[str, tuple[float, float]] = field(default_factory=dict)
    """By tier: FLOPs a sample and pass, and bytes of memory that the whole work adds to the dry one."""

    @classmethod
    def of(cls, ready: Prepared, standins: Mapping[str, Device], state: Any, folder: Path) -> DryRounds:
        """The dry rounds of a run, before the first."""
        sizes = {tier: _dry_size(ready, device, state) for tier, device in standins.items()}
        return cls(ready, standins, state, folder, sizes)

    def run(self, number: int) -> dict[str, Cost]:
        """One round: the cost of each stand-in, at its whole work."""
        return self._peers_round(number) if self.ready.federation.method.traits.peers else self._server_round(number)

    def _server_round(self, number: int) -> dict[str, Cost]:
        federation, costs, replies = self.ready.federation, {}, []
        server_context = federation.server_context(number)
        for tier, device in self.standins.items():
            made, tensor_bytes = federation.messages.write_down(
                federation.method.broadcast(self.state, device, server_context), number
            )
            request = Request(
                device=device,
                round=number,
                verb="train",
                frame=made,
                ack=self.acks.get(device.id, 0),
                tensor_bytes=tensor_bytes,
            )
            dry = self.sizes[tier]
            response, live = self._answer(request, dry)
            expected = federation.method.update_spec(self.state, device, server_context)
            up, header = federation.messages.read_up(response.frame, number, device.id, expected)
            flops = float(header.facts["flops"])
            if tier not in self.slopes:
                self._slope(request, dry, flops, live)
            costs[tier] = self._cost(device, dry, len(made), len(response.frame), (flops, 0.0), max(live))
            if header.facts.get("own") or header.facts.get("codec_memory"):
                self.acks[device.id] = number
            replies.append(Reply(device=device, round=number, update=up))
        self.state = federation.method.aggregate(self.state, self._replies(replies, number), server_context)
        return costs

    def _replies(self, replies: Sequence[Reply[Any]], number: int) -> list[Reply[Any]]:
        """Behind a relay what is sent depends on how many posted: there a stand-in's reply counts for its tier."""
        if not self.ready.federation.method.traits.relayed:
            return list(replies)
        of_tier = {reply.device.tier: reply for reply in replies}
        cohort = self.ready.federation.fleet.cohort(number)
        return [replace(of_tier[device.tier], device=device) for device in cohort if device.tier in of_tier]

    def _peers_round(self, number: int) -> dict[str, Cost]:
        federation, posts, spent = self.ready.federation, {}, {}
        ask, _ = federation.messages.write_down({}, number)
        for tier, device in self.standins.items():
            request = Request(device=device, round=number, verb="post", frame=ask, ack=self.acks.get(device.id, 0))
            dry = self.sizes[tier]
            response, live = self._answer(request, dry)
            flops = self._flops(response)
            if tier not in self.slopes:
                self._slope(request, dry, flops, live)
            spec = spec_of_updates(federation, device, number)
            posts[tier] = federation.messages.read_up(response.frame, number, device.id, spec)[0]
            spent[tier] = (dry, len(response.frame), flops, max(live))
        costs = {}
        others = self._all_posts(posts, number)
        for tier, device in self.standins.items():
            inbox = {peer: made for peer, made in others.items() if peer != device.id}
            dry, size, flops, peak = spent[tier]
            response, later = self._answer(receive_request(device, number, self.acks.get(device.id, 0), inbox), dry)
            received = sum(len(made) for made in inbox.values())
            both = flops, self._flops(response)
            costs[tier] = self._cost(device, dry, received, size, both, max(peak, *later))
            self.acks[device.id] = number
        return costs

    def _all_posts(self, posts: Mapping[str, Any], number: int) -> dict[int, bytearray]:
        """The post of each peer of the round: its tier's stand-in says what is in it."""
        messages = self.ready.federation.messages
        return {
            device.id: messages.write_up(posts[device.tier], number, device.id, None, {})[0]
            for device in self.ready.federation.fleet.cohort(number)
            if device.tier in posts
        }

    def _answer(self, request: Request, size: Size) -> tuple[Response, list[int]]:
        """(the response, bytes of all tensors after each operation). Raises TrainingError where the device gave up."""
        epochs = dict.fromkeys(self.standins, size.epochs)
        train = self.ready.experiment.train.model_copy(update={"batch_size": size.batch, "epochs": epochs})
        experiment = self.ready.experiment.model_copy(update={"train": train})
        dry = replace(self.ready.resolved, experiment=experiment, epochs=epochs)
        shares = self.ready.shares
        with TensorBytes() as live:  # type: ignore[no-untyped-call, unused-ignore]
            runtime = build.make_runtime(dry, shares, self.folder)
            runtime = replace(
                runtime,
                messages=self.ready.federation.messages,
                shard=lambda device: _first(shares.train[device.id], size.samples),
            )
            response = runtime.answer(request)
        if response.status != "ok":
            raise TrainingError(response.reason)
        return response, live.after

    def _slope(self, request: Request, size: Size, flops: float, live: Sequence[int]) -> None:
        """By the same request at half the size: FLOPs a sample and pass, and what the whole work adds to the memory."""
        tier, half = request.device.tier, Size(batch=size.batch // 2, samples=size.samples // 2, epochs=size.epochs)
        if half.batch < LEAST_BATCH // 2:
            self.slopes[tier] = (flops / max(size.samples * size.epochs, 1), 0.0)
            return
        with tempfile.TemporaryDirectory() as folder:
            there = replace(self, folder=Path(folder))
            response, less = there._answer(request, half)
        work = (size.samples - half.samples) * size.epochs
        per_pass = (flops - self._flops(response)) / work
        whole = _whole(self.ready, request.device)
        times = (whole.batch - size.batch) / (size.batch - half.batch)
        drawn_out = max(live) + max(0.0, max(live) - max(less)) * times
        if len(live) == len(less):  # the same operations: each is drawn out by itself, whichever is the largest then
            drawn_out = max(more + (more - fewer) * times for more, fewer in zip(live, less, strict=True))
        held = whole.samples - size.samples - times * (size.samples - half.samples)
        self.slopes[tier] = (per_pass, drawn_out + held * self._sample_bytes() - max(live))

    def _flops(self, response: Response) -> float:
        """The FLOPs of a request: a reply's header says them; the seconds of a request among peers are work alone."""
        request, federation = response.request, self.ready.federation
        if federation.method.traits.peers:
            return response.seconds * request.device.flops_per_s
        spec = federation.method.update_spec(self.state, request.device, federation.server_context(request.round))
        return float(
            federation.messages.read_up(response.frame, request.round, request.device.id, spec)[1].facts["flops"]
        )

    def _cost(self, device: Device, size: Size, down: int, up: int, flops: tuple[float, float], peak: int) -> Cost:
        whole, (per_pass, added) = _whole(self.ready, device), self.slopes[device.tier]
        more = whole.samples * whole.epochs - size.samples * size.epochs
        return Cost(
            down_bytes=down,
            up_bytes=up,
            flops=flops[0] + per_pass * more,
            absorb_flops=flops[1],
            memory_bytes=round(peak + added),
        )

    def _sample_bytes(self) -> int:
        """What a device holds of each sample while it trains."""
        test = self.ready.shares.test
        sample = test.samples[0].numel() * (test.samples.element_size() if test.vocabulary else BYTES_A_VALUE)
        return sample + test.targets[0].numel() * test.targets.element_size()

    def bounds(self, tier: str, number: int) -> tuple[int, int]:
        """The fewest and the most tensor bytes that a reply of the tier may hold in a round, before zstd."""
        federation, device = self.ready.federation, self.standins[tier]
        if federation.method.traits.peers:
            spec = spec_of_updates(federation, device, number)
        else:
            spec = federation.method.update_spec(self.state, device, federation.server_context(number))
        return extent(federation.messages.up.respec(spec), whole=True)


def _whole(ready: Prepared, device: Device) -> Size:
    """The device's whole work of a round."""
    share, epochs = len(ready.shares.train[device.id]), ready.resolved.epochs[device.tier]
    return Size(batch=min(ready.experiment.train.batch_size, max(share, 1)), samples=share, epochs=epochs)


def _dry_size(ready: Prepared, device: Device, state: Any) -> Size:
    """The whole work where it is affordable, else two small batches."""
    whole, method = _whole(ready, device), ready.federation.method
    net = deployed(method, None if method.traits.personal else state, None, device)
    sample = training_flops(net, ready.shares.inputs)
    if sample * whole.samples * whole.epochs <= AFFORDABLE_FLOPS:
        return whole
    batch = min(whole.batch, max(LEAST_BATCH, int(AFFORDABLE_FLOPS / STEPS / sample)))
    return Size(batch=batch, samples=min(whole.samples, STEPS * batch), epochs=1)


def _first(shard: Shard, samples: int) -> Shard:
    return shard.take(torch.arange(min(samples, len(shard))))
