"""Tables with named columns, ``[data.columns]`` saying which is what: ``csv:FILE``, ``parquet:FILE``, ``jsonl:FILE``.

A folder holds the files train and test of that form. Of a single file a fixed fifth is held out: at random, evenly over
classes, or, with ``time``, the latest rows of each id. ``csv:shares/*.csv`` are the files of as many devices: what is
known of their columns (means, names, words, classes) comes from counts and sums of each file, added up.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from potluck.core import seeds
from potluck.core.errors import DataError
from potluck.data.dataset import SPLIT_SEED, TEST_SHARE, Dataset, dataset, expanded, stratified, without
from potluck.data.source import Reading, Source, existing
from potluck.data.table.columns import Columns
from potluck.data.table.layout import Layout, encode, layout_of
from potluck.data.table.reading import read
from potluck.data.table.survey import mixed, strings, survey, total
from potluck.tasks.task import strata_of

ENDINGS = {"csv": (".csv", ".tsv", ".txt"), "parquet": (".parquet",), "jsonl": (".jsonl", ".json", ".ndjson")}

ISO = re.compile(r"\d{4}-\d{2}-\d{2}")


def load(form: str, where: str, reading: Reading) -> Dataset:
    """The data of a file, of a folder with train and test, or of a file for each device (``shares/*.csv``)."""
    if "*" in where:
        return _of_files(form, where, reading)
    path = existing(f"{form}:FILE", where)
    name = f"{form}:{path}"
    if not path.is_dir():
        return of_tables(name, [read(path, reading.columns, form)], None, reading)
    parts = {part: _part(path, part, form) for part in ("train", "test")}
    tables = {part: read(file, reading.columns, form) for part, file in parts.items()}
    return of_tables(name, [tables["train"]], tables["test"], reading)


def first_table(form: str, where: str, columns: Columns) -> Any:
    """The table of the file, of a folder's training file, or of the first of several, to be looked at."""
    if "*" in where:
        return read(_matching(form, where)[0], columns, form)
    path = existing(f"{form}:FILE", where)
    return read(_part(path, "train", form) if path.is_dir() else path, columns, form)


def _matching(form: str, where: str) -> list[Path]:
    paths = sorted(Path(path) for path in glob.glob(expanded(where)))  # noqa: PTH207 - pathlib takes no absolute pattern
    if not paths:
        raise DataError(f"{form}:{where}: no file matches, expected one for each device: check the path.")
    return paths


def _part(folder: Path, part: str, form: str) -> Path:
    for ending in ENDINGS[form]:
        if (folder / f"{part}{ending}").is_file():
            return folder / f"{part}{ending}"
    raise DataError(f"{form}:{folder}: there is no {part}{ENDINGS[form][0]}, expected train and test in a folder.")


def _of_files(form: str, where: str, reading: Reading) -> Dataset:
    """The data of several files, in the sorted order of their names: each is a natural device."""
    paths = _matching(form, where)
    tables = [read(path, reading.columns, form) for path in paths]
    return of_tables(f"{form}:{where}", tables, None, reading, places=[f"{form}:{path}" for path in paths])


def of_tables(
    name: str, trains: Sequence[Any], test: Any | None, reading: Reading, *, places: Sequence[str] = ()
) -> Dataset:
    """The data set of Arrow tables, encoded as their surveys together say; without ``test`` a fifth of each tests.

    Several tables are of as many devices, whose rows nobody puts together; ``places`` says where each is from.
    """
    columns, header = reading.columns, int(name.startswith("csv:") and not reading.columns.names)
    places = places or [name]
    for place, table in zip(places, trains, strict=True):
        for column in table.column_names:
            if _may_be_mixed(table, column, reading):
                mixed(table.column(column), place, column, header)

    def encoded(layout: Layout) -> tuple[list[Tensor], list[Tensor]]:
        made = [encode(table, layout, columns, place, header) for place, table in zip(places, trains, strict=True)]
        return [x for x, _ in made], [y for _, y in made]

    layout = _layout(name, places, trains, reading, header)
    owner = _owners(trains, columns.ids or _asked(reading), name)
    held = torch.zeros(0, dtype=torch.int64)
    if test is None:  # what is known of the columns is known of the rows that train; only the classes are all
        held = _held(trains, encoded(layout)[1], layout, owner, reading, name)
        training = _layout(name, places, _without(trains, held), reading, header)
        layout = replace(training, classes=layout.classes)
    x, y = (torch.cat(parts) for parts in encoded(layout))
    if test is None:
        kept = without(len(x), held)
        x, y, x_test, y_test = x[kept], y[kept], x[held], y[held]
        owner = None if owner is None else owner[kept]
    else:
        x_test, y_test = encode(test, layout, columns, f"{name} (test)", header)
    return dataset(
        name,
        x,
        y,
        x_test,
        y_test,
        classes=len(layout.classes) or None,
        class_names=layout.facts.names,
        vocabulary=layout.vocabulary,
        owner_train=owner,
        unscaled=None if layout.text else torch.tensor(layout.unscaled),
        layout=layout.as_table(),
        own_test=test is not None,
    )


def _layout(name: str, places: Sequence[str], tables: Sequence[Any], reading: Reading, header: int) -> Layout:
    """What the surveys of these tables say together."""
    found = [
        (place, survey(table, reading.columns, place, header=header, task=reading.task))
        for place, table in zip(places, tables, strict=True)
    ]
    return layout_of(total(found), reading.columns, tables[0].column_names, name, reading.task)


def _without(tables: Sequence[Any], held: Tensor) -> list[Any]:
    """The tables without these rows, which are numbered through all of them."""
    kept, start = [], 0
    for table in tables:
        rows = held[(held >= start) & (held < start + table.num_rows)] - start
        kept.append(table.take(without(table.num_rows, rows).tolist()))
        start += table.num_rows
    return kept


def _asked(reading: Reading) -> list[str]:
    """The column of ids that the partition names, where it names one of a table."""
    return [] if reading.column in (None, "id_train") else [str(reading.column)]


def _may_be_mixed(table: Any, column: str, reading: Reading) -> bool:
    columns = reading.columns
    beside = {*columns.drop, *columns.ids, *columns.categorical, columns.time, columns.text}
    wanted = not columns.features or column in columns.features or column in columns.targets
    return wanted and column not in beside and str(table.column(column).type) in ("string", "large_string")


def _owners(tables: Sequence[Any], ids: Sequence[str], name: str) -> Tensor | None:
    """Natural ids numbered 0, 1, ... in sorted order, several columns making one id together; or the table's number."""
    if not ids:
        sizes = torch.tensor([table.num_rows for table in tables])
        return torch.arange(len(tables)).repeat_interleave(sizes) if len(tables) > 1 else None
    joined: list[str] = []
    for table in tables:
        absent = [one for one in ids if one not in table.column_names]
        if absent:
            there = ", ".join(table.column_names)
            raise DataError(f"{name} has no column {absent[0]!r} of natural ids (columns: {there}).")
        columns = [strings(table.column(one), name, one) for one in ids]
        joined += ["\0".join(parts) for parts in zip(*columns, strict=True)]
    return torch.from_numpy(np.unique(np.array(joined), return_inverse=True)[1].astype(np.int64))


def _held(
    tables: Sequence[Any], y: Sequence[Tensor], layout: Layout, owner: Tensor | None, reading: Reading, name: str
) -> Tensor:
    """The rows that test: a stratified fifth of each table, or the latest fifth of each id."""
    held, start = [], 0
    for number, (table, targets) in enumerate(zip(tables, y, strict=True)):
        count = len(targets)
        if count < LEAST_ROWS:
            raise DataError(f"{name}: {count} rows, expected at least 5, a fifth of which is held out for testing.")
        if reading.columns.time:
            groups = torch.zeros(count, dtype=torch.int64) if owner is None else owner[start : start + count]
            rows = _latest(table, groups, reading.columns.time, name)
        else:
            draw = seeds.generator(SPLIT_SEED, number, seeds.SERVER, "split")
            rows = stratified(strata_of(targets, layout.facts)[0], round(TEST_SHARE * count), draw)
        held.append(start + rows)
        start += count
    return torch.cat(held).sort().values


def _latest(table: Any, groups: Tensor, time: str, name: str) -> Tensor:
    """The latest fifth of each group's rows."""
    column = table.column(time)
    if column.null_count:
        raise DataError(f"{name}, column {time!r}: the time is missing in {column.null_count} rows: drop those rows.")
    values = column.to_pylist()
    odd = [value for value in values if isinstance(value, str) and not ISO.match(value)]
    if odd:
        raise DataError(
            f"{name}, column {time!r}: {odd[0]!r} cannot be put in order: write dates as 2031-12-24, or name a column "
            "of numbers as the time."
        )
    order = torch.tensor(sorted(range(len(values)), key=values.__getitem__), dtype=torch.int64)
    held = []
    for group in torch.unique(groups):
        rows = order[groups[order] == group]
        held.append(rows[len(rows) - round(TEST_SHARE * len(rows)) :])
    return torch.cat(held)


LEAST_ROWS = 5
SUMMARIES = {
    "csv": "a table with a header; [data.columns] says which column is what",
    "parquet": "such a table in an Apache Parquet file",
    "jsonl": "such a table, a JSON object a line",
}
SOURCES = {
    form: Source(form=f"{form}:FILE", summary=summary, read=partial(load, form), columns=True)
    for form, summary in SUMMARIES.items()
}
