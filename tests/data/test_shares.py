"""Shares: what is set aside, what is left to the devices, and the normalisation they have in common."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from potluck.core.errors import DataError
from potluck.data.dataset import Dataset, dataset, stratified
from potluck.data.partition.rules import PartitionSpec
from potluck.data.shares import Shares, share_out
from potluck.data.sources import load
from potluck.data.statistics import moments

SPEC: TypeAdapter[PartitionSpec] = TypeAdapter(PartitionSpec)
IID = {"kind": "iid"}


def made(count: int, classes: int = 4, **columns: torch.Tensor) -> Dataset:
    y = torch.arange(count) % classes
    x = torch.arange(count, dtype=torch.float32).reshape(-1, 1)
    return dataset("made", x, y, x[:classes], y[:classes], classes=classes, **columns)


def shared(data: Dataset, partition: dict[str, Any] | None = None, **changes: Any) -> Shares:
    options: dict[str, Any] = {
        "devices": 4,
        "seed": 0,
        "public": 0.1,
        "server_samples": 8,
        "normalise": True,
        "limit": 0,
    } | changes
    return share_out(data, SPEC.validate_python(partition or IID), **options)


def rows(shares: Shares) -> list[int]:
    """The training samples of all shares, one after the other."""
    held = [shard for shard in (shares.public, shares.held) if shard is not None]
    return [row for shard in (*shares.train, *held) for row in shard.index.tolist()]


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(40, 200),
    public=st.sampled_from([0.0, 0.001, 0.05, 0.3]),
    server=st.integers(0, 12),
    devices=st.integers(1, 5),
    seed=st.integers(0, 2**31),
)
def test_shares_are_disjoint_complete_and_reproducible(
    count: int, public: float, server: int, devices: int, seed: int
) -> None:
    data, options = made(count), {"public": public, "server_samples": server, "devices": devices, "seed": seed}
    shares = shared(data, **options)
    assert sorted(rows(shares)) == list(range(count))
    assert (0 if shares.public is None else len(shares.public)) == (max(1, round(public * count)) if public else 0)
    assert (0 if shares.held is None else len(shares.held)) == server
    assert rows(shared(data, **options)) == rows(shares)


def test_another_seed_sets_others_aside() -> None:
    assert rows(shared(made(100), seed=0)) != rows(shared(made(100), seed=1))


def test_the_public_share_is_the_same_whatever_the_partition_and_the_server_take() -> None:
    one, two = shared(made(100)), shared(made(100), {"kind": "dirichlet"}, server_samples=0, devices=3)
    assert one.public is not None
    assert two.public is not None
    assert torch.equal(one.public.index, two.public.index)


def test_what_is_set_aside_holds_each_class_and_domain_in_its_share() -> None:
    domain = torch.arange(400) // 100
    shares = shared(made(400, domain_train=domain), {"kind": "domains"}, server_samples=32)
    for shard, each in ((shares.public, 10), (shares.held, 8)):
        assert shard is not None
        assert shard.d is not None
        assert shard.y.bincount().tolist() == [each] * 4
        assert shard.d.bincount().tolist() == [each] * 4


@settings(max_examples=50, deadline=None)
@given(keys=st.lists(st.integers(0, 5), min_size=1, max_size=60), data=st.data())
def test_a_stratified_choice_is_proportional(keys: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(0, len(keys)))
    column = torch.tensor(keys)
    picked = stratified(column, count, torch.Generator().manual_seed(0))
    assert len(set(picked.tolist())) == count
    for key in set(keys):
        exact = count * keys.count(key) / len(keys)
        assert abs(int((column[picked] == key).sum()) - exact) <= 1.0


def test_limit_takes_the_first_samples_before_all_else() -> None:
    shares = shared(made(100), limit=40)
    assert sorted(rows(shares)) == list(range(40))
    assert shares.public is not None
    assert len(shares.public) == 4
    assert float(shares.test.mean) == pytest.approx(19.5)
    assert len(shares.train[0].samples) == 40
    assert len(shared(made(100), limit=5000).train[0].samples) == 100


def test_shards_hold_the_same_tensors_and_are_fit_for_sharing() -> None:
    data = made(100)
    shares = shared(data)
    assert shares.public is not None
    assert shares.held is not None
    for shard in (*shares.train, shares.public, shares.held):
        assert shard.samples is data.x_train
        assert shard.targets is data.y_train
    for shard in (*shares.train, shares.public, shares.held, shares.test):
        for tensor in (shard.samples, shard.targets, shard.index, shard.mean, shard.deviation):
            assert tensor.is_contiguous()
        assert (shard.index.dtype, shard.mean.dtype, shard.deviation.dtype) == (
            torch.int64,
            torch.float32,
            torch.float32,
        )
    assert len(shares.test) == 4
    assert shares.tests is None


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_normalised_training_data_have_mean_zero_and_deviation_one(dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (50, 3, 8, 9), generator=draw)
    x[:, 1] //= 4
    data = dataset("images", x.to(dtype), torch.arange(50) % 2, x[:2].to(dtype), torch.arange(2))
    shares = shared(data, devices=1, public=0.0, server_samples=0)
    whole = shares.train[0].x
    assert shares.train[0].mean.shape == (3, 1, 1)
    torch.testing.assert_close(whole.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(whole.std(dim=(0, 2, 3), correction=0), torch.ones(3), atol=1e-5, rtol=0)


def test_bytes_and_floats_have_the_same_moments() -> None:
    x = torch.randint(0, 256, (5000, 2, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for one, two in zip(moments(x), moments(x.to(torch.float32) / 255), strict=True):
        torch.testing.assert_close(one, two, atol=1e-7, rtol=1e-6)


def test_a_feature_that_never_varies_is_not_divided_by_zero() -> None:
    x = torch.tensor([[1.0, 0.3, 0.0, 1e-9], [3.0, 0.3, 0.0, 3e-9]])
    mean, deviation = moments(x)
    torch.testing.assert_close(mean, torch.tensor([2.0, 0.3, 0.0, 2e-9]))
    torch.testing.assert_close(deviation, torch.tensor([1.0, 1.0, 1.0, 1e-9]))
    mean, deviation = moments(torch.full((4, 1, 8, 8), 255, dtype=torch.uint8))
    assert (float(mean), float(deviation)) == (1.0, 1.0)


def test_without_normalisation_values_stay() -> None:
    shares = shared(made(100), normalise=False)
    torch.testing.assert_close(shares.test.x, torch.arange(4, dtype=torch.float32).reshape(-1, 1))
    images = shared(load("synthetic:100,3,8,8"), normalise=False)
    assert images.test.mean.shape == (3, 1, 1)
    assert 0.0 <= float(images.test.x.min()) < float(images.test.x.max()) <= 1.0


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"public": 1.0}, "public = 1.0, expected a share"),
        ({"public": -0.1}, "public = -0.1"),
        ({"public": float("nan")}, "public = nan"),
        ({"server_samples": -1}, "server_samples = -1"),
        ({"limit": -1}, "limit = -1"),
        ({"public": 0.9, "server_samples": 10}, "take 100 of 100 training samples, so the devices would have none"),
        ({"limit": 1}, "leaves only class 0 of 'made'"),
        ({"public": 0.9, "server_samples": 8}, "4 devices for 2 training samples"),
    ],
)
def test_shares_that_cannot_be_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=says):
        shared(made(100), **changes)


@pytest.mark.data
def test_the_moments_of_real_images_are_the_known_ones() -> None:
    mean, deviation = moments(load("npz:$POTLUCK_DATA/cifar10-small.npz").x_train)
    torch.testing.assert_close(mean.flatten(), torch.tensor([0.4914, 0.4822, 0.4465]), atol=3e-3, rtol=0)
    torch.testing.assert_close(deviation.flatten(), torch.tensor([0.2470, 0.2435, 0.2616]), atol=3e-3, rtol=0)


@pytest.mark.data
def test_fashion_mnist_among_a_hundred_devices() -> None:
    data = load("idx:$POTLUCK_DATA/fashion-mnist")
    shares = shared(data, {"kind": "dirichlet", "alpha": 0.5}, devices=100, public=0.05, server_samples=500)
    assert sorted(rows(shares)) == list(range(60000))
    assert shares.train[99].samples is data.x_train
