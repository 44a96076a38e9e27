"""Partitions: disjoint, complete where the kind promises it, never empty, a function of the seed alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from potluck.core.errors import DataError
from potluck.data.dataset import Dataset, dataset
from potluck.data.partition.partition import partition
from potluck.data.partition.rules import Column, PartitionSpec, column_of

SPEC: TypeAdapter[PartitionSpec] = TypeAdapter(PartitionSpec)


def made(count: int, classes: int = 4, **columns: torch.Tensor) -> Dataset:
    y = torch.arange(count) % classes
    x = torch.arange(count, dtype=torch.float32).reshape(-1, 1)
    return dataset("made", x, y, x[:classes], y[:classes], classes=classes, **columns)


def shared(data: Dataset, devices: int, seed: int = 0, **options: Any) -> list[list[int]]:
    return [part.tolist() for part in partition(data, SPEC.validate_python(options), devices, seed)]


COMPLETE = [
    {"kind": "iid"},
    {"kind": "dirichlet", "alpha": 5.0, "min_samples": 1},
    {"kind": "size", "skew": "linear"},
    {"kind": "size", "skew": "square"},
]
SKEWED = [
    {"kind": "dirichlet"},
    {"kind": "dirichlet", "alpha": 0.05, "min_samples": 1},
    {"kind": "shards"},
    {"kind": "pathological"},
    {"kind": "size", "skew": "exponential"},
]


@settings(max_examples=25, deadline=None)
@given(
    options=st.sampled_from(COMPLETE + SKEWED),
    count=st.integers(40, 300),
    devices=st.integers(1, 6),
    seed=st.integers(0, 2**31),
)
def test_no_sample_twice_no_device_empty_and_the_same_again(
    options: dict[str, Any], count: int, devices: int, seed: int
) -> None:
    data = made(count)
    try:
        parts = shared(data, devices, seed, **options)
    except DataError:  # a strong skew may be impossible with so few samples; it then says so and ends
        assert options in SKEWED
        return
    rows = [row for part in parts for row in part]
    assert len(parts) == devices
    assert all(parts)
    assert len(set(rows)) == len(rows)
    assert set(rows) <= set(range(count))
    if options in COMPLETE:
        assert len(rows) == count
    assert parts == shared(data, devices, seed, **options)


@pytest.mark.parametrize("options", COMPLETE[:2] + SKEWED[2:4])
def test_another_seed_is_another_partition(options: dict[str, Any]) -> None:
    data = made(200)
    assert shared(data, 4, 0, **options) != shared(data, 4, 1, **options)


def test_the_global_generators_are_neither_used_nor_touched() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = shared(made(100), 4, kind="dirichlet")
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert shared(made(100), 4, kind="dirichlet") == one


def test_only_the_given_rows_are_shared_out() -> None:
    rows = torch.arange(10, 50)
    parts = partition(made(100), SPEC.validate_python({"kind": "iid"}), 4, 0, rows)
    assert sorted(torch.cat(parts).tolist()) == rows.tolist()
    assert all(part.dtype == torch.int64 and part.is_contiguous() for part in parts)


def test_iid_shares_are_equal_and_size_shares_grow() -> None:
    data = made(100)
    assert [len(p) for p in shared(data, 3, kind="iid")] == [34, 33, 33]
    assert [len(p) for p in shared(data, 4, kind="size")] == [10, 20, 30, 40]
    assert [len(p) for p in shared(data, 3, kind="size", skew="square")] == [7, 28, 65]


def test_pathological_devices_see_their_number_of_classes() -> None:
    parts = shared(made(120), 6, kind="pathological", classes=2)
    assert {len({row % 4 for row in part}) for part in parts} == {2}
    assert {row for part in parts for row in part} == set(range(120))


def test_shards_hold_few_classes() -> None:
    parts = shared(made(120), 6, kind="shards", per_device=1)
    assert all(len({row % 4 for row in part}) <= 2 for part in parts)
    assert {len(part) for part in parts} == {20}


def test_a_small_alpha_skews_and_a_large_one_does_not() -> None:
    def spread(alpha: float) -> float:
        parts = shared(made(4000), 4, kind="dirichlet", alpha=alpha, min_samples=1)
        counts = torch.stack([torch.tensor(part).remainder(4).bincount(minlength=4) for part in parts])
        return float((counts / counts.sum(dim=0)).std())

    assert spread(100.0) < 0.05
    assert spread(0.1) > 0.2


def test_dirichlet_keeps_its_minimum() -> None:
    assert min(len(p) for p in shared(made(300), 8, kind="dirichlet", alpha=0.5, min_samples=15)) >= 15


def test_replace_allows_more_devices_than_samples() -> None:
    parts = shared(made(10), 25, kind="iid", replace=True)
    assert {len(part) for part in parts} == {32}
    rows = torch.tensor([row for part in parts for row in part])
    assert rows.bincount().tolist() == [80] * 10, "all samples come again equally often"
    assert shared(made(10), 25, kind="iid", replace=True) == parts
    assert shared(made(200), 4, kind="iid", replace=True) == shared(made(200), 4, kind="iid")


@pytest.mark.parametrize("kind", ["dirichlet", "shards", "pathological", "size"])
def test_replace_goes_with_every_kind_that_draws(kind: str) -> None:
    parts = shared(made(20), 30, kind=kind, replace=True)
    assert all(parts)


def test_natural_ids_stay_together() -> None:
    owner = torch.tensor([0, 1, 2, 3, 4] * 20)
    data = made(100, owner_train=owner)
    parts = shared(data, 5, kind="column", name="user")
    assert [{int(owner[row]) for row in part} for part in parts] == [{0}, {1}, {2}, {3}, {4}]
    parts = shared(data, 2, kind="column", name="user")
    assert [{int(owner[row]) for row in part} for part in parts] == [{0, 2, 4}, {1, 3}]


def test_devices_of_one_domain_share_it() -> None:
    domain = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)
    data = made(100, domain_train=domain, domain_test=torch.zeros(4, dtype=torch.int64))
    parts = shared(data, 7, kind="domains")
    assert [{int(domain[row]) for row in part} for part in parts] == [{0}, {1}, {2}, {0}, {1}, {2}, {0}]
    assert [len(part) for part in parts] == [17, 15, 10, 17, 15, 10, 16]
    assert len({row for part in parts for row in part}) == 100
    assert parts == shared(data, 7, kind="domains")


@pytest.mark.parametrize(
    ("devices", "options", "says"),
    [
        (0, {"kind": "iid"}, "0 devices, expected at least one"),
        (101, {"kind": "iid"}, "101 devices for 100 training samples, so device 100 would get none.*replace = true"),
        (60, {"kind": "dirichlet", "min_samples": 2}, "need 120 training samples, there are 100"),
        (20, {"kind": "dirichlet", "alpha": 0.001, "min_samples": 5}, "raise alpha, lower min_samples"),
        (60, {"kind": "shards"}, "need 120 training samples, there are 100"),
        (5, {"kind": "pathological", "classes": 5}, "classes = 5, but the training data hold 4 classes"),
        (90, {"kind": "pathological", "classes": 4}, "fewer samples than devices"),
        (12, {"kind": "size", "skew": "exponential"}, "device 0 would get none"),
        (900, {"kind": "size", "skew": "exponential", "replace": True}, "device 0 would get none"),
        (4, {"kind": "column"}, "'made' carry no natural ids"),
        (4, {"kind": "domains"}, "'made' carry no domains: set rotate"),
        (4, {"kind": "files", "files": "*.npz"}, "'made' carry no files"),
    ],
)
def test_what_cannot_be_shared_out_says_why(devices: int, options: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=says):
        shared(made(100), devices, **options)


def test_more_devices_than_ids_or_than_samples_of_a_domain() -> None:
    data = made(100, owner_train=torch.arange(100) % 3)
    with pytest.raises(DataError, match="3 different ids for 5 devices, so device 3 would get none"):
        shared(data, 5, kind="column")
    domain = torch.tensor([0] * 98 + [1] * 2)
    data = made(100, domain_train=domain, domain_test=torch.zeros(4, dtype=torch.int64))
    with pytest.raises(DataError, match="leaves device 5 of 6 without a training sample"):
        shared(data, 6, kind="domains")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"kind": "dirichlett"}, "dirichlet"),
        ({"alpha": 0.5}, "kind"),
        ({"kind": "iid", "alpha": 0.5}, "alpha"),
        ({"kind": "dirichlet", "alpha": 0}, "greater than 0"),
        ({"kind": "dirichlet", "alpha": float("nan")}, "finite"),
        ({"kind": "dirichlet", "alpha": float("inf")}, "finite"),
        ({"kind": "dirichlet", "min_samples": 0}, "greater than 0"),
        ({"kind": "shards", "per_device": 0}, "greater than 0"),
        ({"kind": "size", "skew": "cubic"}, "linear"),
        ({"kind": "domains", "rotate": [float("nan")]}, "finite"),
        ({"kind": "domains", "samples": -1}, "greater than or equal to 0"),
        ({"kind": "files"}, "files"),
        ({"kind": "column", "name": ""}, "at least 1 character"),
    ],
)
def test_a_wrong_option_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        SPEC.validate_python(options)


def test_a_spec_is_frozen_and_survives_json() -> None:
    spec = SPEC.validate_python({"kind": "domains", "rotate": [0, 15], "samples": 10})
    assert SPEC.validate_json(SPEC.dump_json(spec)) == spec
    with pytest.raises(ValidationError, match="frozen"):
        spec.kind = "iid"


def test_the_column_that_a_partition_needs() -> None:
    assert column_of(Column(name="user")) == "user"
    assert column_of(SPEC.validate_python({"kind": "iid"})) is None


def test_no_progress_bar_and_no_output(capfd: pytest.CaptureFixture[str]) -> None:
    for options in COMPLETE + SKEWED[:4]:
        shared(made(100), 4, **options)
    shared(made(100, owner_train=torch.arange(100) % 5), 5, kind="column")
    assert capfd.readouterr() == ("", "")
