"""Hugging Face data sets, from local folders only: no test asks a network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from datasets.utils import logging as bars
from PIL import Image

from potluck.core.errors import DataError
from potluck.data.source import Reading
from potluck.data.sources import load


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cache of the test's own, no network, no progress bars."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    bars.disable_progress_bar()
    yield
    bars.enable_progress_bar()


def pictures(count: int) -> list[Image.Image]:
    return [Image.fromarray(np.full((9, 8), i, dtype=np.uint8)) for i in range(count)]


def table(count: int, **more: Any) -> datasets.Dataset:
    marks = datasets.ClassLabel(names=["even", "odd"])
    columns = {"img": pictures(count), "label": [i % 2 for i in range(count)], **more}
    made = datasets.Dataset.from_dict(columns)
    return made.cast_column("img", datasets.Image()).cast_column("label", marks)


def test_a_saved_set_with_two_splits(tmp_path: Path) -> None:
    datasets.DatasetDict({"train": table(10), "test": table(4)}).save_to_disk(tmp_path / "saved")
    data = load(f"hf:{tmp_path}/saved")
    assert data.x_train.shape == (10, 1, 9, 8)
    assert (len(data.x_test), data.own_test, data.facts.names) == (4, True, ("even", "odd"))
    assert (data.x_train[:, 0, 0, 0] % 2 == data.y_train).all()
    assert sorted(data.x_train[:, 0, 0, 0].tolist()) == list(range(10))


def test_a_saved_set_with_one_split_and_ids(tmp_path: Path) -> None:
    table(20, writer=[f"w{i // 5}" for i in range(20)]).save_to_disk(tmp_path / "saved")
    data = load(f"hf:{tmp_path}/saved", Reading(column="writer"))
    assert (len(data.x_train), len(data.x_test), data.own_test) == (16, 4, False)
    assert data.owner_train is not None
    assert (data.x_train[:, 0, 0, 0] // 5 == data.owner_train).all()
    with pytest.raises(DataError, match=r"no column 'user' of natural ids \(columns: img, label, writer\)"):
        load(f"hf:{tmp_path}/saved", Reading(column="user"))


def test_a_folder_of_images(tmp_path: Path) -> None:
    for part, count in (("train", 4), ("test", 2)):
        for name in ("cat", "dog"):
            (tmp_path / "set" / part / name).mkdir(parents=True)
            for i, picture in enumerate(pictures(count)):
                picture.save(tmp_path / "set" / part / name / f"{i}.png")
    data = load(f"hf:{tmp_path}/set")
    assert (len(data.x_train), len(data.x_test), data.facts.names) == (8, 4, ("cat", "dog"))


def test_a_parquet_file_of_rows(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32)
    datasets.Dataset.from_dict({"features": rows, "target": [i % 3 for i in range(20)]}).to_parquet(
        tmp_path / "rows.parquet"
    )
    data = load(f"hf:{tmp_path}/rows.parquet")
    assert (data.inputs.shape, data.facts.outputs, data.facts.names) == ((5,), 3, ())
    assert len(data.x_train) == 16


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"text": ["a", "b"], "label": [0, 1]}, r"no column of images \(columns: text, label\)"),
        ({"x": [[1.0], [2.0]], "mark": [0, 1]}, r"no column of labels \(columns: x, mark\)"),
        ({"x": [[1.0], [2.0, 3.0]] * 5, "label": [0, 1] * 5}, "rows differ in length"),
        ({"x": [[1.0], [2.0]] * 5, "label": [0, -1] * 5}, "negative label -1"),
        ({"x": [[1.0], [2.0]] * 5, "label": ["a", "b"] * 5}, "whole numbers"),
    ],
)
def test_columns_that_do_not_fit(tmp_path: Path, columns: dict[str, Any], says: str) -> None:
    datasets.Dataset.from_dict(columns).save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match=says):
        load(f"hf:{tmp_path}/saved")


def test_what_cannot_be_loaded_says_why(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "rows.parquet").write_bytes(b"no parquet")
    for where in (f"{tmp_path}/empty", f"{tmp_path}/rows.parquet", "nobody/has-this-set"):
        with pytest.raises(DataError, match=r"cannot be loaded \(.*HF_HUB_OFFLINE"):
            load(f"hf:{where}")
