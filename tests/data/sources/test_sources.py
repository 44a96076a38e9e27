"""The sources: what they read, and that nothing optional is imported before it is needed."""

from __future__ import annotations

import gzip
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from potluck.core.errors import DataError, MissingExtraError
from potluck.data.source import Reading
from potluck.data.sources import SOURCES, load


def write_idx(path: Path, array: np.ndarray) -> None:
    """An idx file of unsigned bytes; gzipped if the name ends so."""
    header = struct.pack(f">{1 + array.ndim}I", 0x0800 | array.ndim, *array.shape)
    raw = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


def write_mnist(directory: Path, part: str, count: int, end: str = "") -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(count)
    x, y = draw.integers(0, 256, (count, 9, 8)), np.arange(count) % 3
    write_idx(directory / f"{part}-images-idx3-ubyte{end}", x)
    write_idx(directory / f"{part}-labels-idx1-ubyte{end}", y)
    return x, y


def write_cifar(directory: Path, count: int = 4) -> None:
    draw = np.random.default_rng(0)
    for name in [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]:
        records = draw.integers(0, 256, (count, 3073), dtype=np.uint8)
        records[:, 0] = np.arange(count)
        (directory / name).write_bytes(records.tobytes())


def test_importing_the_sources_loads_no_optional_package() -> None:
    code = (
        "import sys, potluck.data.sources, potluck.data.shares, potluck.deploy.split; "
        "print([m for m in ('datasets', 'flwr_datasets', 'sklearn', 'PIL', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_digits_are_all_there_and_split_by_class() -> None:
    data = load("digits")
    assert data.inputs.shape == (1, 8, 8)
    assert len(data.x_train) + len(data.x_test) == 1797
    assert len(data.x_test) == 359
    assert data.x_train.dtype == torch.float32
    assert (float(data.x_train.min()), float(data.x_train.max())) == (0.0, 1.0)
    assert data.facts.outputs == 10
    assert not data.own_test
    shares = data.y_test.bincount() / (data.y_test.bincount() + data.y_train.bincount())
    assert torch.allclose(shares, torch.tensor(0.2), atol=0.01)


def test_digits_are_the_same_each_time() -> None:
    one, two = load("digits"), load("digits")
    assert torch.equal(one.x_train, two.x_train)
    assert torch.equal(one.y_test, two.y_test)


def test_synthetic_is_reproducible_balanced_and_learnable() -> None:
    data, again = load("synthetic:200,3,12,10"), load("synthetic:200,3,12,10")
    assert data.x_train.shape == (200, 3, 12, 10)
    assert data.x_test.shape == (50, 3, 12, 10)
    assert data.x_train.dtype == torch.uint8
    assert torch.equal(data.x_train, again.x_train)
    assert data.y_train.bincount().tolist() == [20] * 10
    x, x_test = (t.flatten(1).to(torch.float32) for t in (data.x_train, data.x_test))
    means = torch.stack([x[data.y_train == c].mean(dim=0) for c in range(10)])
    right = (torch.cdist(x_test, means).argmin(dim=1) == data.y_test).float().mean()
    assert right > 0.9


@pytest.mark.parametrize("end", ["", ".gz"])
def test_idx_reads_the_four_files(tmp_path: Path, end: str) -> None:
    x, y = write_mnist(tmp_path, "train", 12, end)
    x_test, _ = write_mnist(tmp_path, "t10k", 6, end)
    data = load(f"idx:{tmp_path}")
    assert data.own_test
    assert np.array_equal(data.x_train[:, 0].numpy(), x)
    assert np.array_equal(data.y_train.numpy(), y)
    assert np.array_equal(data.x_test[:, 0].numpy(), x_test)
    assert data.facts.outputs == 3


def test_idx_with_test_files_alone_splits_them(tmp_path: Path) -> None:
    x, _ = write_mnist(tmp_path, "t10k", 30)
    data = load(f"idx:{tmp_path}")
    assert not data.own_test
    assert (len(data.x_train), len(data.x_test)) == (24, 6)
    both = torch.cat([data.x_train, data.x_test]).flatten(1).sum(dim=1).sort().values
    assert np.array_equal(both.numpy(), np.sort(x.reshape(30, -1).sum(axis=1)))


def test_a_path_may_hold_a_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mnist(tmp_path, "t10k", 30)
    monkeypatch.setenv("SOME_FOLDER", str(tmp_path))
    assert len(load("idx:$SOME_FOLDER").x_train) == 24
    assert len(load("idx:${SOME_FOLDER}/").x_train) == 24
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(load("idx:~").x_train) == 24


@pytest.mark.parametrize("inner", ["", "cifar-10-batches-bin"])
def test_cifar10_reads_the_binary_batches(tmp_path: Path, inner: str) -> None:
    place = tmp_path / inner
    place.mkdir(exist_ok=True)
    write_cifar(place)
    (place / "batches.meta.txt").write_text("\n".join(f"name{i}" for i in range(10)) + "\n\n")
    data = load(f"cifar10:{tmp_path}")
    assert data.x_train.shape == (20, 3, 32, 32)
    assert data.x_test.shape == (4, 3, 32, 32)
    assert data.y_train[:4].tolist() == [0, 1, 2, 3]
    assert data.facts.outputs == 10
    assert data.facts.names is not None
    assert data.facts.names[3] == "name3"
    first = np.frombuffer((place / "data_batch_1.bin").read_bytes(), dtype=np.uint8)
    assert np.array_equal(data.x_train[0].flatten().numpy(), first[1:3073])


def test_each_source_says_how_it_is_written_and_what_it_is() -> None:
    assert len(SOURCES) == 11
    assert all(source.form.partition(":")[0] == name for name, source in SOURCES.items())
    assert all(20 < len(source.summary) < 100 for source in SOURCES.values())


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("mnist", "choose one of cifar10:DIR, digits"),
        ("digit", "did you mean 'digits'"),
        ("npy:file", "did you mean 'npz:FILE'"),
        ("digits:here", "takes no path"),
        ("npz:", "write npz:FILE"),
        ("synthetic", "write synthetic:N,C,H,W"),
        ("synthetic:10", "two to four whole numbers"),
        ("synthetic:ten,3,32,32", "four whole numbers"),
        ("synthetic:9,3,32,32", "N >= 10"),
        ("synthetic:10,0,32,32", "and C, H, W"),
        ("synthetic:1000000000,3,224,224", "8 GiB"),
        ("npz:/does/not/exist.npz", "is not there"),
        ("idx:/does/not/exist", "is not there"),
        ("idx:$NOT_SET_ANYWHERE/x", "environment variable NOT_SET_ANYWHERE"),
        ("npz:~nobody-of-that-name/x.npz", "is not there"),
        ("npz:" + "a" * 5000, "cannot be looked up"),
        ("hf:./does/not/exist", "is not there"),
    ],
)
def test_a_bad_source_is_refused(source: str, says: str) -> None:
    with pytest.raises(DataError, match=says.replace("(", r"\(")):
        load(source)


