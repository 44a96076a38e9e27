"""csv, parquet and jsonl files as Arrow tables; what is wrong with one is told with file, column, row and remedy."""

from __future__ import annotations

import codecs
import difflib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potluck.core.errors import DataError, MissingExtraError
from potluck.data.table.columns import Columns

if TYPE_CHECKING:
    import pyarrow as pa

DELIMITERS = (",", ";", "\t", "|")
SPREADSHEETS = {".xlsx": "a spreadsheet", ".xls": "a spreadsheet", ".ods": "a spreadsheet", ".zip": "an archive"}
BLOCK = 2**26
"""Bytes of a csv by which its columns' types are told."""


def read(path: Path, columns: Columns, form: str) -> pa.Table:
    """The table of a file of the form csv, parquet or jsonl. Raises DataError, MissingExtraError without pyarrow."""
    try:
        import pyarrow as pa  # noqa: PLC0415 - an optional package, loaded where it is needed
    except ImportError as error:
        raise MissingExtraError(f"the source {form!r}", "lab") from error
    if path.suffix.lower() in SPREADSHEETS:
        raise DataError(f"{path}: {SPREADSHEETS[path.suffix.lower()]}, not {form}: save it as csv, in UTF-8.")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty, expected a header and rows.")
    try:
        found = {"csv": _csv, "parquet": _parquet, "jsonl": _jsonl}[form](path, columns)
    except DataError:
        raise
    except UnicodeError as error:
        raise DataError(_encoding(path, columns, str(error))) from error
    except (pa.ArrowException, OSError, ValueError) as error:
        text = " ".join(str(error).split())
        if "UTF8" in text or "utf-8" in text.lower():
            raise DataError(_encoding(path, columns, text)) from error
        raise DataError(f"{path}: cannot be read as {form} ({text[:200]}): mend or export it again.") from error
    if found.num_rows == 0:
        raise DataError(f"{path}: a header without rows, expected at least one row.")
    _require_names(path, found)
    return found


def _encoding(path: Path, columns: Columns, reason: str) -> str:
    return (
        f"{path}: not in {columns.encoding} ({reason[:120]}): save it as UTF-8, or say its own encoding, such as "
        '[data.columns] encoding = "cp1252".'
    )


def _csv(path: Path, columns: Columns) -> Any:
    from pyarrow import csv  # noqa: PLC0415 - an optional package, loaded where it is needed

    encoding, first, skipped = _opening(path, columns)
    delimiter = columns.delimiter or _delimiter(first)
    if len(delimiter) != 1:
        raise DataError(f'{path}: [data.columns] delimiter = "{delimiter}", expected one character.')
    bad: list[tuple[int, int, int]] = []

    def uneven(row: Any) -> str:
        bad.append((row.number or 0, row.actual_columns, row.expected_columns))
        return "skip"

    read_options = csv.ReadOptions(
        encoding=encoding,
        column_names=columns.names or None,
        skip_rows=skipped,
        block_size=BLOCK,
        use_threads=False,  # without, rows are not numbered
    )
    parse = csv.ParseOptions(delimiter=delimiter, invalid_row_handler=uneven, newlines_in_values=True)
    convert = csv.ConvertOptions(
        decimal_point=columns.decimal, strings_can_be_null=True, null_values=["", "NA", "N/A", "null", "NULL", "None"]
    )
    found = csv.read_csv(path, read_options=read_options, parse_options=parse, convert_options=convert)
    odd = [name for name, kind in zip(found.column_names, found.schema.types, strict=True) if str(kind) == "binary"]
    if odd:
        raise DataError(_encoding(path, columns, f"column {odd[0]!r}"))
    if bad:
        row, cells, wanted = bad[0]
        raise DataError(
            f"{path}, row {row}: {cells} cells, expected {wanted} as in the first row ({len(bad)} such rows): "
            "mend them, "
            f"quote cells that hold {delimiter!r}, or set [data.columns] delimiter."
        )
    if found.num_columns == 1 and len(columns.names) != 1:
        name = found.column_names[0]
        others = [mark for mark in DELIMITERS if mark != delimiter and mark in name]
        if others:
            raise DataError(
                f"{path}: one column {name[:60]!r} with the delimiter {delimiter!r}: set [data.columns] delimiter = "
                f"{others[0]!r}."
            )
    return found


def _opening(path: Path, columns: Columns) -> tuple[str, str, int]:
    """(the encoding, the header, lines before it): a byte-order mark and a spreadsheet's ``sep=;`` are understood."""
    with path.open("rb") as stream:
        start = stream.read(2**16)
    encoding = columns.encoding
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    elif b"\0" in start[:1000]:
        raise DataError(f"{path}: holds zero bytes, so it is no csv in {encoding}: export it as csv, in UTF-8.")
    try:
        lines = start.decode(encoding, errors="ignore").removeprefix("\ufeff").splitlines()
    except LookupError:
        raise DataError(
            f'{path}: [data.columns] encoding = "{encoding}" is unknown: expected such as "cp1252".'
        ) from None
    if not any(line.strip() for line in lines):
        raise DataError(f"{path}: only blank lines, expected a header and rows.")
    hint = lines[0].lower().startswith("sep=")
    return encoding, lines[1] if hint and len(lines) > 1 else lines[0], int(hint)


def _delimiter(header: str) -> str:
    """The delimiter that the header holds most often, outside of quotes."""
    outside = "".join(header.split('"')[::2])
    return max(DELIMITERS, key=lambda mark: (outside.count(mark), -DELIMITERS.index(mark)))


def _parquet(path: Path, columns: Columns) -> Any:
    from pyarrow import parquet  # noqa: PLC0415 - an optional package, loaded where it is needed

    return parquet.read_table(path)


def _jsonl(path: Path, columns: Columns) -> Any:
    from pyarrow import json  # noqa: PLC0415 - an optional package, loaded where it is needed

    return json.read_json(path, read_options=json.ReadOptions(block_size=BLOCK))


def _require_names(path: Path, found: Any) -> None:
    """Raises DataError for columns without a name, or two of one name."""
    twice = [name for name, many in Counter(found.column_names).items() if many > 1]
    if twice:
        raise DataError(f"{path}: {twice[0]!r} names two columns, expected each name once: rename one of them.")
    if "" in found.column_names:
        place = found.column_names.index("") + 1
        raise DataError(f"{path}: column {place} has no name: give it one in the header.")


def require_columns(path: str, there: list[str], columns: Columns) -> None:
    """Raises DataError for a name that the table does not have, or a column that is two things."""
    if not columns.targets:
        raise DataError(f'{path}: say what is to be learned: [data.columns] target = "..." (columns: {_few(there)}).')
    roles = {
        "target": columns.targets,
        "text": [columns.text] if columns.text else [],
        "features": columns.features,
        "drop": columns.drop,
        "categorical": columns.categorical,
        "id": columns.ids,
        "time": [columns.time] if columns.time else [],
    }
    for role, names in roles.items():
        for name in names:
            if name not in there:
                close = difflib.get_close_matches(name, there, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"columns: {_few(there)}"
                raise DataError(f"{path}: there is no column {name!r} ([data.columns] {role}); {hint}")
    for name in columns.targets:
        for role in ("text", "features", "drop", "categorical"):
            if name in roles[role]:
                raise DataError(f"{path}: the column {name!r} is the target and in {role}: it can be one of them only.")


def _few(names: list[str]) -> str:
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
