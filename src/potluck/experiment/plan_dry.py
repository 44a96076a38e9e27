"""A dry round: one device of each tier does a small part of its real work, through real frames.

The method's own start, cast, expect, train (or post and absorb) and merge run, and so do the codecs: bytes are those of
frames that were made. What grows with the work is measured at two sizes and drawn out in a straight line: FLOPs over
samples times epochs, memory, at each
operation, over the batch. What a device holds of its share is counted.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from potluck.core.errors import TrainingError
from potluck.core.spec import extent
from potluck.core.types import Device, Reply, Shard
from potluck.engines.live import LiveBytes
from potluck.engines.peers import absorb_order, spec_of_posts
from potluck.engines.seam import Delivery, Order
from potluck.experiment import build
from potluck.experiment.run import Prepared
from potluck.methods.protocol import deployed
from potluck.models.flops import training_flops

AFFORDABLE_FLOPS = 1e9
"""A dry order does all of a device's work up to here, and a part of it beyond: under a second on a slow core."""
LEAST_BATCH = 4
STEPS = 2
"""In the second step the optimiser's memory, the gradients and the activations are there at once."""
BYTES_A_VALUE, BYTES_A_LABEL = 4, 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much work: samples a batch, samples, passes."""

    batch: int
    samples: int
    epochs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one device spends in one round. Bytes are of frames; among peers, of one post and all posts received."""

    down_bytes: int
    up_bytes: int
    flops: float
    absorb_flops: float
    memory_bytes: int


