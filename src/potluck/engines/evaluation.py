"""Evaluation, a verb of its own: a personal model on its device, any other at the server, once a variant."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from potluck.core import tree
from potluck.core.errors import WireError
from potluck.core.spec import Array, Spec
from potluck.core.types import Device
from potluck.engines.contract import Engine, Request, Response
from potluck.engines.federation import Checkpoint, Federation
from potluck.engines.result import RoundResult, ledger_rows
from potluck.training.evaluate import OWN_COUNT, OWN_SUM, Score, sum_scores
from potluck.wire import frame

CHUNK = 1000
"""Test samples per evaluation request: the same on every engine, so that the counts are too."""
MOST_ROWS = 2**40


def evaluate_models(federation: Federation, engine: Engine, result: RoundResult, samples: int) -> None:
    """Fills ``result.scores`` by device, on ``samples`` test samples (0: all), and the ledger of what crossed links.

    Where each device's own data are tested on beside the common ones, ``result.own_scores`` likewise, always on all.
    """
    start = time.perf_counter()
    result.scores.clear()
    result.own_scores.clear()
    for number, where in enumerate(federation.evaluate_on):
        into = result.own_scores if number else result.scores
        _evaluate(federation, engine, result, into, samples, own=where == "own")
    result.parts["evaluate"] = result.parts.get("evaluate", 0.0) + time.perf_counter() - start


def _evaluate(
    federation: Federation,
    engine: Engine,
    result: RoundResult,
    into: dict[int, Score],
    samples: int,
    *,
    own: bool,
) -> None:
    personal = federation.method.traits.personal
    groups: dict[Any, list[Device]] = {}
    for device in federation.fleet.devices:
        alone = personal or own
        alike = device.id if alone else (federation.method.variant(device), federation.depths[device.tier])
        groups.setdefault(alike, []).append(device)
    requests_of = _device_requests if personal else _server_requests
    asked = requests_of(federation, result.checkpoint, [group[0] for group in groups.values()], samples, own)
    for response in engine.exchange(asked, None):
        _note(federation, result, into, response)
    for group in groups.values():
        for device in group[1:]:
            if group[0].id in into:
                into[device.id] = into[group[0].id]


def _asked(start: int, stop: int, samples: int, own: bool) -> dict[str, Any]:
    """Which rows of ``samples`` test samples (0: all) are asked for; of a device's own data it is always all."""
    rows = {"start": start, "stop": stop, "samples": 0 if own else samples}
    return {**rows, "own": True} if own else rows


def _device_requests(
    federation: Federation, checkpoint: Checkpoint, devices: list[Device], samples: int, own: bool
) -> Iterator[Request]:
    rows = _asked(0, MOST_ROWS, samples, own)
    ask, size = federation.messages.write_down(rows, checkpoint.round)
    for device in devices:
        ack = checkpoint.acks.get(device.id, 0)
        if federation.method.traits.relayed:  # what it would deploy after receiving what the relay holds for it
            down = federation.method.broadcast(checkpoint.state, device, federation.server_context(checkpoint.round))
            ask, size = federation.messages.write_down({**rows, "down": down}, checkpoint.round)
        yield Request(device=device, round=checkpoint.round, verb="evaluate", frame=ask, ack=ack, tensor_bytes=size)


def _server_requests(
    federation: Federation, checkpoint: Checkpoint, devices: list[Device], samples: int, own: bool
) -> Iterator[Request]:
    # A device's own test data are asked for whole; its model lies there already, so nothing of it crosses a link.
    rows, step = (MOST_ROWS, MOST_ROWS) if own else (samples or federation.test_samples, CHUNK)
    for start in range(0, rows, step):
        asked = _asked(start, min(start + step, rows), samples, own)
        made = frame.encode({**asked, "state": checkpoint.state})
        for device in devices:
            yield Request(device=device, round=checkpoint.round, verb="score", frame=made)


def _note(federation: Federation, result: RoundResult, into: dict[int, Score], response: Response) -> None:
    """Adds a response's counts to the scores; one that is wrong is rejected and named in the ledger."""
    request, device = response.request, response.request.device
    status, reason, score = response.status, response.reason, None
    if status == "ok":
        try:
            score = _read(federation, response)
        except WireError as error:
            status, reason = "rejected", str(error)
    if request.verb == "evaluate":
        result.rows += ledger_rows(response, tree.nbytes(score or {}), status, reason)
    if score is not None:
        held = into.get(device.id)
        into[device.id] = score if held is None else sum_scores(held, score)


def _read(federation: Federation, response: Response) -> dict[str, Any]:
    if response.request.verb == "score":
        return frame.decode(response.frame)[0]
    request, device = response.request, response.request.device
    score = federation.messages.read_up(response.frame, request.round, device.id, federation.score_spec)[0]
    for totals in (score["all"], *score["domains"].values()):
        counted = {name: value for name, value in totals.items() if name not in (OWN_SUM, OWN_COUNT)}
        fault = federation.task.fault(counted)
        if fault:
            raise WireError(f"the totals of an evaluation: {fault}", device=device.id)
    return score


def score_spec(score: Score) -> Spec:
    """What totals must look like, of those of no sample: whole numbers of their shapes."""
    return {
        name: score_spec(value) if isinstance(value, Mapping) else Array(dtype=torch.int64, shape=tuple(value.shape))
        for name, value in score.items()
    }
