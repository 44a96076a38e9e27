"""Shares as files: what is written reads back bit for bit, and what is damaged is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from potluck.core.errors import DataError
from potluck.core.types import Shard, TargetFacts
from potluck.data.partition.rules import Domains, Files, Iid
from potluck.data.shares import Shares, share_out
from potluck.data.sources import load
from potluck.deploy.split import content_digest, read_shard, write_split


def shares(source: str = "synthetic:60,3,9,8", spec: Any = None) -> Shares:
    return share_out(
        load(source),
        spec or Iid(),
        devices=3,
        seed=0,
        public=0.1,
        server_samples=5,
        normalise=True,
        limit=0,
    )


def same(one: Shard, two: Shard) -> bool:
    """Whether a net would see the same, bit for bit."""
    domains = (one.d is None) == (two.d is None) and (one.d is None or two.d is None or torch.equal(one.d, two.d))
    return (
        domains and torch.equal(one.x, two.x) and torch.equal(one.y, two.y) and one.facts.outputs == two.facts.outputs
    )


@pytest.mark.parametrize(
    ("source", "spec"),
    [
        ("synthetic:60,3,9,8", Iid()),
        ("synthetic:60,3,5,3", Iid()),
        ("digits", Iid()),
        ("synthetic:60,1,8,8", Domains(rotate=(0, 45, 90))),
    ],
)
def test_what_is_written_reads_back_bit_for_bit(tmp_path: Path, source: str, spec: Any) -> None:
    made = shares(source, spec)
    assert made.public is not None
    assert made.held is not None
    manifest = write_split(made, tmp_path / "split")
    assert manifest == json.loads((tmp_path / "split" / "manifest.json").read_text())
    files = {entry["file"]: entry for entry in manifest["shares"]}
    names = [f"device-{i:03d}.npz" for i in range(3)]
    expected = dict(
        zip(
            [*names, "test.npz", "public.npz", "server.npz"],
            [*made.train, made.test, made.public, made.held],
            strict=True,
        )
    )
    assert files.keys() == expected.keys()
    for name, shard in expected.items():
        read = read_shard(tmp_path / "split" / name, digest=files[name]["sha256"])
        assert same(read, shard)
        assert content_digest(read) == content_digest(shard) == files[name]["sha256"]
        assert files[name]["samples"] == len(shard)
        assert files[name]["classes"] == shard.y.bincount(minlength=10).tolist()
    assert same(read_shard(f"npz:{tmp_path}/split/public.npz", like=made.train[0]), made.public)


def test_the_files_of_a_split_serve_as_a_partition(tmp_path: Path) -> None:
    made = shares()
    write_split(made, tmp_path)
    spec = Files(files=f"{tmp_path}/device-*.npz")
    again = share_out(
        load("synthetic:60,3,9,8"), spec, devices=3, seed=0, public=0, server_samples=0, normalise=False, limit=0
    )
    for one, two in zip(made.train, again.train, strict=True):
        assert torch.equal(one.samples[one.index], two.samples[two.index])


def test_the_devices_own_tests_are_written_too(tmp_path: Path) -> None:
    made = shares()
    own = tuple(replace(made.test, index=torch.tensor([i, i + 1])) for i in range(3))
    write_split(replace(made, tests=own, public=None, held=None), tmp_path)
    assert same(read_shard(tmp_path / "test-002.npz"), own[2])
    assert not (tmp_path / "public.npz").exists()


def test_the_digest_tells_any_change() -> None:
    shard = shares().train[0]
    x = shard.samples.clone()
    x[shard.index[3], 0, 0, 0] ^= 1
    y = shard.targets.clone()
    y[shard.index[3]] = (y[shard.index[3]] + 1) % 10
    others = [
        replace(shard, samples=x),
        replace(shard, targets=y),
        replace(shard, index=shard.index.flip(0)),
        replace(shard, mean=shard.mean + 1),
        replace(shard, deviation=shard.deviation + 1),
        replace(shard, facts=TargetFacts(outputs=11)),
        replace(shard, domains=torch.zeros_like(shard.targets)),
    ]
    assert len({content_digest(other) for other in (shard, *others)}) == 8
    assert content_digest(shard.take(torch.arange(len(shard)))) == content_digest(shard)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("keep")
    with pytest.raises(DataError, match="is not empty"):
        write_split(shares(), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["precious"]
    with pytest.raises(DataError, match="cannot be written"):
        write_split(shares(), tmp_path / "precious" / "below")


def test_a_file_of_ones_own_takes_its_normalisation_from_another(tmp_path: Path) -> None:
    like = shares().train[0]
    draw = np.random.default_rng(0)
    arrays = {
        "x_train": draw.integers(0, 256, (6, 9, 8, 3), dtype=np.uint8),
        "y_train": np.arange(6),
        "x_test": draw.integers(0, 256, (2, 9, 8, 3), dtype=np.uint8),
        "y_test": np.arange(2),
    }
    np.savez(tmp_path / "own.npz", **arrays)
    train = read_shard(tmp_path / "own.npz", like=like)
    test = read_shard(tmp_path / "own.npz", part="test", like=like)
    assert (train.inputs.shape, len(train), len(test), train.facts.outputs) == ((3, 9, 8), 6, 2, 10)
    assert torch.equal(test.mean, like.mean)
    with pytest.raises(DataError, match="says nothing of mean, deviation and classes"):
        read_shard(tmp_path / "own.npz")


def change(path: Path, **changes: Any) -> Path:
    with np.load(path) as found:
        arrays = dict(found) | changes
    other = path.with_name("changed.npz")
    np.savez(other, **{key: value for key, value in arrays.items() if value is not None})
    return other


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"x": None}, "no array 'x_train'"),
        ({"y": None}, "no array 'y_train'"),
        ({"mean": None}, "do not belong together"),
        ({"classes": np.array([10])}, "do not belong together"),
        ({"classes": np.array(2)}, "out of range, expected 0..1"),
        ({"mean": np.zeros(3, np.float32)}, r"mean and deviation are \(3,\)"),
        ({"deviation": np.zeros((3, 1, 1), np.float32)}, "deviation positive"),
        ({"deviation": np.full((3, 1, 1), np.inf, np.float32)}, "all finite"),
        ({"y": np.arange(3)}, "samples but 3 labels"),
        ({"domain": np.arange(3)}, "samples but 3 domains"),
        ({"y": -np.ones(17, np.int64)}, "negative label -1"),
    ],
)
def test_a_damaged_share_is_refused(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    write_split(shares(), tmp_path)
    with pytest.raises(DataError, match=says):
        read_shard(change(tmp_path / "device-000.npz", **changes))


def test_a_share_that_is_another_is_refused(tmp_path: Path) -> None:
    made = shares()
    manifest = write_split(made, tmp_path)
    first, second = (entry["sha256"] for entry in manifest["shares"][:2])
    with pytest.raises(DataError, match=f"the content is {first}, expected {second}"):
        read_shard(tmp_path / "device-000.npz", digest=second)
    with pytest.raises(DataError, match="it is of another experiment"):
        read_shard(tmp_path / "device-000.npz", like=shares("digits").train[0])
    with pytest.raises(DataError, match="cannot be read as npz"):
        read_shard(tmp_path / "device-999.npz")


def test_a_table_of_a_devices_own_is_told_that_it_does_not_work_yet() -> None:
    with pytest.raises(DataError, match="a device cannot bring a csv file of its own yet: split the data"):
        read_shard("csv:mine.csv")
