"""Devices, links and cohorts: closed forms, and draws that depend on the seed and the round alone."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from potluck.core import seeds
from potluck.core.types import Device
from potluck.fleet import link
from potluck.fleet.cohort import Fleet
from potluck.fleet.devices import Tier, by_strength, make_devices


def tier(name: str = "phone", devices: int = 2, gflops: float = 5.0) -> Tier:
    return Tier(
        name=name,
        devices=devices,
        uplink_mbps=1.0,
        downlink_mbps=8.0,
        gflops=gflops,
        memory_mb=512.0,
        latency_ms=50.0,
        availability=1.0,
    )


def fleet(devices: int, participation: float = 1.0, availability: float = 1.0, seed: int = 0) -> Fleet:
    return Fleet(
        devices=make_devices([tier(devices=devices)]),
        availability={"phone": availability},
        participation=participation,
        deadline_s=1.0,
        seed=seed,
    )


def ids(devices: list[Device]) -> list[int]:
    return [device.id for device in devices]


def test_devices_are_numbered_through_the_tiers_in_plain_units() -> None:
    made = make_devices([tier("phone", 2), tier("laptop", 3, gflops=50.0)])
    assert ids(list(made)) == [0, 1, 2, 3, 4]
    assert [device.tier for device in made] == ["phone", "phone", "laptop", "laptop", "laptop"]
    assert made[0] == Device(
        id=0,
        tier="phone",
        memory_bytes=512_000_000,
        flops_per_s=5e9,
        uplink_bytes_per_s=125_000.0,
        downlink_bytes_per_s=1_000_000.0,
        latency_s=0.05,
    )
    assert made[4].flops_per_s == 50e9


def test_tiers_by_strength_keep_the_file_order_of_equals() -> None:
    assert by_strength([tier("b", gflops=2.0), tier("a", gflops=2.0), tier("c", gflops=1.0)]) == ["c", "b", "a"]


def test_seconds_in_closed_form() -> None:
    device = make_devices([tier()])[0]
    assert link.up_seconds(device, 1_000_000) == pytest.approx(0.05 + 8.0)
    assert link.down_seconds(device, 1_000_000) == pytest.approx(0.05 + 1.0)
    assert link.up_seconds(device, 0) == 0.05
    assert link.work_seconds(device, 10e9) == pytest.approx(2.0)
    assert link.work_seconds(device, 0.0) == 0.0


@given(st.integers(1, 60), st.floats(0.01, 1.0), st.integers(0, 1000), st.integers(1, 50))
def test_a_cohort_has_its_share_and_no_device_twice(devices: int, share: float, seed: int, round: int) -> None:
    drawn = ids(fleet(devices, share, seed=seed).cohort(round))
    assert len(drawn) == max(1, math.floor(share * devices + 0.5))
    assert drawn == sorted(set(drawn))
    assert set(drawn) <= set(range(devices))


@pytest.mark.parametrize(
    ("devices", "share", "wanted"),
    [(10, 1.0, 10), (10, 0.25, 3), (10, 0.35, 4), (10, 0.24, 2), (10, 0.01, 1), (3, 0.5, 2), (1, 0.1, 1), (7, 0.5, 4)],
)
def test_the_share_is_rounded_half_up_to_one_at_least(devices: int, share: float, wanted: int) -> None:
    assert len(fleet(devices, share).cohort(1)) == wanted


def test_a_cohort_depends_on_the_seed_and_the_round_alone() -> None:
    def drawn(rounds: list[int], seed: int = 0) -> dict[int, list[int]]:
        found = fleet(40, 0.3, 0.8, seed)
        return {round: ids(found.cohort(round)) for round in rounds}

    forwards = drawn([1, 2, 3])
    torch.manual_seed(99)
    torch.rand(7)
    assert drawn([3, 1, 2]) == forwards
    assert forwards[1] != forwards[2]
    assert drawn([1, 2, 3], seed=1) != forwards


def test_every_device_is_drawn_equally_often() -> None:
    found, rounds, counts = fleet(20, 0.3), 1_000, torch.zeros(20)
    for round in range(rounds):
        counts[ids(found.cohort(round))] += 1
    deviation = math.sqrt(rounds * 0.3 * 0.7)
    assert float((counts - 0.3 * rounds).abs().max()) < 4 * deviation


@pytest.mark.parametrize("availability", [0.1, 0.5, 0.9])
def test_devices_are_there_as_often_as_their_tier_says(availability: float) -> None:
    found, rounds, counts = fleet(20, availability=availability), 1_000, torch.zeros(20)
    for round in range(rounds):
        counts[ids(found.present(round))] += 1
    deviation = math.sqrt(rounds * availability * (1 - availability))
    assert float((counts - availability * rounds).abs().max()) < 4.5 * deviation
    pairs = sum(len(found.present(round)) for round in range(rounds)) / (20 * rounds)
    assert abs(pairs - availability) < 4 * deviation / rounds / math.sqrt(20)


def test_availability_is_by_tier_and_does_not_disturb_the_others() -> None:
    devices = make_devices([tier("phone", 5), tier("laptop", 5)])
    common = {"devices": devices, "participation": 1.0, "deadline_s": 1.0, "seed": 3}
    one = Fleet(availability={"phone": 0.5, "laptop": 1.0}, **common)  # type: ignore[arg-type]
    other = Fleet(availability={"phone": 0.5, "laptop": 0.2}, **common)  # type: ignore[arg-type]
    for round in range(50):
        assert set(range(5, 10)) <= set(ids(one.present(round)))
        assert [k for k in ids(one.present(round)) if k < 5] == [k for k in ids(other.present(round)) if k < 5]


def test_the_cohort_is_of_those_that_are_there_and_may_be_empty() -> None:
    found = fleet(4, 0.5, 0.3)
    sizes = set()
    for round in range(100):
        there, drawn = ids(found.present(round)), ids(found.cohort(round))
        assert set(drawn) <= set(there)
        assert len(drawn) == min(2, len(there))
        sizes.add(len(drawn))
    assert sizes == {0, 1, 2}


def test_full_participation_takes_everybody() -> None:
    assert ids(fleet(9).cohort(5)) == list(range(9))


def test_availability_and_cohort_are_drawn_apart() -> None:
    draw = torch.rand(30, generator=seeds.generator(0, 1, seeds.SERVER, "availability"))
    assert ids(fleet(30, availability=0.6).present(1)) == [k for k in range(30) if float(draw[k]) < 0.6]
