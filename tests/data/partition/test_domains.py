"""Domains made by rotation."""

from __future__ import annotations

import pytest
import torch

from potluck.core.errors import DataError
from potluck.data.dataset import Dataset, dataset, split_dataset
from potluck.data.partition.domains import rotate, rotated
from potluck.data.partition.rules import Domains
from potluck.data.shares import share_out
from potluck.data.sources import load


def numbered(count: int, start: int = 0) -> torch.Tensor:
    """Images whose centre, which rotation leaves where it is, tells which they are."""
    return torch.arange(start, start + count, dtype=torch.uint8).reshape(-1, 1, 1, 1).repeat(1, 1, 9, 9)


def centres(x: torch.Tensor) -> list[int]:
    return x[:, 0, 4, 4].tolist()


def split(count: int = 100) -> Dataset:
    return split_dataset("pool", numbered(count), torch.arange(count) % 4)


def official() -> Dataset:
    return dataset("own", numbered(100), torch.arange(100) % 4, numbered(20, 100), torch.arange(20) % 4)


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (1, 3, 9, 9)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_quarter_turns_are_exact_and_counter_clockwise(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    for quarters in range(5):
        turned = rotate(x, 90.0 * quarters)
        assert turned.dtype == dtype
        torch.testing.assert_close(turned, torch.rot90(x, quarters, (2, 3)), atol=2e-2, rtol=0)


def test_an_oblong_image_turns_without_being_stretched() -> None:
    x = torch.zeros(1, 1, 21, 11)
    x[0, 0, 8:13, 5] = 1.0  # a bar of five pixels upright
    lying = rotate(x, 90.0)
    assert lying[0, 0, 10, 3:8].tolist() == pytest.approx([1.0] * 5, abs=1e-4)
    assert float(lying.sum()) == pytest.approx(5.0, abs=1e-3)


def test_a_turn_there_and_back_is_nearly_nothing() -> None:
    x = torch.zeros(1, 1, 28, 28)
    x[0, 0, 8:20, 10:18] = 1.0
    assert float((rotate(rotate(x, 30.0), -30.0) - x).abs().mean()) < 0.02


def test_a_pool_gives_each_domain_its_own_images_and_tests_the_rest_at_each_angle() -> None:
    data = rotated(split(), Domains(rotate=(0, 15, 30), samples=20), seed=0)
    assert data.domain_train is not None
    assert data.domain_test is not None
    assert data.domain_train.bincount().tolist() == [20, 20, 20]
    assert data.domain_test.bincount().tolist() == [40, 40, 40]
    trained, tested = centres(data.x_train), centres(data.x_test)
    assert len(set(trained)) == 60
    assert tested[:40] == tested[40:80] == tested[80:]
    assert set(trained) | set(tested) == set(range(100))
    assert set(trained).isdisjoint(tested)
    assert data.y_train.tolist() == [value % 4 for value in trained]
    assert data.y_test.tolist() == [value % 4 for value in tested]
    assert torch.equal(data.x_train[:20], rotate(data.x_train[:20], 0.0))


def test_the_seed_moves_images_between_domains_but_never_into_the_test() -> None:
    spec = Domains(rotate=(0, 15, 30), samples=20)
    one, same, other = (rotated(split(), spec, seed) for seed in (0, 0, 1))
    assert torch.equal(one.x_train, same.x_train)
    assert not torch.equal(one.x_train, other.x_train)
    assert torch.equal(one.x_test, other.x_test)


def test_test_data_of_the_source_stay_the_test_data() -> None:
    data = rotated(official(), Domains(rotate=(0, 45), samples=50), seed=0)
    assert centres(data.x_test) == list(range(100, 120)) * 2
    assert len(set(centres(data.x_train))) == 100


def test_samples_left_out_takes_what_there_is() -> None:
    data = rotated(official(), Domains(rotate=(0, 45, 90)), seed=0)
    assert len(data.x_train) == 99
    assert len(rotated(split(), Domains(rotate=(0, 45, 90)), seed=0).x_train) == 78


@pytest.mark.parametrize(("data", "most"), [(split(), 33), (official(), 33)])
def test_too_many_samples_are_refused(data: Dataset, most: int) -> None:
    with pytest.raises(DataError, match=f"need 102 training images.*lower samples to {most} or less"):
        rotated(data, Domains(rotate=(0, 1, 2), samples=34), seed=0)


def test_rows_and_data_with_domains_cannot_be_rotated() -> None:
    rows = dataset("rows", torch.rand(8, 5), torch.arange(8) % 2, torch.rand(2, 5), torch.arange(2))
    with pytest.raises(DataError, match="'rows' holds rows"):
        rotated(rows, Domains(rotate=(0, 15)), seed=0)
    once = rotated(split(), Domains(rotate=(0, 15)), seed=0)
    with pytest.raises(DataError, match="carries domains of its own"):
        rotated(once, Domains(rotate=(0, 15)), seed=0)


@pytest.mark.data
def test_rotated_mnist_in_one_line() -> None:
    spec = Domains(rotate=(0, 15, 30, 45, 60, 75), samples=1000)
    shares = share_out(
        load("idx:$POTLUCK_DATA/mnist"),
        spec,
        devices=6,
        seed=0,
        public=0.1,
        server_samples=0,
        normalise=True,
        limit=0,
    )
    assert shares.public is not None
    assert (len(shares.public), len(shares.test)) == (600, 24000)
    assert [len(shard) for shard in shares.train] == [900] * 6
    domains = [shard.d for shard in shares.train]
    assert [set(d.tolist()) for d in domains if d is not None] == [{0}, {1}, {2}, {3}, {4}, {5}]
    assert shares.test.d is not None
    assert shares.test.d.bincount().tolist() == [4000] * 6
