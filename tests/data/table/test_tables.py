"""Tables: what rows become, and that surveys of shares add up to that of the whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from potluck.core.errors import DataError
from potluck.data.source import Reading
from potluck.data.sources import load
from potluck.data.table.columns import Columns
from potluck.data.table.layout import Layout, encode, layout_of
from potluck.data.table.survey import Survey, survey, total

TABLE = pa.table(
    {
        "hour": [n % 24 for n in range(48)],
        "town": [("Rome", "Oslo", "Bern")[n % 3] for n in range(48)],
        "warm": [0.5 * n if n % 8 else None for n in range(48)],
        "note": [f"Day {n} was {('good', 'bad, very bad')[n % 2]}" for n in range(48)],
        "who": [f"w{n // 12}" for n in range(48)],
        "rides": [10.0 * n + 0.5 for n in range(48)],
        "rain": [n % 2 for n in range(48)],
        "wind": [(n // 2) % 2 for n in range(48)],
    }
)
COLUMNS = Columns(target="rides", drop=["note", "rain", "wind"], categorical=["hour"], id="who", missing="impute")


def layout(table: Any, columns: Columns, task: str = "") -> Layout:
    return layout_of(survey(table, columns, "t", task=task), columns, table.column_names, "t", task)


def test_a_row_is_its_numbers_and_a_place_for_each_name() -> None:
    made = layout(TABLE, COLUMNS)
    assert made.features[:2] == ("hour = 0", "hour = 1")
    assert made.features[24:] == (
        "hour is unknown", "town = Bern", "town = Oslo", "town = Rome", "town is unknown", "warm", "warm is missing",
    )  # fmt: skip
    x, y = encode(TABLE, made, COLUMNS, "t")
    assert x.shape == (48, len(made.features))
    warm = [0.5 * n for n in range(48) if n % 8]
    assert x[8, 24:].tolist() == pytest.approx([0, 1, 0, 0, 0, sum(warm) / len(warm), 1], abs=1e-5)
    assert x[9, 24:].tolist() == pytest.approx([0, 0, 0, 1, 0, 4.5, 0])
    assert x[9, :24].argmax() == 9
    assert made.unscaled == (*[True] * 29, False, True)
    assert y[3].tolist() == [30.5]
    strange = TABLE.slice(0, 1).set_column(1, "town", pa.array(["Paris"]))
    assert encode(strange, made, COLUMNS, "t")[0][0, 25:29].tolist() == [0, 0, 0, 1]
    assert Layout.of_table(made.as_table()) == made


def test_text_is_tokens_the_most_frequent_first() -> None:
    columns = Columns(target="rain", text="note", length=4, vocabulary=6)
    made = layout(TABLE, columns)
    assert made.tokens[:3] == ("day", "was", "bad")
    x, y = encode(TABLE, made, columns, "t")
    assert (x.dtype, tuple(x.shape), y[:3].tolist()) == (torch.int64, (48, 4), [0, 1, 0])
    assert x[0].tolist() == [2, 1, 3, 5]
    assert made.vocabulary == 6
    long = Columns(target="rain", text="note", length=50, tokens="characters")
    assert encode(TABLE, layout(TABLE, long), long, "t")[0][0, 20:].sum() == 0


@pytest.mark.parametrize(
    ("columns", "task", "wanted", "shape"),
    [
        (Columns(target="rides", features=["hour"]), "", "regression", (48, 1)),
        (Columns(target="town", features=["hour"]), "", "classification", (48,)),
        (Columns(target="hour", features=["rides"]), "", "classification", (48,)),
        (Columns(target="hour", features=["rides"]), "regression", "regression", (48, 1)),
        (Columns(target=["rain", "wind"], features=["hour"]), "", "multilabel", (48, 2)),
        (Columns(target=["rain", "rides"], features=["hour"]), "", "regression", (48, 2)),
    ],
)
def test_the_target_tells_the_task(columns: Columns, task: str, wanted: str, shape: tuple[int, ...]) -> None:
    made = layout(TABLE, columns, task)
    assert made.task == wanted
    assert encode(TABLE, made, columns, "t")[1].shape == shape


@settings(max_examples=30, deadline=None)
@given(owners=st.lists(st.integers(0, 3), min_size=48, max_size=48))
def test_surveys_of_shares_add_up_to_that_of_the_whole(owners: list[int]) -> None:
    columns = Columns(target="rides", drop=["rain"], categorical=["hour"], text="", id="who", missing="impute")
    columns = columns.model_copy(update={"drop": ["note"]})
    whole = survey(TABLE, columns, "t")
    shares = [TABLE.filter(pa.array([owner == one for owner in owners])) for one in range(4)]
    parts = [(f"device {one}", survey(share, columns, "t")) for one, share in enumerate(shares) if share.num_rows]
    summed = total((where, Survey.of_table(one.as_table())) for where, one in parts)
    assert (summed.rows, summed.names, summed.missing) == (whole.rows, whole.names, whole.missing)
    for name, one in whole.numbers.items():
        assert summed.numbers[name].count == one.count
        assert summed.numbers[name].mean == pytest.approx(one.mean, abs=1e-6)
        assert summed.numbers[name].deviation == pytest.approx(one.deviation, abs=1e-6)
    central = layout_of(whole, columns, TABLE.column_names, "t")
    assert layout_of(summed, columns, TABLE.column_names, "t").names == central.names


def test_a_column_of_another_kind_elsewhere_is_named() -> None:
    columns = Columns(target="rides", features=["town"])
    other = TABLE.set_column(1, "town", pa.array(range(48)))
    with pytest.raises(DataError, match="device 1: column 'town' is of another kind"):
        total([("device 0", survey(TABLE, columns, "t")), ("device 1", survey(other, columns, "t"))])


def test_all_forms_are_one_table(tmp_path: Path) -> None:
    parquet.write_table(TABLE, tmp_path / "t.parquet")
    frame = TABLE.to_pandas()
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_json(tmp_path / "t.jsonl", orient="records", lines=True)
    found = {
        form: load(f"{form}:{tmp_path}/t.{form}", Reading(columns=COLUMNS)) for form in ("parquet", "csv", "jsonl")
    }
    first = found["parquet"]
    assert first.owner_train is not None
    for one in found.values():
        assert torch.equal(one.x_train, first.x_train)
        assert torch.equal(one.y_train, first.y_train)
        assert one.owner_train is not None
        assert torch.equal(one.owner_train, first.owner_train)


def test_the_latest_rows_of_each_id_test(tmp_path: Path) -> None:
    parquet.write_table(TABLE, tmp_path / "t.parquet")
    columns = COLUMNS.model_copy(update={"time": "hour", "categorical": [], "features": ["warm"]})
    found = load(f"parquet:{tmp_path}/t.parquet", Reading(columns=columns))
    assert sorted(found.y_test[:, 0].tolist()) == [10.0 * n + 0.5 for n in (10, 11, 22, 23, 34, 35, 46, 47)]
    assert found.owner_train is not None
    assert torch.bincount(found.owner_train).tolist() == [10] * 4


def test_a_folder_brings_its_own_test_data(tmp_path: Path) -> None:
    for part, rows in (("train", TABLE.slice(0, 40)), ("test", TABLE.slice(40))):
        parquet.write_table(rows, tmp_path / f"{part}.parquet")
    found = load(f"parquet:{tmp_path}", Reading(columns=COLUMNS))
    assert (len(found.x_train), len(found.x_test), found.own_test) == (40, 8, True)
    with pytest.raises(DataError, match=r"there is no train\.csv"):
        load(f"csv:{tmp_path}", Reading(columns=COLUMNS))


def test_features_of_names_are_left_as_they_are(tmp_path: Path) -> None:
    parquet.write_table(TABLE, tmp_path / "t.parquet")
    found = load(f"parquet:{tmp_path}/t.parquet", Reading(columns=COLUMNS))
    assert found.unscaled is not None
    assert found.layout is not None
    assert int((~found.unscaled).sum()) == 1
    assert found.layout["order"] == ("hour", "town", "warm")


def test_files_of_devices_are_known_by_what_they_say_together(tmp_path: Path) -> None:
    for number in range(3):
        parquet.write_table(TABLE.slice(16 * number, 16), tmp_path / f"device-{number}.parquet")
    columns = Columns(target="rides", features=["town", "warm"], missing="impute")
    found = load(f"parquet:{tmp_path}/device-*.parquet", Reading(columns=columns))
    assert found.layout is not None
    assert found.layout["names"]["town"] == ("Bern", "Oslo", "Rome")
    there = found.x_train[found.x_train[:, 5] == 0, 4].double()
    assert found.layout["numbers"]["warm"][0] == pytest.approx(float(there.mean()), abs=1e-6)
    assert found.owner_train is not None
    assert torch.bincount(found.owner_train).tolist() == [13] * 3
    assert len(found.x_test) == 9
    with pytest.raises(DataError, match="no file matches"):
        load(f"csv:{tmp_path}/device-*.csv", Reading(columns=columns))


def test_what_is_known_of_columns_is_known_of_training_rows_alone(tmp_path: Path) -> None:
    """The latest fifth has a town of its own, and is warmer."""
    town = TABLE.column("town").to_pylist()[:40] + ["Paris"] * 8
    warm = [1.0 if n % 2 else 3.0 for n in range(40)] + [None] * 8
    table = TABLE.set_column(1, "town", pa.array(town)).set_column(2, "warm", pa.array(warm))
    table = table.append_column("when", pa.array(range(48)))
    parquet.write_table(table, tmp_path / "t.parquet")
    columns = Columns(target="rides", features=["town", "warm"], time="when", missing="impute")
    found = load(f"parquet:{tmp_path}/t.parquet", Reading(columns=columns))
    assert found.layout is not None
    assert found.layout["names"]["town"] == ("Bern", "Oslo", "Rome")
    assert found.layout["numbers"]["warm"] == (pytest.approx(sum(warm[:38]) / 38), False)
    assert found.x_test[-1].tolist() == pytest.approx([0, 0, 0, 1, sum(warm[:38]) / 38])
