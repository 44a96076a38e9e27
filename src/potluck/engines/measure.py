"""Evaluation, a verb of its own: a personal model on its device, any other at the server, once a variant."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch

from potluck.core import tree
from potluck.core.errors import WireError
from potluck.core.spec import Array, Spec
from potluck.core.types import Device
from potluck.engines.course import Course, Played, Snapshot, rows_of
from potluck.engines.seam import Delivery, Engine, Order
from potluck.wire import frame

CHUNK = 1000
"""Test samples per evaluation order: the same on every engine, so that the counts are too."""
MOST_ROWS = 2**40


def measure(course: Course, engine: Engine, played: Played, samples: int) -> None:
    """Fills ``played.scores`` by device, on ``samples`` test samples (0: all), and the ledger of what crossed links."""
    start = time.perf_counter()
    played.scores.clear()
    personal = course.method.traits.personal
    groups: dict[Any, list[Device]] = {}
    for device in course.fleet.devices:
        alike = device.id if personal else (course.method.variant(device), course.depths[device.tier])
        groups.setdefault(alike, []).append(device)
    orders = _own_orders if personal else _server_orders
    asked = orders(course, played.snapshot, [group[0] for group in groups.values()], samples)
    for delivery in engine.exchange(asked, None):
        _note(course, played, delivery)
    for group in groups.values():
        for device in group[1:]:
            if group[0].id in played.scores:
                played.scores[device.id] = played.scores[group[0].id]
    played.parts["evaluate"] = played.parts.get("evaluate", 0.0) + time.perf_counter() - start


def _own_orders(course: Course, snapshot: Snapshot, devices: list[Device], samples: int) -> Iterator[Order]:
    rows = {"start": 0, "stop": MOST_ROWS, "samples": samples}
    ask, size = course.letters.write_down(rows, snapshot.round)
    for device in devices:
        ack = snapshot.acks.get(device.id, 0)
        if course.method.traits.relayed:  # what it would deploy after absorbing what the relay holds for it
            down = course.method.cast(snapshot.state, device, course.desk(snapshot.round))
            ask, size = course.letters.write_down({**rows, "down": down}, snapshot.round)
        yield Order(device=device, round=snapshot.round, verb="evaluate", frame=ask, ack=ack, tensor_bytes=size)


def _server_orders(course: Course, snapshot: Snapshot, devices: list[Device], samples: int) -> Iterator[Order]:
    rows = samples or course.test_samples
    for start in range(0, rows, CHUNK):
        ask = {"start": start, "stop": min(start + CHUNK, rows), "samples": samples, "state": snapshot.state}
        made = frame.encode(ask)
        for device in devices:
            yield Order(device=device, round=snapshot.round, verb="score", frame=made)


def _note(course: Course, played: Played, delivery: Delivery) -> None:
    """Adds a delivery's counts to the scores; one that is wrong is rejected and named in the ledger."""
    order, device = delivery.order, delivery.order.device
    status, reason, score = delivery.status, delivery.reason, None
    if status == "ok":
        try:
            score = _read(course, delivery)
        except WireError as error:
            status, reason = "rejected", str(error)
    if order.verb == "evaluate":
        played.rows += rows_of(delivery, tree.nbytes(score or {}), status, reason)
    if score is not None:
        held = played.scores.get(device.id)
        played.scores[device.id] = score if held is None else {name: held[name] + score[name] for name in held}


def _read(course: Course, delivery: Delivery) -> dict[str, Any]:
    if delivery.order.verb == "score":
        return frame.decode(delivery.frame)[0]
    order, device = delivery.order, delivery.order.device
    score = course.letters.read_up(delivery.frame, order.round, device.id, _score_spec(course))[0]
    for kind in ("", "domain_"):
        right, total = score[f"{kind}right"], score[f"{kind}total"]
        if bool(((total < 0) | (total > MOST_ROWS)).any()) or bool((right < 0).any()):
            raise WireError("counts of an evaluation below zero or beyond reason", device=device.id)
        if course.shares and bool((right > total).any()):
            raise WireError("more right answers than samples", device=device.id)
    return score


def _score_spec(course: Course) -> Spec:
    return {
        "right": Array(dtype=torch.float64, shape=(course.classes,)),
        "total": Array(dtype=torch.int64, shape=(course.classes,)),
        "domain_right": Array(dtype=torch.float64, shape=(course.domains,)),
        "domain_total": Array(dtype=torch.int64, shape=(course.domains,)),
    }
