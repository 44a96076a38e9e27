"""The partition ``files``: each device's data in a file of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from potluck.core.errors import DataError
from potluck.data.dataset import Dataset, dataset
from potluck.data.partition.rules import Files
from potluck.data.shares import Shares, share_out


def source() -> Dataset:
    x, y = torch.zeros(8, 1, 8, 8, dtype=torch.uint8), torch.arange(8) % 2
    return dataset("common", x, y, x[:4] + 200, y[:4])


def file(directory: Path, device: int, count: int = 10, **changes: Any) -> None:
    """Ten black-and-grey images whose value is the device's number."""
    arrays = {
        "x": np.full((count, 8, 8), device, dtype=np.uint8),
        "y": np.arange(count) % 2,
    } | changes
    np.savez(directory / f"d{device}.npz", **{key: value for key, value in arrays.items() if value is not None})


def shared(directory: Path, devices: int = 3, **changes: Any) -> Shares:
    options: dict[str, Any] = {"public": 0.1, "server_samples": 3, "normalise": True, "limit": 0} | changes
    return share_out(source(), Files(files=f"{directory}/d*.npz"), devices=devices, seed=0, **options)


def test_each_device_has_its_file_and_each_gives_to_the_public(tmp_path: Path) -> None:
    for device in range(3):
        file(tmp_path, device, 10 * (device + 1))
    shares = shared(tmp_path)
    assert shares.public is not None
    assert shares.held is not None
    for device, shard in enumerate(shares.train):
        assert set(shard.samples[shard.index].flatten().tolist()) == {device}
    assert [int((shares.public.samples[shares.public.index, 0, 0, 0] == d).sum()) for d in range(3)] == [1, 2, 3]
    assert sum(len(shard) for shard in shares.train) + len(shares.public) + len(shares.held) == 60
    assert set(shares.test.samples.flatten().tolist()) == {200}
    assert shares.tests is None


def test_tests_of_the_devices_replace_those_of_the_source(tmp_path: Path) -> None:
    for device in range(3):
        more = {"x_test": np.full((2 + device, 8, 8), 100 + device, np.uint8), "y_test": np.arange(2 + device) % 2}
        file(tmp_path, device, domain_train=np.full(10, device), domain_test=np.full(2 + device, device), **more)
    shares = shared(tmp_path)
    assert shares.tests is not None
    for device, shard in enumerate(shares.tests):
        assert len(shard) == 2 + device
        assert set(shard.samples[shard.index].flatten().tolist()) == {100 + device}
        assert shard.d is not None
        assert set(shard.d.tolist()) == {device}
    assert len(shares.test) == 9
    assert shares.train[1].d is not None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"y": None}, "d1.npz holds no array 'y_train'"),
        ({"y": np.arange(9) % 2}, "10 samples but 9 labels"),
        ({"y": np.arange(10) % 3}, "label 2 is out of range, expected 0..1 as in the source 'common'"),
        ({"y": np.arange(10) / 2}, "has type float64, expected whole numbers"),
        ({"x": np.zeros((10, 9, 9), np.uint8)}, r"shape \(1, 9, 9\).*expected \(1, 8, 8\)"),
        ({"x": np.zeros((10, 8, 8))}, r"type torch.float32, expected .* torch.uint8"),
        ({"x": np.zeros((0, 8, 8), np.uint8), "y": np.arange(0)}, "is empty"),
        ({"x_test": np.zeros((2, 8, 8), np.uint8), "y_test": np.arange(2)}, "d0.npz holds no x_test, but others do"),
        ({"x_test": np.zeros((2, 8, 8), np.uint8)}, "d0.npz holds no x_test"),
    ],
)
def test_a_file_that_does_not_fit_is_named(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    for device in range(3):
        file(tmp_path, device, **(changes if device == 1 else {}))
    with pytest.raises(DataError, match=says):
        shared(tmp_path)


def test_the_number_of_files_is_the_number_of_devices(tmp_path: Path) -> None:
    file(tmp_path, 0)
    with pytest.raises(DataError, match=r"1 files match .*/d\*.npz' for 3 devices"):
        shared(tmp_path)


def test_domains_must_be_one_for_each_sample(tmp_path: Path) -> None:
    file(tmp_path, 0, domain=np.arange(9))
    with pytest.raises(DataError, match="10 samples but 9 domains"):
        shared(tmp_path, devices=1)


def test_limit_and_files_do_not_go_together(tmp_path: Path) -> None:
    file(tmp_path, 0)
    with pytest.raises(DataError, match="limit = 5 does not go with partition 'files'"):
        shared(tmp_path, devices=1, limit=5)


def test_a_public_share_that_empties_a_file_names_its_device(tmp_path: Path) -> None:
    file(tmp_path, 0, 1)
    file(tmp_path, 1, 40)
    with pytest.raises(DataError, match="leaves device 0 of 2 without"):
        shared(tmp_path, devices=2, public=0.9)
