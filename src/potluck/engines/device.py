"""The device's side of an exchange: the same code answers an order in this process, in a pool's worker or on a phone.

*What did not merge did not happen*: a device keeps two states of its own, the acknowledged one and the newest, and an
order says from which merged round to start (``ack``).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from potluck.core import meter, seeds, tree
from potluck.core.errors import ModelError, RunFolderError, TrainingError, WireError
from potluck.core.types import Device, Shard, Task
from potluck.engines.seam import Delivery, Letters, Order
from potluck.fleet import link
from potluck.methods.protocol import deployed
from potluck.models.fit import Metric, Score, evaluate
from potluck.wire import frame

MOST_NOTES = 32
"""A reply carries at most so many figures for the record."""


class UnusableStateError(RunFolderError):
    """A device's own state is missing or damaged: its reply would not follow from what was merged."""


@dataclass(frozen=True, slots=True)
class OwnStore:
    """Own states and codec memories of devices as files, one per device and round; two are kept."""

    folder: Path

    def path(self, device: int, round: int) -> Path:
        """Where the state of a device as of a round stands."""
        return self.folder / f"{device:06d}-{round:06d}.safetensors"

    def load(self, device: int, round: int) -> dict[str, Any]:
        """``{"own": ..., "codec": ...}`` as of ``round`` (0: nothing)."""
        if round == 0:
            return {}
        path = self.path(device, round)
        try:
            return frame.decode(bytearray(path.read_bytes()))[0]
        except (OSError, WireError) as error:
            raise UnusableStateError(
                f"{path}: the state of device {device} as of round {round} is unusable: {error}"
            ) from None

    def save(self, device: int, round: int, ack: int | None, content: Mapping[str, Any]) -> None:
        """Writes the state of this round, whole or not at all, and drops all but it and the acknowledged one.

        Without ``ack``, nothing is dropped.
        """
        path = self.path(device, round)
        fresh = path.with_suffix(".new")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            fresh.write_bytes(frame.encode(content))
            fresh.replace(path)
        except OSError as error:
            raise RunFolderError(
                f"{path}: cannot be written ({error.strerror}); mend that, then resume the run"
            ) from None
        kept = None if ack is None else (path, self.path(device, ack))
        for other in self.folder.glob(f"{device:06d}-*.safetensors"):
            if kept is not None and other not in kept:
                other.unlink(missing_ok=True)

    def sync(self, device: int, round: int) -> None:
        """Forces a state to the disk, before a checkpoint refers to it."""
        with contextlib.suppress(FileNotFoundError):  # a reply may claim a state that is not there
            handle = os.open(self.path(device, round), os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)

    def demand(self, device: int, round: int, own: str, codec: str) -> None:
        """Raises RunFolderError unless the state of that round is there and has these digests."""
        held = self.load(device, round)
        if (tree.digest(held.get("own", {})), tree.digest(held.get("codec", {}))) != (own, codec):
            raise RunFolderError(f"{self.path(device, round)}: damaged, its digest is not that of the checkpoint")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSide:
    """Answers orders. ``shard`` gives a device's training data, ``test`` what its models are evaluated on."""

    method: Any
    letters: Letters
    shard: Callable[[Device], Shard]
    public: Shard | None
    test: Callable[[Device], Shard]
    store: OwnStore
    seed: int
    metric: Metric
    compute: str = "cpu"
    newest: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """The frame that was read last and what it holds: devices of a tier are sent the same one."""

    def answer(self, order: Order) -> Delivery:
        """The delivery, with simulated seconds. A training that fails or a frame that is wrong is ``rejected``."""
        verbs = {
            "train": self._train,
            "post": self._post,
            "absorb": self._absorb,
            "settle": self._settle,
            "evaluate": self._evaluate,
            "score": self._score,
        }
        among_peers = order.verb in ("post", "absorb")  # the loop counts those links: it knows how many peers there are
        with meter.metering() as costs:
            try:
                made = verbs[order.verb](order, costs)
            except (TrainingError, WireError, UnusableStateError) as error:
                seconds = 0.0 if among_peers else link.down_seconds(order.device, len(order.frame))
                seconds += link.work_seconds(order.device, costs.flops)
                return Delivery(order=order, status="rejected", reason=str(error), seconds=seconds)
        seconds = link.work_seconds(order.device, costs.flops)
        if not among_peers:
            down_s, up_s = link.down_seconds(order.device, len(order.frame)), link.up_seconds(order.device, len(made))
            seconds = down_s + seconds + up_s
        return Delivery(order=order, status="ok", frame=made, seconds=seconds, parts=costs.seconds)

    def _task(self, order: Order) -> Task:
        data = self.shard(order.device)
        return Task(round=order.round, device=order.device, data=data, public=self.public, seed=self.seed)

    def _down(self, order: Order) -> Mapping[str, Any]:
        """The message of an order, read and checked once for all devices that are sent this very frame."""
        known = self.newest
        if known.get("frame") is not order.frame or known["round"] != order.round:
            known.clear()
            read = self.letters.read_down(order.frame, order.round)
            known.update(frame=order.frame, round=order.round, tree=read)
        found: Mapping[str, Any] = known["tree"]
        return found

    def _train(self, order: Order, costs: meter.Meter) -> bytearray:
        device = order.device
        with meter.part("decode"):
            down = self._down(order)
            held = self.store.load(device.id, order.ack)
        with meter.part("train"):
            own, up = self._trained(held.get("own"), down, order)
        with meter.part("encode"):
            facts = _facts(own, costs)
            made, memory = self.letters.write_up(up, order.round, device.id, held.get("codec"), facts)
            if own or memory:
                self.store.save(device.id, order.round, order.ack, {"own": own or {}, "codec": memory})
        return made

    def _trained(self, own: Any, down: Mapping[str, Any], order: Order) -> tuple[Any, Any]:
        """What the method makes of a message; WireError for one that does not suit this device's net."""
        try:
            return self.method.train(own, down, self._task(order))  # type: ignore[no-any-return]
        except ModelError as error:
            raise WireError(f"the server's message does not suit this device: {error}") from None

    def _post(self, order: Order, costs: meter.Meter) -> bytearray:
        """A peer's first half of a round. What it leaves counts only with the second half."""
        device, task = order.device, self._task(order)
        self.letters.read_down(order.frame, order.round)
        own = self.store.load(device.id, order.ack).get("own") or self.method.start(task)
        with meter.part("train"):
            own, up = self.method.post(own, task)
        made, _ = self.letters.write_up(up, order.round, device.id, None, {})
        half = {"own": own, "codec": {}, "posted": dict(costs.notes)}
        self.store.save(device.id, order.round, order.ack, half)
        return made

    def _absorb(self, order: Order, costs: meter.Meter) -> bytearray:
        """A peer's second half: it learns from the others' posts, given frame by frame."""
        device, task = order.device, self._task(order)
        half = self.store.load(device.id, order.round)
        own = half["own"]
        with meter.part("decode"):
            frames = frame.decode(order.frame)[0].get("inbox", {})
            spec = self.method.expect(own, task)
            inbox = {
                int(peer): self.letters.read_up(tree.view_bytes(data), order.round, int(peer), spec)[0]
                for peer, data in frames.items()
            }
        with meter.part("train"):
            own = self.method.absorb(own, inbox, task)
        costs.notes = {**half.get("posted", {}), **costs.notes}
        self.store.save(device.id, order.round, order.ack, {"own": own, "codec": {}})
        return self.letters.write_up({}, order.round, device.id, None, _facts(own, costs))[0]

    def _settle(self, order: Order, costs: meter.Meter) -> bytearray:
        """A relayed device at the end of a run: it absorbs what was held for it, and posts nothing."""
        device = order.device
        own = self._settled(order, self.letters.read_down(order.frame, order.round))
        self.store.save(device.id, order.round, None, {"own": own, "codec": {}})
        return self.letters.write_up({}, order.round, device.id, None, _facts(own, costs))[0]

    def _settled(self, order: Order, down: Mapping[str, Any]) -> Any:
        own = self.store.load(order.device.id, order.ack).get("own") or None
        return own if own is None else self.method.settled(own, down, self._task(order))

    def _evaluate(self, order: Order, costs: meter.Meter) -> bytearray:
        ask = self.letters.read_down(order.frame, order.round)
        if self.method.traits.relayed:
            own = self._settled(order, ask.get("down", {}))
        else:
            own = self.store.load(order.device.id, order.ack).get("own") or None
        net = deployed(self.method, None, own, order.device)
        found = self._measure(net, _rows(self.test(order.device), ask, self.seed))
        return self.letters.write_up(_score_tree(found), order.round, order.device.id, None, {})[0]

    def _score(self, order: Order, costs: meter.Meter) -> bytearray:
        ask, _ = frame.decode(order.frame)
        net = self.method.model(ask.get("state", {}), None, order.device)
        return frame.encode(_score_tree(self._measure(net, _rows(self.test(order.device), ask, self.seed))))

    def _measure(self, net: torch.nn.Module, shard: Shard) -> Score:
        with meter.part("evaluate"):
            return evaluate(net, shard, metric=self.metric, device=self.compute)


def _facts(own: Any, costs: meter.Meter) -> dict[str, Any]:
    """What a device says beside its message: the digest of its new own state, its FLOPs and its notes."""
    notes = dict(list(costs.notes.items())[:MOST_NOTES])
    return {"own": tree.digest(own) if own else "", "flops": costs.flops, "notes": notes}


def _rows(test: Shard, ask: Mapping[str, Any], seed: int) -> Shard:
    """The asked-for part of the test share: ``samples`` of it (0: all), of these rows [start, stop)."""
    samples = ask["samples"]
    if samples and samples < len(test):
        drawn = torch.randperm(len(test), generator=seeds.generator(seed, 0, seeds.SERVER, "evaluate"))[:samples]
        test = test.take(drawn.sort().values)
    return test.take(torch.arange(ask["start"], min(ask["stop"], len(test))))


def _score_tree(score: Score) -> dict[str, Tensor]:
    return {
        "right": score.right,
        "total": score.total,
        "domain_right": score.domain_right,
        "domain_total": score.domain_total,
    }
