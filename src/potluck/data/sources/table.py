"""Tables with named columns, ``[data.columns]`` saying which is what: ``csv:FILE``, ``parquet:FILE``, ``jsonl:FILE``.

A folder holds the files train and test of that form. Of a single file a fixed fifth is held out: at random, evenly over
classes, or, with ``time``, the latest rows of each id.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from potluck.core import seeds
from potluck.core.errors import DataError
from potluck.data.dataset import SPLIT_SEED, TEST_SHARE, Dataset, dataset, stratified, without
from potluck.data.source import Reading, Source, existing
from potluck.data.table.layout import Layout, encode, layout_of
from potluck.data.table.reading import read
from potluck.data.table.survey import mixed, strings, survey
from potluck.tasks.task import strata_of

ENDINGS = {"csv": (".csv", ".tsv", ".txt"), "parquet": (".parquet",), "jsonl": (".jsonl", ".json", ".ndjson")}

ISO = re.compile(r"\d{4}-\d{2}-\d{2}")


def load(form: str, where: str, reading: Reading) -> Dataset:
    """The data of a file, or of a folder with train and test."""
    path = existing(f"{form}:FILE", where)
    if not path.is_dir():
        return of_tables(f"{form}:{path}", read(path, reading.columns, form), None, reading)
    parts = {part: _part(path, part, form) for part in ("train", "test")}
    tables = {part: read(file, reading.columns, form) for part, file in parts.items()}
    return of_tables(f"{form}:{path}", tables["train"], tables["test"], reading)


def _part(folder: Path, part: str, form: str) -> Path:
    for ending in ENDINGS[form]:
        if (folder / f"{part}{ending}").is_file():
            return folder / f"{part}{ending}"
    raise DataError(f"{form}:{folder}: there is no {part}{ENDINGS[form][0]}, expected train and test in a folder.")


def of_tables(name: str, train: Any, test: Any | None, reading: Reading, layout: Layout | None = None) -> Dataset:
    """The data set of Arrow tables, encoded as the training rows say; without ``test`` a fixed fifth is held out."""
    columns, header = reading.columns, int(name.startswith("csv:") and not reading.columns.names)
    ids = columns.ids or ([reading.column] if reading.column not in (None, "id_train") else [])
    for column in train.column_names:
        if _may_be_mixed(train, column, reading):
            mixed(train.column(column), name, column, header)
    if layout is None:
        found = survey(train, columns, name, header=header, task=reading.task)
        layout = layout_of(found, columns, train.column_names, name, reading.task)
    x, y = encode(train, layout, columns, name, header)
    owner = _owners(train, ids, name) if ids else None
    if test is None:
        held = _held(train, y, layout, owner, reading, name)
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


def _may_be_mixed(table: Any, column: str, reading: Reading) -> bool:
    columns = reading.columns
    beside = {*columns.drop, *columns.ids, *columns.categorical, columns.time, columns.text}
    wanted = not columns.features or column in columns.features or column in columns.targets
    return wanted and column not in beside and str(table.column(column).type) in ("string", "large_string")


def _owners(table: Any, ids: Sequence[str], name: str) -> Tensor:
    """Natural ids numbered 0, 1, ... in sorted order; several columns make one id together."""
    absent = [one for one in ids if one not in table.column_names]
    if absent:
        raise DataError(
            f"{name} has no column {absent[0]!r} of natural ids (columns: {', '.join(table.column_names)})."
        )
    columns = [strings(table.column(one), name, one) for one in ids]
    joined = np.array(["\0".join(parts) for parts in zip(*columns, strict=True)])
    return torch.from_numpy(np.unique(joined, return_inverse=True)[1].astype(np.int64))


def _held(table: Any, y: Tensor, layout: Layout, owner: Tensor | None, reading: Reading, name: str) -> Tensor:
    """The rows that test: a stratified fifth, or the latest fifth of each id."""
    count = len(y)
    if count < 5:
        raise DataError(f"{name}: {count} rows, expected at least 5, a fifth of which is held out for testing.")
    time = reading.columns.time
    if not time:
        draw = seeds.generator(SPLIT_SEED, 0, seeds.SERVER, "split")
        return stratified(strata_of(y, layout.facts)[0], round(TEST_SHARE * count), draw)
    column = table.column(time)
    if column.null_count:
        raise DataError(f"{name}, column {time!r}: the time is missing in {column.null_count} rows: drop those rows.")
    values = column.to_pylist()
    odd = [value for value in values if isinstance(value, str) and not ISO.match(value)]
    if odd:
        raise DataError(
            f"{name}, column {time!r}: {odd[0]!r} cannot be put in order: write dates as 2031-12-24, or name a "
            "column of "
            "numbers as the time."
        )
    order = torch.tensor(sorted(range(count), key=values.__getitem__), dtype=torch.int64)
    groups = torch.zeros(count, dtype=torch.int64) if owner is None else owner
    held = []
    for group in torch.unique(groups):
        rows = order[groups[order] == group]
        held.append(rows[len(rows) - round(TEST_SHARE * len(rows)) :])
    return torch.cat(held).sort().values


SUMMARIES = {
    "csv": "a table with a header; [data.columns] says which column is what",
    "parquet": "such a table in an Apache Parquet file",
    "jsonl": "such a table, a JSON object a line",
}
SOURCES = {
    form: Source(form=f"{form}:FILE", summary=summary, read=partial(load, form), columns=True)
    for form, summary in SUMMARIES.items()
}
