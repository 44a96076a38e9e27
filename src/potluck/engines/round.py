"""The one loop: cohort, broadcast, exchange, aggregate, evaluate. It does no I/O: who calls it keeps what it yields.

One round of a ServerMethod:

    for device in cohort:  frame = write_down(broadcast(state, device))      -> engine -> device trains
                           reply = read_up(frame), checked against update_spec(state, device)
    state = aggregate(state, replies in device order)
    late, lost, rejected: written to the ledger, not aggregated

The round of a PeerMethod stands in peer_round.py; what a relay still holds for its devices at the end, in relay.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from potluck.core import meter, tree
from potluck.core.contexts import Reply, ServerContext
from potluck.core.errors import WireError
from potluck.engines.contract import Engine, Request, Response
from potluck.engines.evaluation import evaluate_models
from potluck.engines.federation import Checkpoint, Federation
from potluck.engines.peer_round import peer_round
from potluck.engines.relay import finalise
from potluck.engines.result import RoundResult, ledger_rows, notes_of, require_one_sound


def initial_checkpoint(federation: Federation) -> Checkpoint:
    """The checkpoint before the first round."""
    if federation.method.traits.peers:
        return Checkpoint(round=0, state={})
    return Checkpoint(round=0, state=federation.method.initial_state(federation.server_context(0)))


def run_rounds(
    federation: Federation,
    engine: Engine,
    checkpoint: Checkpoint,
    last: int,
    enough: Callable[[RoundResult], bool] = lambda _: False,
) -> Iterator[RoundResult]:
    """Runs the rounds after ``checkpoint`` up to ``last``, or until one is ``enough``, and yields each.

    The last one is evaluated in full.
    """
    over = False
    while not over and checkpoint.round < last:
        one_round = peer_round if federation.method.traits.peers else _round
        result = one_round(federation, engine, checkpoint)
        checkpoint = result.checkpoint
        final = checkpoint.round == last
        if final or checkpoint.round % federation.evaluate_every == 0:
            evaluate_models(federation, engine, result, samples=0 if final else federation.evaluate_samples)
        over = enough(result)
        if over and not final and (federation.evaluate_samples or not result.scores):
            evaluate_models(federation, engine, result, samples=0)
        if federation.method.traits.relayed and (over or final):
            finalise(federation, engine, result)
        yield result


def _round(federation: Federation, engine: Engine, before: Checkpoint) -> RoundResult:
    number, fleet, method = before.round + 1, federation.fleet, federation.method
    context, cohort = federation.server_context(number), fleet.cohort(number)
    result = RoundResult(checkpoint=before, cohort=[device.id for device in cohort])
    acks, local_states, codec = dict(before.acks), dict(before.local_states), dict(before.codec)
    written: dict[tuple[tuple[str, int], ...], tuple[Any, bytearray, int]] = {}
    failed: list[str] = []

    def requests() -> Iterator[Request]:
        last: Any = None
        for device in cohort:
            message = method.broadcast(before.state, device, context)
            if message is not last:
                last, key = message, tuple((path, id(leaf)) for path, leaf in tree.leaves(message))
            if key not in written:  # devices that are sent the same tensors share one frame
                start = time.perf_counter()
                written[key] = (message, *federation.messages.write_down(message, number))
                result.spent("encode", time.perf_counter() - start)
            _, made, size = written[key]
            ack = before.acks.get(device.id, 0)
            yield Request(device=device, round=number, verb="train", frame=made, ack=ack, tensor_bytes=size)

    def replies() -> Iterator[Reply[Any]]:
        for response in engine.exchange(requests(), fleet.deadline_s):
            device = response.request.device
            if response.status == "rejected":
                failed.append(response.reason)
            reply, facts = _admit(federation, before.state, context, response, result)
            if reply is not None:
                digests = str(facts.get("own", "")), str(facts.get("codec_memory", ""))
                acks[device.id] = number if any(digests) else 0
                local_states[device.id], codec[device.id] = digests
                yield reply

    stream, start = replies(), time.perf_counter()
    with meter.metering() as costs:  # of the server's own work: a device's meter is its own
        state = method.aggregate(before.state, stream, context)
        for _ in stream:  # a method that needs no replies need not read them
            pass
    result.spent("exchange and merge", time.perf_counter() - start)
    for part, seconds in costs.seconds.items():
        result.spent(f"server {part}", seconds)
    result.server_notes.update(costs.notes)
    require_one_sound(failed, result.cohort)
    result.seconds = _round_seconds(result, fleet.deadline_s)
    result.checkpoint = Checkpoint(
        round=number,
        state=state,
        acks=acks,
        local_states=local_states,
        codec=codec,
        simulated_seconds=before.simulated_seconds + result.seconds,
    )
    return result


def _admit(
    federation: Federation, state: Any, context: ServerContext, response: Response, result: RoundResult
) -> tuple[Reply[Any] | None, Mapping[str, Any]]:
    """The reply of a response that is to be aggregated, and its facts; the ledger rows of any response."""
    request, device = response.request, response.request.device
    status, reason, reply = response.status, response.reason, None
    facts: Mapping[str, Any] = {}
    up_tensors = 0
    if status == "ok":
        start = time.perf_counter()
        try:
            expected = federation.method.update_spec(state, device, context)
            update, header = federation.messages.read_up(response.frame, request.round, device.id, expected)
            facts, up_tensors = header.facts, header.tensor_bytes
            reply = Reply(device=device, round=request.round, update=update)
            result.notes[device.id] = notes_of(update, facts, device)
        except WireError as error:
            status, reason, reply = "rejected", str(error), None
        result.spent("decode", time.perf_counter() - start)
    for part, seconds in response.parts.items():
        result.spent(f"device {part}", seconds)
    result.rows += ledger_rows(response, up_tensors, status, reason)
    return reply, facts


def _round_seconds(result: RoundResult, deadline_s: float) -> float:
    """The round is over with the slowest device, or with the loss of one; who is late has been waited for in vain."""
    return min(deadline_s, max((row.seconds for row in result.rows), default=0.0))
