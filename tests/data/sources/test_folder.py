"""A folder of images per class."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from potluck.core.errors import DataError, MissingExtraError
from potluck.data.sources import load


def paint(path: Path, value: int, mode: str = "RGB", size: tuple[int, int] = (10, 9)) -> None:
    """An image of one colour; its red (or grey) value tells which it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = {"RGB": (value, 1, 2), "RGBA": (value, 1, 2, 7), "L": value, "I;16": value, "1": 1, "P": 0}[mode]
    Image.new(mode, size, colour).save(path)  # type: ignore[arg-type]


def classes(directory: Path, count: int = 5, mode: str = "RGB") -> None:
    for label, name in enumerate(("cat", "dog")):
        for i in range(count):
            paint(directory / name / f"{i}.png", 100 * label + i, mode)


def test_class_folders_are_split_and_labelled_by_name(tmp_path: Path) -> None:
    classes(tmp_path, 10)
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / ".cache").mkdir()
    data = load(f"folder:{tmp_path}")
    assert data.x_train.shape == (16, 3, 9, 10)
    assert data.x_test.shape == (4, 3, 9, 10)
    assert data.facts.names == ("cat", "dog")
    assert not data.own_test
    for x, y in ((data.x_train, data.y_train), (data.x_test, data.y_test)):
        assert ((x[:, 0, 0, 0] >= 100) == (y == 1)).all()
        assert (x[:, 1] == 1).all()
    assert len({int(v) for v in data.y_train[:4]}) == 2, "the first samples should hold both classes"


def test_train_and_test_folders_are_kept_apart(tmp_path: Path) -> None:
    classes(tmp_path / "train", 4)
    classes(tmp_path / "test", 2)
    data = load(f"folder:{tmp_path}")
    assert (len(data.x_train), len(data.x_test), data.own_test) == (8, 4, True)


def test_grey_images_have_one_channel_and_mixed_ones_three(tmp_path: Path) -> None:
    classes(tmp_path, 5, "L")
    assert load(f"folder:{tmp_path}").inputs.shape == (1, 9, 10)
    paint(tmp_path / "cat" / "colour.png", 7, "RGBA")
    data = load(f"folder:{tmp_path}")
    assert data.inputs.shape == (3, 9, 10)
    assert {(int(x[0, 0, 0]), int(x[1, 0, 0])) for x in data.x_train} | {
        (int(x[0, 0, 0]), int(x[1, 0, 0])) for x in data.x_test
    } == {(v, v) for v in (0, 1, 2, 3, 4, 100, 101, 102, 103, 104)} | {(7, 1)}


def test_sizes_must_agree(tmp_path: Path) -> None:
    classes(tmp_path)
    paint(tmp_path / "dog" / "large.png", 1, size=(20, 30))
    with pytest.raises(DataError, match=r"is \d+x\d+ pixels and .* is \d+x\d+, expected one size.*resize them"):
        load(f"folder:{tmp_path}")


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    classes(tmp_path)
    draw = np.random.default_rng(0)
    Image.fromarray(draw.integers(0, 256, (9, 10, 3), dtype=np.uint8)).save(tmp_path / "cat" / "0.png")
    whole = (tmp_path / "cat" / "0.png").read_bytes()
    for broken in (b"", b"not an image", whole[: len(whole) // 2]):
        (tmp_path / "cat" / "0.png").write_bytes(broken)
        with pytest.raises(DataError, match=r"cat/0.png is not a readable image"):
            load(f"folder:{tmp_path}")


def test_images_of_sixteen_bits_are_refused(tmp_path: Path) -> None:
    classes(tmp_path)
    paint(tmp_path / "cat" / "deep.png", 1, "I;16")
    with pytest.raises(DataError, match=r"deep.png has mode I;16, expected eight bits"):
        load(f"folder:{tmp_path}")


def test_folders_must_be_there_filled_and_equal(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="0 class folders, expected at least two"):
        load(f"folder:{tmp_path}")
    classes(tmp_path / "train")
    with pytest.raises(DataError, match="no folder test/"):
        load(f"folder:{tmp_path}")
    classes(tmp_path / "test")
    (tmp_path / "test" / "bird").mkdir()
    with pytest.raises(DataError, match="classes bird are only in one"):
        load(f"folder:{tmp_path}")
    (tmp_path / "train" / "bird").mkdir()
    with pytest.raises(DataError, match="bird/ holds no images"):
        load(f"folder:{tmp_path}")


def test_a_missing_pillow_says_which_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classes(tmp_path)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtraError, match="folder"):
        load(f"folder:{tmp_path}")
