"""The pool of workers: order, size, failures."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.engines.local.echo import make_echo

from potluck.core.errors import EngineError, TrainingError
from potluck.core.types import Device
from potluck.engines.contract import Request, Response
from potluck.engines.local.pool import AHEAD, MOST_TOGETHER, Pool
from potluck.engines.local.worker import SMALL_BYTES

DEVICE = Device(
    id=3,
    tier="phone",
    memory_bytes=1,
    flops_per_s=1.0,
    uplink_bytes_per_s=1.0,
    downlink_bytes_per_s=1.0,
    latency_s=0.0,
)
LONG = 3 * 2**20


def request(number: int, frame: bytes, ack: int = 0) -> Request:
    return Request(device=DEVICE, round=number, verb="train", frame=frame, ack=ack)


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with Pool(make_echo, (), workers=2, threads=1) as made:  # type: ignore[arg-type]
        yield made


@pytest.mark.parametrize("sizes", [[0], [10], [LONG], [0, LONG, 7, 2**16, 2**16 + 1]])
@pytest.mark.timeout(60)
def test_replies_come_in_order_whatever_their_size(pool: Pool, sizes: list[int]) -> None:
    """The same frame again and again, and another each time: nobody waits for ever for the other to read."""
    frames = [bytes([number % 251]) * sizes[number % len(sizes)] for number in range(40)]
    for sent in (frames, frames[:1] * 40):
        found = list(pool.exchange((request(number, frame) for number, frame in enumerate(sent)), None))
        assert [response.request.round for response in found] == list(range(40))
        assert all(bytes(response.frame) == frame * 2 for response, frame in zip(found, sent, strict=True))


@pytest.mark.parametrize(("size", "together"), [(SMALL_BYTES, MOST_TOGETHER), (SMALL_BYTES + 1, 1)])
def test_orders_are_drawn_only_a_little_ahead(pool: Pool, size: int, together: int) -> None:
    drawn: list[int] = []
    frame = b"x" * size

    def requests() -> Iterator[Request]:
        for number in range(200):
            drawn.append(number)
            yield request(number, frame)

    for taken, response in enumerate(pool.exchange(requests(), None)):
        assert response.request.round == taken
        assert bytes(response.frame) == frame * 2
        assert len(drawn) <= taken + 2 + AHEAD * 2 * together


def test_an_exchange_that_is_given_up_does_not_disturb_the_next(pool: Pool) -> None:
    given_up = pool.exchange((request(number, b"a" * LONG) for number in range(9)), None)
    next(given_up)
    given_up.close()  # type: ignore[attr-defined]
    found: list[Response] = list(pool.exchange((request(number, b"b") for number in range(9)), None))
    assert [(response.seconds, bytes(response.frame)) for response in found] == [(float(n), b"bb") for n in range(9)]


def test_late_is_told_by_the_deadline(pool: Pool) -> None:
    found = pool.exchange((request(number, b"a") for number in (1, 9)), 5.0)
    assert [response.status for response in found] == ["ok", "late"]


def test_an_error_keeps_its_kind_and_names_the_device(pool: Pool) -> None:
    exchanged = pool.exchange((request(number, b"a", ack=int(number == 2)) for number in range(6)), None)
    assert [next(exchanged).request.round, next(exchanged).request.round] == [0, 1]
    with pytest.raises(TrainingError, match="device 3, round 2: no"):
        next(exchanged)


@pytest.mark.parametrize("size", [1, LONG])
def test_a_dead_worker_is_told_with_its_exit_code(size: int) -> None:
    with Pool(make_echo, (), workers=1, threads=1) as doomed:  # type: ignore[arg-type]
        with pytest.raises(EngineError, match="exit code 7 while device 3 was training"):
            list(doomed.exchange((request(number, b"a" * size, ack=2 * int(number == 1)) for number in range(6)), None))
        assert len(doomed.pids) == 1
