"""Data and nets that cannot work: one line with what was given and what to do, exit code 2, nothing written."""

from __future__ import annotations

import gzip
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from potluck import cli
from potluck.experiment import store
from potluck.experiment.config import Experiment

MakeExperiment = Callable[..., Experiment]
Refused = Callable[..., str]


@pytest.fixture
def refused(
    small: MakeExperiment, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Refused:
    """Runs the small experiment with overrides and returns the one line that it ends with."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr("signal.signal", lambda *_: None)
    (tmp_path / "e.toml").write_text(store.to_toml(small("fedavg", "model.name=mlp")))

    def call(*overrides: str) -> str:
        words = [word for override in overrides for word in ("--set", override)]
        monkeypatch.setattr(sys, "argv", ["potluck", "run", "e.toml", *words])
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(SystemExit) as stop:
            cli.main()
        told = capsys.readouterr()
        assert stop.value.code == 2
        assert told.out == ""
        assert len(told.err.strip().splitlines()) == 1, told.err
        assert sorted(tmp_path.rglob("*")) == before
        return told.err

    return call


def images(path: Path, **changes: Any) -> str:
    """An npz of 60 images in 3 classes, with some arrays replaced."""
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    arrays: dict[str, Any] = {
        "x_train": rng.integers(0, 255, (60, 8, 8), dtype=np.uint8),
        "y_train": labels,
        "x_test": rng.integers(0, 255, (60, 8, 8), dtype=np.uint8),
        "y_test": labels,
    }
    np.savez(path, **{**arrays, **changes})
    return f"data.source='npz:{path}'"


def test_a_corrupt_npz(refused: Refused, tmp_path: Path) -> None:
    source = images(tmp_path / "bad.npz")
    data = (tmp_path / "bad.npz").read_bytes()
    (tmp_path / "bad.npz").write_bytes(data[: len(data) // 2])
    assert "bad.npz" in refused(source)


def test_a_corrupt_gz(refused: Refused, tmp_path: Path) -> None:
    folder = tmp_path / "idx"
    folder.mkdir()
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (folder / f"{name}-ubyte.gz").write_bytes(gzip.compress(b"\0" * 64)[:20])
    assert "idx" in refused(f"data.source='idx:{folder}'")


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ((np.arange(60) % 3) * 1.0, "whole numbers"),
        ((np.arange(60) % 3) * 1j, "expected numbers"),
        (np.zeros(60, dtype=np.int64), "class"),
        (np.arange(59) % 3, "59"),
    ],
)
def test_labels_that_are_none(refused: Refused, tmp_path: Path, labels: Any, told: str) -> None:
    line = refused(images(tmp_path / "odd.npz", y_train=labels))
    assert told in line
    assert "odd.npz" in line


def test_features_that_are_not_finite(refused: Refused, tmp_path: Path) -> None:
    rows = np.ones((60, 8, 8), dtype=np.float32)
    rows[3, 2, 1] = np.nan
    assert "odd.npz" in refused(images(tmp_path / "odd.npz", x_train=rows))


def test_more_devices_than_samples(refused: Refused, tmp_path: Path) -> None:
    source = images(tmp_path / "few.npz")
    line = refused(source, "fleet.tier=[{name='a',devices=100}]", "data.partition={kind='iid'}")
    assert "100" in line
    assert "replace" in line


def test_a_partition_that_leaves_a_device_empty(refused: Refused, tmp_path: Path) -> None:
    source = images(tmp_path / "few.npz")
    line = refused(source, "fleet.tier=[{name='a',devices=20}]", "data.partition={kind='dirichlet',alpha=0.001}")
    assert "alpha" in line or "min_samples" in line or "device" in line


def test_images_that_are_too_small_for_the_net(refused: Refused, tmp_path: Path) -> None:
    tiny = np.zeros((60, 4, 4), dtype=np.uint8)
    line = refused(images(tmp_path / "tiny.npz", x_train=tiny, x_test=tiny), "model.name=resnet8")
    assert "4x4" in line
    assert "8x8" in line


def test_augmentation_of_rows(refused: Refused, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).random((60, 5)).astype(np.float32)
    line = refused(images(tmp_path / "rows.npz", x_train=rows, x_test=rows), "data.augment=crop-flip")
    assert "rows of shape (5,)" in line


def test_a_net_that_gives_something_else(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "odd_nets.py").write_text(
        "import torch\n"
        "def narrow(shape, classes):\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, classes - 1))\n"
        "def wrong(shape, classes):\n"
        "    return torch.nn.Linear(3, classes)\n"
        "def none(shape, classes):\n"
        "    return None\n"
    )
    source = images(tmp_path / "few.npz")
    assert "expected (2, 3) logits" in refused(source, "model.name=odd_nets:narrow")
    assert "does not take samples of shape (1, 8, 8)" in refused(source, "model.name=odd_nets:wrong")
    assert "NoneType" in refused(source, "model.name=odd_nets:none")
    assert "has no" in refused(source, "model.name=odd_nets:missing")
