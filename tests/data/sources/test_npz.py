"""One's own arrays: the layouts that are understood, and each way in which they can be wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from potluck.core.errors import DataError
from potluck.data.source import Reading
from potluck.data.sources import load
from potluck.data.sources.npz import images

Arrays = dict[str, Any]


def good(count: int = 12, shape: tuple[int, ...] = (3, 9, 8)) -> Arrays:
    draw = np.random.default_rng(0)
    return {
        "x_train": draw.integers(0, 256, (count, *shape), dtype=np.uint8),
        "y_train": np.arange(count) % 3,
        "x_test": draw.integers(0, 256, (6, *shape), dtype=np.uint8),
        "y_test": np.arange(6) % 3,
    }


def saved(tmp_path: Path, arrays: Arrays) -> str:
    path = tmp_path / "data.npz"
    np.savez(path, **arrays)
    return f"npz:{path}"


def test_the_arrays_come_back(tmp_path: Path) -> None:
    arrays = good()
    data = load(saved(tmp_path, arrays))
    assert np.array_equal(data.x_train.numpy(), arrays["x_train"])
    assert np.array_equal(data.y_test.numpy(), arrays["y_test"])
    assert data.y_train.dtype == torch.int64
    assert (data.facts.outputs, data.own_test, data.owner_train, data.domain_train) == (3, True, None, None)


@pytest.mark.parametrize(
    ("stored", "read"),
    [
        ((9, 8), (1, 9, 8)),
        ((9, 8, 3), (3, 9, 8)),
        ((3, 9, 8), (3, 9, 8)),
        ((8, 8, 1), (1, 8, 8)),
        ((1, 8, 8), (1, 8, 8)),
        ((16, 8, 8), (16, 8, 8)),
        ((8, 8, 16), (16, 8, 8)),
        ((3, 9, 3), (3, 9, 3)),
        ((5,), (5,)),
    ],
)
def test_layouts(stored: tuple[int, ...], read: tuple[int, ...]) -> None:
    assert images(np.zeros((2, *stored)), "x").shape == (2, *read)


def test_channels_last_is_moved_not_reshaped(tmp_path: Path) -> None:
    arrays = good(shape=(9, 8, 3))
    data = load(saved(tmp_path, arrays))
    assert np.array_equal(data.x_train[5, 2].numpy(), arrays["x_train"][5, :, :, 2])
    assert data.x_train.is_contiguous()


@pytest.mark.parametrize("dtype", ["float64", "float16", "int32", "bool"])
def test_other_numbers_become_float32_as_they_stand(tmp_path: Path, dtype: str) -> None:
    arrays = good()
    arrays |= {key: (arrays[key] // 2).astype(dtype) for key in ("x_train", "x_test")}
    data = load(saved(tmp_path, arrays))
    assert data.x_train.dtype == torch.float32
    assert np.array_equal(data.x_train.numpy(), arrays["x_train"].astype(np.float32))


def test_ids_are_numbered_in_their_order(tmp_path: Path) -> None:
    who = np.array(["zoe", "ann", "bob"] * 4)
    source = saved(tmp_path, good() | {"id_train": who, "user": np.arange(12) % 2, "device_train": np.arange(12) % 4})
    assert load(source).owner_train is not None
    assert load(source).owner_train.tolist() == [2, 0, 1] * 4  # type: ignore[union-attr]
    assert load(source, Reading(column="user")).owner_train.tolist() == [0, 1] * 6  # type: ignore[union-attr]
    assert load(source, Reading(column="device")).owner_train.tolist() == [0, 1, 2, 3] * 3  # type: ignore[union-attr]
    with pytest.raises(DataError, match=r"no column 'writer'.*columns: device_train, id_train, user"):
        load(source, Reading(column="writer"))


def test_domains_and_names_are_kept(tmp_path: Path) -> None:
    extra = {"domain_train": np.arange(12) % 2, "domain_test": np.arange(6) % 2, "class_names": np.array(list("abcd"))}
    data = load(saved(tmp_path, good() | extra))
    assert data.domain_train is not None
    assert data.domain_test is not None
    assert data.domain_train.tolist() == [0, 1] * 6
    assert data.facts.names == ("a", "b", "c", "d")
    assert data.facts.outputs == 4


def test_without_test_arrays_a_fifth_is_held_out(tmp_path: Path) -> None:
    arrays = good(30)
    only = {key: arrays[key] for key in ("x_train", "y_train")} | {"id_train": np.arange(30)}
    data = load(saved(tmp_path, only))
    assert (len(data.x_train), len(data.x_test), data.own_test) == (24, 6, False)
    assert data.owner_train is not None
    assert np.array_equal(data.x_train.numpy(), arrays["x_train"][data.owner_train.numpy()])
    renamed = load(saved(tmp_path, {"x": arrays["x_train"], "y": arrays["y_train"]}))
    assert torch.equal(renamed.x_train, data.x_train)


def nan(arrays: Arrays) -> Arrays:
    x = arrays["x_train"].astype(np.float32)
    x[3, 0, 0, 0] = np.nan
    return arrays | {"x_train": x, "x_test": arrays["x_test"].astype(np.float32)}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda a: {k: v for k, v in a.items() if k != "y_train"}, "no array 'y_train', only x_test, x_train, y_test"),
        (lambda a: {k: v for k, v in a.items() if k != "y_test"}, "no array 'y_test'"),
        (lambda a: a | {"y_train": a["y_train"][:-1]}, "12 training samples but 11 labels"),
        (lambda a: a | {"y_test": a["y_test"][:-1]}, "6 test samples but 5 labels"),
        (lambda a: a | {"y_train": a["y_train"] * 1.0}, "holds 3 whole numbers, which may be classes or numbers"),
        (lambda a: a | {"y_train": a["y_train"] * 1j}, "expected numbers, or text"),
        (lambda a: a | {"y_train": np.eye(3)[a["y_train"]]}, "expected the same"),
        (lambda a: a | {"y_train": np.zeros((12, 2, 2))}, "one label per sample"),
        (lambda a: a | {"y_train": a["y_train"] * 0}, "all training samples are of class 0"),
        (lambda a: a | {"y_train": np.arange(12) * 1000}, "holds 14 different labels among 12 samples"),
        (lambda a: a | {"y_test": a["y_test"] + 1}, "label 3, which is out of range: expected 0..2"),
        (lambda a: a | {"class_names": np.array(["a", "b"])}, "label 2, which is out of range: expected 0..1"),
        (lambda a: a | {"y_train": np.full(12, 2**63, dtype=np.uint64)}, "all training samples are of class 3"),
        (nan, "1 values that are not finite"),
        (lambda a: a | {"x_train": a["x_train"] * 1e300, "x_test": a["x_test"] * 1.0}, "not finite"),
        (lambda a: a | {"x_train": a["x_train"].astype(str)}, "expected numbers"),
        (lambda a: a | {"x_train": a["x_train"] * 1j}, "expected numbers"),
        (lambda a: a | {"x_train": a["x_train"].ravel()}, "expected .N, H, W."),
        (lambda a: a | {"x_train": a["x_train"][:0], "y_train": a["y_train"][:0]}, "is empty"),
        (lambda a: a | {"x_test": a["x_test"][:, :, :8]}, "expected the same"),
        (lambda a: a | {"x_test": a["x_test"] / 255}, "expected one type for both"),
        (lambda a: a | {"domain_train": np.arange(5)}, "12 training samples but 5 domains"),
        (lambda a: a | {"domain_train": -np.arange(12)}, "negative label -11"),
        (lambda a: a | {"id_train": np.arange(5)}, "12 training samples but 5 ids"),
        (lambda a: a | {"id_train": np.arange(12) / 2}, "one number or text a sample"),
        (lambda a: a | {"x_train": np.array([{"a": 1}] * 12, dtype=object)}, "Python objects"),
        (lambda a: {"x_train": a["x_train"][:4], "y_train": np.arange(4)}, "expected at least 5"),
    ],
)
def test_damaged_arrays_are_refused(tmp_path: Path, change: Any, says: str) -> None:
    with pytest.raises(DataError, match=says):
        load(saved(tmp_path, change(good())))


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez_compressed(path, **good())
    whole = path.read_bytes()
    middle = len(whole) // 3
    for broken in (b"", b"no zip", whole[:-40], whole[:middle], whole[:middle] + b"\0" * 200 + whole[middle + 200 :]):
        path.write_bytes(broken)
        with pytest.raises(DataError, match=r"cannot be read as npz .*: write it again"):
            load(f"npz:{path}")


def test_a_single_array_or_a_pickle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    with path.open("wb") as stream:
        np.save(stream, np.zeros(3))
    with pytest.raises(DataError, match="single array"):
        load(f"npz:{path}")
    path.write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(DataError, match="cannot be read as npz"):
        load(f"npz:{path}")