def test_a_file_is_no_folder_and_a_folder_no_file(tmp_path: Path) -> None:
    file = tmp_path / "some.npz"
    file.write_bytes(b"")
    with pytest.raises(DataError, match="is not a folder"):
        load(f"idx:{file}")
    with pytest.raises(DataError, match="is not a file"):
        load(f"npz:{tmp_path}")


def test_a_source_without_columns_refuses_one() -> None:
    with pytest.raises(DataError, match="has no columns, so no column 'user'"):
        load("digits", Reading(column="user"))


@pytest.mark.parametrize(("module", "source"), [("sklearn.datasets", "digits"), ("datasets", "hf:some/name")])
def test_a_missing_package_says_which_extra(module: str, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r'pip install "potluck\[lab\]"'):
        load(source)


def damage(path: Path, how: str) -> None:
    raw = path.read_bytes()
    path.write_bytes(
        {"cut": raw[:-3], "longer": raw + b"x", "header": raw[:6], "magic": b"\0\0\x0d\x03" + raw[4:]}[how]
    )


@pytest.mark.parametrize(
    ("how", "says"),
    [("cut", "truncated"), ("longer", "truncated or damaged"), ("header", "too short"), ("magic", "0x00000d03")],
)
def test_a_damaged_idx_file_is_refused(tmp_path: Path, how: str, says: str) -> None:
    write_mnist(tmp_path, "t10k", 30)
    damage(tmp_path / "t10k-images-idx3-ubyte", how)
    with pytest.raises(DataError, match=says):
        load(f"idx:{tmp_path}")


def test_a_damaged_gz_is_refused(tmp_path: Path) -> None:
    write_mnist(tmp_path, "t10k", 30, ".gz")
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    for broken in (whole[:-20], b"no gzip at all", whole[:40] + b"\xff" * 40 + whole[80:]):
        path.write_bytes(broken)
        with pytest.raises(DataError, match="cannot be read"):
            load(f"idx:{tmp_path}")


def test_idx_files_must_be_there_and_belong_together(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found no idx files"):
        load(f"idx:{tmp_path}")
    write_mnist(tmp_path, "t10k", 30)
    write_idx(tmp_path / "t10k-labels-idx1-ubyte", np.arange(29) % 3)
    with pytest.raises(DataError, match="30 samples but 29 labels"):
        load(f"idx:{tmp_path}")
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="t10k-labels-idx1-ubyte is missing"):
        load(f"idx:{tmp_path}")


def test_damaged_cifar10_is_refused(tmp_path: Path) -> None:
    write_cifar(tmp_path)
    (tmp_path / "data_batch_3.bin").write_bytes(b"\0" * 3072)
    with pytest.raises(DataError, match="multiple of 3073"):
        load(f"cifar10:{tmp_path}")
    (tmp_path / "data_batch_3.bin").write_bytes(b"\x0b" * 3073)
    with pytest.raises(DataError, match="label 11 is out of range"):
        load(f"cifar10:{tmp_path}")
    (tmp_path / "data_batch_3.bin").unlink()
    with pytest.raises(DataError, match=r"data_batch_3.bin missing.*not the Python one"):
        load(f"cifar10:{tmp_path}")


@pytest.mark.data
def test_the_real_files_are_read_whole() -> None:
    fashion = load("idx:$POTLUCK_DATA/fashion-mnist")
    assert (fashion.x_train.shape, fashion.x_test.shape) == ((60000, 1, 28, 28), (10000, 1, 28, 28))
    assert fashion.y_train.bincount().tolist() == [6000] * 10
    cifar = load(f"npz:{os.environ['POTLUCK_DATA']}/cifar10-small.npz")
    assert (cifar.x_train.shape, cifar.x_test.shape) == ((16000, 3, 32, 32), (4000, 3, 32, 32))
    assert cifar.x_train.dtype == torch.uint8
    mnist = load("idx:$POTLUCK_DATA/mnist")
    assert (len(mnist.x_train), len(mnist.x_test), mnist.own_test) == (8000, 2000, False)
