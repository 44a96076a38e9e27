"""One device of a run sends hostile bytes: the round goes on as if that device had been lost, and says why."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import zstandard

from potluck.core import tree
from potluck.engines.contract import Engine, Request, Response
from potluck.engines.local.inprocess import InProcess
from potluck.engines.result import RoundResult
from potluck.engines.round import initial_checkpoint, run_rounds
from potluck.experiment import build
from potluck.experiment.config import Experiment
from potluck.experiment.prepare import Prepared, prepare
from potluck.wire import frame

MakeExperiment = Callable[..., Experiment]
Change = Callable[[Response, dict[tuple[int, int], bytes]], Response]
"""(what a device sent, all frames by (round, device) so far) -> what arrives."""


class Between:
    """An engine between the loop and another engine, which changes deliveries of one device in one round."""

    def __init__(self, inner: Engine, device: int, round: int, change: Change) -> None:
        self.inner, self.device, self.round, self.change = inner, device, round, change
        self.seen: dict[tuple[int, int], bytes] = {}

    def exchange(self, requests: Iterable[Request], deadline_s: float | None) -> Iterator[Response]:
        for response in self.inner.exchange(requests, deadline_s):
            request = response.request
            if request.verb == "train":
                self.seen[request.round, request.device.id] = bytes(response.frame)
            hit = request.verb == "train" and (request.device.id, request.round) == (self.device, self.round)
            yield self.change(response, self.seen) if hit else response


def lost(response: Response, seen: dict[tuple[int, int], bytes]) -> Response:
    return Response(request=response.request, status="lost", reason="no answer")


def sends(make: Callable[[bytes, dict[tuple[int, int], bytes]], bytes]) -> Change:
    return lambda response, seen: replace(response, frame=make(bytes(response.frame), seen))


def edited(data: bytes, **changed: Any) -> bytes:
    """The frame with other facts or other scalars."""
    got, facts = frame.decode(data)
    by_path = dict(tree.leaves(got))
    inner = {name: value for name, value in changed.items() if name in by_path}
    outer = {name: value for name, value in changed.items() if name not in by_path}
    return bytes(frame.encode(tree.assemble({**by_path, **inner}), {**facts, **outer}))


def with_huge_note(data: bytes) -> bytes:
    """A note of 400 digits: finite in JSON, beyond every float."""
    size = int.from_bytes(data[:8], "little")
    head = json.loads(data[8 : 8 + size])
    meta = json.loads(head["__metadata__"]["potluck"])
    meta["notes"] = {"loss": 10**400}
    head["__metadata__"]["potluck"] = json.dumps(meta)
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def poisoned(data: bytes) -> bytes:
    got, facts = frame.decode(data)
    name = sorted(got["weights"])[0]
    got["weights"][name].view(-1)[0] = float("nan")
    return bytes(frame.encode(got, facts))


def bomb(data: bytes) -> bytes:
    _, facts = frame.decode(data)
    payload = zstandard.ZstdCompressor().compress(bytes(2**26))
    return bytes(frame.encode({"zstd": torch.tensor(list(payload), dtype=torch.uint8), "raw_bytes": 100}, facts))


DEVICE, ROUND = 1, 2
ATTACKS: dict[str, tuple[Change, str]] = {
    "nothing": (sends(lambda data, seen: b""), "0 bytes are no frame"),
    "noise": (sends(lambda data, seen: bytes(range(256)) * 9), "truncated or oversized"),
    "truncated": (sends(lambda data, seen: data[:-1]), "truncated or padded"),
    "padded": (sends(lambda data, seen: data + bytes(4)), "truncated or padded"),
    "replayed": (sends(lambda data, seen: seen[ROUND - 1, DEVICE]), "round is 1, expected 2"),
    "of another device": (sends(lambda data, seen: seen[ROUND, 0]), "device is 0, expected 1"),
    "of another run": (sends(lambda data, seen: edited(data, config="d" * 64)), "config is"),
    "no samples": (sends(lambda data, seen: edited(data, samples=0)), "tensor 'samples': got 0, expected int"),
    "1e300 samples": (sends(lambda data, seen: edited(data, samples=1e300)), "tensor 'samples': got 1e+300"),
    "NaN": (sends(lambda data, seen: poisoned(data)), "holds NaN or infinity"),
    "notes that are no notes": (sends(lambda data, seen: edited(data, notes=["loss"])), "notes are ['loss']"),
    "a huge note": (sends(lambda data, seen: with_huge_note(data)), "64 bits"),
    "a digest that is none": (sends(lambda data, seen: edited(data, own="../../etc/passwd")), "own is"),
    "a bomb": (sends(lambda data, seen: bomb(data)), "not expected here"),
    "the order itself": (
        lambda response, seen: replace(response, frame=bytes(response.request.frame)),
        "kind is 'down'",
    ),
}


def rounds_of(ready: Prepared, own: Path, change: Change | None) -> list[RoundResult]:
    engine: Engine = InProcess(runtime=build.make_runtime(ready.resolved, ready.shares, own))
    if change is not None:
        engine = Between(engine, DEVICE, ROUND, change)
    return list(run_rounds(ready.federation, engine, initial_checkpoint(ready.federation), 3))


@pytest.fixture(scope="module")
def ready() -> Prepared:
    tiers = [{"name": "small", "devices": 2}, {"name": "large", "devices": 1}]
    table = {
        "data": {"source": "synthetic:120,1,8,8"},
        "model": {"name": "mlp"},
        "fleet": {"tier": tiers},
        "evaluate": {"every": 100, "samples": 10},
        "engine": {"kind": "inprocess"},
    }
    return prepare(Experiment.of(table))


@pytest.fixture(scope="module")
def without(ready: Prepared, tmp_path_factory: pytest.TempPathFactory) -> list[RoundResult]:
    """The run in which the device is lost in that round."""
    return rounds_of(ready, tmp_path_factory.mktemp("own"), lost)


@pytest.mark.parametrize("name", ATTACKS)
def test_the_round_goes_on_without_the_hostile_device(
    ready: Prepared, without: list[RoundResult], tmp_path: Path, name: str
) -> None:
    change, reason = ATTACKS[name]
    result = rounds_of(ready, tmp_path, change)
    assert len(result) == 3
    rows = {(row.device, row.direction): row for row in result[ROUND - 1].rows if row.verb == "train"}
    for direction in ("down", "up"):
        row = rows[DEVICE, direction]
        assert row.status == "rejected"
        assert row.reason.startswith(f"device {DEVICE}: ")
        assert reason in row.reason
    assert {row.status for (device, _), row in rows.items() if device != DEVICE} == {"ok"}
    assert DEVICE not in result[ROUND - 1].notes
    for ours, theirs in zip(result, without, strict=True):
        assert tree.equal(ours.checkpoint.state, theirs.checkpoint.state)
        assert ours.checkpoint.digest() == theirs.checkpoint.digest()
        assert ours.checkpoint.acks == theirs.checkpoint.acks


def test_losing_a_device_does_change_the_state(ready: Prepared, without: list[RoundResult], tmp_path: Path) -> None:
    whole = rounds_of(ready, tmp_path, None)
    assert whole[0].checkpoint.digest() == without[0].checkpoint.digest()
    assert whole[1].checkpoint.digest() != without[1].checkpoint.digest()


@pytest.mark.parametrize("method", ["local", "fedavg"])
@pytest.mark.parametrize("codec", ["", "int8", "zstd"])
def test_what_was_rejected_did_not_happen_on_the_device_either(
    small: MakeExperiment, method: str, codec: str, tmp_path: Path
) -> None:
    """Own states too: after a rejected reply the device starts from what was merged last."""
    up = f'wire.up=["{codec}"]' if codec else "wire.up=[]"
    ready = prepare(small(method, up, "fleet.participation=1.0", "model.name=mlp", "evaluate.every=3"))
    digests = []
    for name, change in {"rejected": sends(lambda data, seen: data[:-1] or b"x"), "lost": lost}.items():
        result = rounds_of(ready, tmp_path / name, change)
        trained = [row for row in result[1].rows if row.device == DEVICE and row.verb == "train"]
        assert [row.status for row in trained] == [name, name]
        digests.append([found.checkpoint.digest() for found in result])
    assert digests[0] == digests[1]
