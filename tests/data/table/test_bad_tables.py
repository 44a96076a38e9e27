"""Tables as people have them: each fault is told in one line with file, column, row and what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from potluck.core.errors import DataError
from potluck.data.source import Reading
from potluck.data.sources import load
from potluck.data.table.columns import Columns

HEADER = "age,city,pay,bought"
ROWS = [f"{20 + n},{('Rome', 'Oslo', 'Bern')[n % 3]},{1000.5 + 37 * n},{('no', 'yes')[n % 2]}" for n in range(30)]


def text(*changes: tuple[int, str], header: str = HEADER, end: str = "\n") -> str:
    """The table with some rows (from 0) replaced."""
    rows = list(ROWS)
    for row, line in changes:
        rows[row] = line
    return end.join([header, *rows]) + end


def column(place: int, cells: Callable[[int], str]) -> str:
    """The table with a column replaced."""
    rows = [line.split(",") for line in ROWS]
    return "\n".join([HEADER, *(",".join([*row[:place], cells(n), *row[place + 1 :]]) for n, row in enumerate(rows))])


def semicolons(decimal: str) -> str:
    return text().replace(",", ";").replace(".", decimal)


def say(**columns: Any) -> Columns:
    return Columns(**{"target": "bought", **columns})


BAD: dict[str, tuple[str | bytes, Columns, str, str]] = {
    "no target": (
        text(),
        Columns(),
        "",
        r"say what is to be learned: \[data.columns\] target = .*age, city, pay, bought",
    ),
    "a target that is not there": (text(), say(target="bougt"), "", r"no column 'bougt' .*did you mean 'bought'"),
    "a feature that is not there": (
        text(),
        say(features=["pai"]),
        "",
        r"no column 'pai'.*features.*did you mean 'pay'",
    ),
    "a target among the features": (text(), say(drop=["bought"]), "", r"'bought' is the target and in drop"),
    "an empty file": ("", say(), "", "the file is empty"),
    "blank lines": ("\n\n\n", say(), "", "only blank lines"),
    "a header alone": (HEADER + "\n", say(), "", "a header without rows"),
    "four rows": ("\n".join([HEADER, *ROWS[:4]]), say(drop=["city", "age"]), "", "4 rows, expected at least 5"),
    "two columns of a name": (text(header="age,city,age,bought"), say(), "", r"'age' names two columns"),
    "a column without a name": (text(header="age,,pay,bought"), say(), "", "column 2 has no name"),
    "a row too long": (text((7, "1,Rome,2,no,9")), say(), "", r"row 9: 5 cells, expected 4 .*delimiter"),
    "a row too short": (text((3, "1,Rome")), say(), "", r"row 5: 2 cells, expected 4"),
    "missing cells": (text((2, "22,,9.5,no"), (4, ",Rome,,no")), say(), "", r"missing in 30 rows: .*'city' 1.*impute"),
    "a missing target": (text((2, "22,Rome,9.5,")), say(), "", r"'bought': the target is missing in 1 of 30 rows"),
    "a word among numbers": (text((5, "25,Rome,cheap,no")), say(), "", r"'pay', row 7: 'cheap' among numbers \(1 "),
    "numbers with a comma": (semicolons(","), say(), "", r"'pay': numbers with a comma, such as '1000,5'.*decimal"),
    "the wrong delimiter": (
        semicolons("."),
        say(delimiter=","),
        "",
        r"one column .*set \[data.columns\] delimiter = ';'",
    ),
    "a long delimiter": (text(), say(delimiter="::"), "", "expected one character"),
    "one value in a column": (column(0, lambda n: "7"), say(), "", r"'age': '7' in all rows, so it says nothing"),
    "one name in a column": (column(1, lambda n: "Rome"), say(), "", r"'city': 'Rome' in all rows"),
    "one class": (column(3, lambda n: "yes"), say(), "", r"'bought': the target is 'yes' in all rows"),
    "an empty column": (column(1, lambda n: ""), say(missing="impute"), "", r"'city': every cell is empty"),
    "another name in each row": (column(1, lambda n: f"person {n}"), say(), "", r"'city': 30 different names .*drop"),
    "dates": (column(0, lambda n: f"2031-01-{n + 1:02d}"), say(), "", r"'age': holds dates .*drop, or as time"),
    "infinity": (text((9, "29,Rome,inf,no")), say(), "", r"'pay', row 11: an infinite number"),
    "text to predict": (text(), say(), "regression", r"'bought': holds names, so the task cannot be 'regression'"),
    "many whole numbers": (
        "\n".join(["x,y", *(f"{n % 7}.5,{n}" for n in range(60))]),
        say(target="y"),
        "",
        r"'y': 60 different whole numbers, which may be classes",
    ),
    "a time that has no order": (column(1, lambda n: f"{n % 12 + 1}/1/2031"), say(time="city"), "", "put in order"),
    "another encoding": (text((1, "21,Zürich,9.5,no")).encode("cp1252"), say(), "", r"not in utf-8 .*cp1252"),
    "an unknown encoding": (text(), say(encoding="utf-99"), "", "encoding = .utf-99. is unknown"),
    "zero bytes": (b"a,b\n\0\0\0\0", say(), "", "zero bytes"),
    "nothing left to learn from": (text(), say(drop=["age", "city", "pay"]), "", "no column is left to learn from"),
    "no text in the text": (column(1, lambda n: '" "'), say(text="city"), "", r"'city': holds no text"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_table_is_told_in_one_line(name: str, tmp_path: Path) -> None:
    content, columns, task, says = BAD[name]
    path = tmp_path / "shop.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=says) as error:
        load(f"csv:{path}", Reading(columns=columns, task=task))
    assert "shop.csv" in str(error.value)
    assert "\n" not in str(error.value)
    assert sorted(tmp_path.iterdir()) == [path], "something was written"


def test_there_are_thirty_kinds() -> None:
    assert len(BAD) >= 30


@pytest.mark.parametrize(
    ("content", "columns"),
    [
        (text(end="\r\n").encode(), say()),
        (b"\xef\xbb\xbf" + text().encode(), say()),
        (text().encode("utf-16"), say()),
        (("sep=;\n" + semicolons(".")).encode(), say()),
        (semicolons(",").encode(), say(decimal=",")),
        (text().replace(",", "\t").encode(), say()),
        (text((1, "21,Zürich,9.5,no"), (2, "21,Zürich,9.5,no")).encode("cp1252"), say(encoding="cp1252")),
        ("\n".join(ROWS).encode(), say(names=["age", "city", "pay", "bought"])),
    ],
    ids=["Windows", "a mark before it", "UTF-16", "sep=;", "decimal comma", "tabs", "cp1252", "no header"],
)
def test_tables_as_windows_and_spreadsheets_write_them(content: bytes, columns: Columns, tmp_path: Path) -> None:
    path = tmp_path / "shop.csv"
    path.write_bytes(content)
    found = load(f"csv:{path}", Reading(columns=columns))
    assert (len(found.x_train), len(found.x_test)) == (24, 6)
    assert found.facts.names == ("no", "yes")
    assert found.inputs.shape[0] in (6, 7)
