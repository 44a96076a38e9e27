"""The meter: what it adds up, that meters nest, and that without one nothing happens."""

from __future__ import annotations

import threading

import pytest

from potluck.core import meter


def test_costs_add_up_and_the_last_note_wins() -> None:
    with meter.metering() as costs:
        meter.add_flops(3)
        meter.add_flops(4.5)
        with meter.part("svd"):
            pass
        first = costs.seconds["svd"]
        with meter.part("svd"):
            pass
        meter.note("loss", 1)
        meter.note("loss", 2)
    assert costs.flops == 7.5
    assert costs.seconds.keys() == {"svd"}
    assert costs.seconds["svd"] > first >= 0
    assert costs.notes == {"loss": 2.0}


def test_an_inner_meter_has_its_own_costs() -> None:
    with meter.metering() as outer:
        meter.add_flops(1)
        with meter.metering() as inner:
            meter.add_flops(10)
        meter.add_flops(2)
    assert (outer.flops, inner.flops) == (3, 10)


def test_without_a_meter_nothing_happens() -> None:
    meter.add_flops(1)
    meter.note("loss", 1)
    with meter.part("svd"):
        pass
    with meter.metering() as costs:
        pass
    assert (costs.flops, costs.seconds, costs.notes) == (0.0, {}, {})


def test_a_block_that_fails_still_closes_its_meter_and_its_part() -> None:
    with pytest.raises(RuntimeError), meter.metering() as costs, meter.part("work"):  # noqa: PT012
        meter.add_flops(1)
        raise RuntimeError
    meter.add_flops(100)
    assert costs.flops == 1
    assert costs.seconds["work"] > 0


def test_threads_do_not_share_a_meter() -> None:
    with meter.metering() as costs:
        other = threading.Thread(target=meter.add_flops, args=(5,))
        other.start()
        other.join()
    assert costs.flops == 0