@dataclass(slots=True)
class Dry:
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
    def of(cls, ready: Prepared, standins: Mapping[str, Device], state: Any, folder: Path) -> Dry:
        """The dry rounds of a run, before the first."""
        sizes = {tier: _dry_size(ready, device, state) for tier, device in standins.items()}
        return cls(ready, standins, state, folder, sizes)

    def play(self, number: int) -> dict[str, Cost]:
        """One round: the cost of each stand-in, at its whole work."""
        return self._peers_round(number) if self.ready.course.method.traits.peers else self._star_round(number)

    def _star_round(self, number: int) -> dict[str, Cost]:
        course, costs, replies = self.ready.course, {}, []
        desk = course.desk(number)
        for tier, device in self.standins.items():
            made, tensor_bytes = course.letters.write_down(course.method.cast(self.state, device, desk), number)
            order = Order(
                device=device,
                round=number,
                verb="train",
                frame=made,
                ack=self.acks.get(device.id, 0),
                tensor_bytes=tensor_bytes,
            )
            dry = self.sizes[tier]
            delivery, live = self._answer(order, dry)
            expected = course.method.expect(self.state, device, desk)
            up, header = course.letters.read_up(delivery.frame, number, device.id, expected)
            flops = float(header.facts["flops"])
            if tier not in self.slopes:
                self._slope(order, dry, flops, live)
            costs[tier] = self._cost(device, dry, len(made), len(delivery.frame), (flops, 0.0), max(live))
            if header.facts.get("own") or header.facts.get("codec_memory"):
                self.acks[device.id] = number
            replies.append(Reply(device=device, round=number, up=up))
        self.state = course.method.merge(self.state, self._replies(replies, number), desk)
        return costs

    def _replies(self, replies: Sequence[Reply[Any]], number: int) -> list[Reply[Any]]:
        """Behind a relay what is sent depends on how many posted: there a stand-in's reply counts for its tier."""
        if not self.ready.course.method.traits.relayed:
            return list(replies)
        of_tier = {reply.device.tier: reply for reply in replies}
        cohort = self.ready.course.fleet.cohort(number)
        return [replace(of_tier[device.tier], device=device) for device in cohort if device.tier in of_tier]

    def _peers_round(self, number: int) -> dict[str, Cost]:
        course, posts, spent = self.ready.course, {}, {}
        ask, _ = course.letters.write_down({}, number)
        for tier, device in self.standins.items():
            order = Order(device=device, round=number, verb="post", frame=ask, ack=self.acks.get(device.id, 0))
            dry = self.sizes[tier]
            delivery, live = self._answer(order, dry)
            flops = self._flops(delivery)
            if tier not in self.slopes:
                self._slope(order, dry, flops, live)
            spec = spec_of_posts(course, device, number)
            posts[tier] = course.letters.read_up(delivery.frame, number, device.id, spec)[0]
            spent[tier] = (dry, len(delivery.frame), flops, max(live))
        costs = {}
        others = self._all_posts(posts, number)
        for tier, device in self.standins.items():
            inbox = {peer: made for peer, made in others.items() if peer != device.id}
            dry, size, flops, peak = spent[tier]
            delivery, later = self._answer(absorb_order(device, number, self.acks.get(device.id, 0), inbox), dry)
            received = sum(len(made) for made in inbox.values())
            both = flops, self._flops(delivery)
            costs[tier] = self._cost(device, dry, received, size, both, max(peak, *later))
            self.acks[device.id] = number
        return costs

    def _all_posts(self, posts: Mapping[str, Any], number: int) -> dict[int, bytearray]:
        """The post of each peer of the round: its tier's stand-in says what is in it."""
        letters = self.ready.course.letters
        return {
            device.id: letters.write_up(posts[device.tier], number, device.id, None, {})[0]
            for device in self.ready.course.fleet.cohort(number)
            if device.tier in posts
        }

    def _answer(self, order: Order, size: Size) -> tuple[Delivery, list[int]]:
        """(the delivery, bytes of all tensors after each operation). Raises TrainingError where the device gave up."""
        train = self.ready.experiment.train.model_copy(
            update={
                "batch_size": size.batch,
                "epochs": dict.fromkeys(self.standins, size.epochs),
            }
        )
        dry = self.ready.experiment.model_copy(update={"train": train})
        shares = self.ready.shares
        with LiveBytes() as live:
            side = build.make_side(dry, shares, self.folder)
            side = replace(
                side,
                letters=self.ready.course.letters,
                shard=lambda device: _first(shares.train[device.id], size.samples),
            )
            delivery = side.answer(order)
        if delivery.status != "ok":
            raise TrainingError(delivery.reason)
        return delivery, live.after

    def _slope(self, order: Order, size: Size, flops: float, live: Sequence[int]) -> None:
        """By the same order at half the size: FLOPs a sample and pass, and what the whole work adds to the memory."""
        tier, half = order.device.tier, Size(batch=size.batch // 2, samples=size.samples // 2, epochs=size.epochs)
        if half.batch < LEAST_BATCH // 2:
            self.slopes[tier] = (flops / max(size.samples * size.epochs, 1), 0.0)
            return
        with tempfile.TemporaryDirectory() as folder:
            there = replace(self, folder=Path(folder))
            delivery, less = there._answer(order, half)
        work = (size.samples - half.samples) * size.epochs
        per_pass = (flops - self._flops(delivery)) / work
        whole = _whole(self.ready, order.device)
        times = (whole.batch - size.batch) / (size.batch - half.batch)
        drawn_out = max(live) + max(0.0, max(live) - max(less)) * times
        if len(live) == len(less):  # the same operations: each is drawn out by itself, whichever is the largest then
            drawn_out = max(more + (more - fewer) * times for more, fewer in zip(live, less, strict=True))
        held = whole.samples - size.samples - times * (size.samples - half.samples)
        self.slopes[tier] = (per_pass, drawn_out + held * self._sample_bytes() - max(live))

    def _flops(self, delivery: Delivery) -> float:
        """The FLOPs of an order: a reply's header says them; the seconds of an order among peers are work alone."""
        order, course = delivery.order, self.ready.course
        if course.method.traits.peers:
            return delivery.seconds * order.device.flops_per_s
        spec = course.method.expect(self.state, order.device, course.desk(order.round))
        return float(course.letters.read_up(delivery.frame, order.round, order.device.id, spec)[1].facts["flops"])

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
        return BYTES_A_VALUE * self.ready.shares.test.images[0].numel() + BYTES_A_LABEL

    def bounds(self, tier: str, number: int) -> tuple[int, int]:
        """The fewest and the most tensor bytes that a reply of the tier may hold in a round, before zstd."""
        course, device = self.ready.course, self.standins[tier]
        if course.method.traits.peers:
            spec = spec_of_posts(course, device, number)
        else:
            spec = course.method.expect(self.state, device, course.desk(number))
        return extent(course.letters.up.respec(spec), whole=True)


def _whole(ready: Prepared, device: Device) -> Size:
    """The device's whole work of a round."""
    share, train = len(ready.shares.train[device.id]), ready.experiment.train
    assert isinstance(train.epochs, dict), "the experiment is resolved"
    return Size(batch=min(train.batch_size, max(share, 1)), samples=share, epochs=train.epochs[device.tier])


def _dry_size(ready: Prepared, device: Device, state: Any) -> Size:
    """The whole work where it is affordable, else two small batches."""
    whole, method = _whole(ready, device), ready.course.method
    net = deployed(method, None if method.traits.personal else state, None, device)
    sample = training_flops(net, ready.shares.test.shape)
    if sample * whole.samples * whole.epochs <= AFFORDABLE_FLOPS:
        return whole
    batch = min(whole.batch, max(LEAST_BATCH, int(AFFORDABLE_FLOPS / STEPS / sample)))
    return Size(batch=batch, samples=min(whole.samples, STEPS * batch), epochs=1)


def _first(shard: Shard, samples: int) -> Shard:
    return shard.take(torch.arange(min(samples, len(shard))))
