"""What is in a table, as counts and sums that add up: of all rows, or of each device's rows and then together.

A survey says of each number column how many values there are, their sum and the sum of their squares; of each column of
names which there are, and how often; of text how often each token. It holds no row. Surveys of the same rows, shared
out in any way, add up to the same counts, and to the same sums up to rounding.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from potluck.core.errors import DataError
from potluck.data.dataset import is_number
from potluck.data.table.columns import Columns
from potluck.data.table.reading import require_columns

if TYPE_CHECKING:
    import pyarrow as pa

MOST_NAMES = 1000
"""A column of more different names is none of categories."""
WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(slots=True, kw_only=True)
class Numbers:
    """Sums over a column of numbers; missing values are counted apart."""

    count: int = 0
    missing: int = 0
    total: float = 0.0
    squares: float = 0.0
    low: float = math.inf
    high: float = -math.inf

    def add(self, other: Numbers) -> None:
        self.count, self.missing = self.count + other.count, self.missing + other.missing
        self.total, self.squares = self.total + other.total, self.squares + other.squares
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else 0.0

    @property
    def deviation(self) -> float:
        """Of all values; 1 where they hardly vary."""
        found = math.sqrt(max(0.0, self.squares / self.count - self.mean**2)) if self.count else 0.0
        return found if found > 1e-6 * (1e-6 + abs(self.mean)) else 1.0


@dataclass(slots=True, kw_only=True)
class Survey:
    """What is in a table: see above."""

    rows: int = 0
    numbers: dict[str, Numbers] = field(default_factory=dict)
    names: dict[str, Counter[str]] = field(default_factory=dict)
    missing: Counter[str] = field(default_factory=Counter)
    """How many cells of each column are empty."""
    tokens: Counter[str] = field(default_factory=Counter)

    def add(self, other: Survey, where: str) -> None:
        """Adds another table's survey. Raises DataError where a column is of numbers here and of names there."""
        if self.rows and (self.numbers.keys(), self.names.keys()) != (other.numbers.keys(), other.names.keys()):
            odd = sorted(self.numbers.keys() ^ other.numbers.keys() or self.names.keys() ^ other.names.keys())
            raise DataError(f"{where}: column {odd[0]!r} is of another kind than in the other tables: make them alike.")
        self.rows += other.rows
        for name, found in other.numbers.items():
            self.numbers.setdefault(name, Numbers()).add(found)
        for name, counted in other.names.items():
            self.names.setdefault(name, Counter()).update(counted)
        self.missing.update(other.missing)
        self.tokens.update(other.tokens)

    def as_table(self) -> dict[str, Any]:
        """The same as plain values, for a message."""
        return {
            "rows": self.rows,
            "numbers": {
                name: [one.count, one.missing, one.total, one.squares, one.low, one.high]
                for name, one in self.numbers.items()
            },
            "names": {name: dict(counted) for name, counted in self.names.items()},
            "missing": dict(self.missing),
            "tokens": dict(self.tokens),
        }

    @classmethod
    def of_table(cls, table: Mapping[str, Any]) -> Survey:
        """What ``as_table`` gave."""
        keys = ("count", "missing", "total", "squares", "low", "high")
        return cls(
            rows=table["rows"],
            numbers={n: Numbers(**dict(zip(keys, v, strict=True))) for n, v in table["numbers"].items()},
            names={name: Counter(counted) for name, counted in table["names"].items()},
            missing=Counter(table["missing"]),
            tokens=Counter(table["tokens"]),
        )


def survey(table: pa.Table, columns: Columns, where: str, *, header: int = 1, task: str = "") -> Survey:
    """What is in a table. Raises DataError: file, column, row and remedy. ``header``: lines before the first row."""
    require_columns(where, table.column_names, columns)
    found = Survey(rows=table.num_rows)
    for name in used(table.column_names, columns):
        column = table.column(name)
        if column.null_count:
            found.missing[name] += column.null_count
        if name == columns.text:
            for text in strings(column, where, name):
                found.tokens.update(tokens_of(text, columns))
        elif of_names(column, name, columns, task):
            found.names[name] = Counter(value for value in strings(column, where, name) if value)
        else:
            found.numbers[name] = _numbers(floats(column, where, name, header))
    return found


def used(there: Sequence[str], columns: Columns) -> list[str]:
    """The columns that samples and targets are made of, in the order of the table."""
    beside = {*columns.drop, *columns.ids, columns.time}
    if columns.text:
        return [name for name in there if name == columns.text or name in columns.targets]
    kept = set(columns.features) or {name for name in there if name not in beside}
    return [name for name in there if name in kept or name in columns.targets]


def tokens_of(text: str, columns: Columns) -> list[str]:
    """The first tokens of a text: characters, or words in lower case."""
    return (
        list(text[: columns.length]) if columns.tokens == "characters" else WORD.findall(text.lower())[: columns.length]
    )


def of_names(column: Any, name: str, columns: Columns, task: str) -> bool:
    """Whether a column holds names, not numbers: text and truths, or what ``categorical`` or a class target says."""
    import pyarrow as pa  # noqa: PLC0415 - an optional package, loaded where it is needed

    if name in columns.categorical:
        return True
    kind = column.type
    if name in columns.targets:
        whole = pa.types.is_integer(kind) and len(columns.targets) == 1
        return _is_text(kind) or (whole and task in ("", "classification")) or task == "classification"
    return _is_text(kind)


def _is_text(kind: Any) -> bool:
    import pyarrow as pa  # noqa: PLC0415 - an optional package, loaded where it is needed

    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_dictionary(kind)
    )


def strings(column: Any, where: str, name: str) -> list[str]:
    """The cells as text; an empty one is "". A number that is a name is written without a point."""
    made = ["" if value is None else _text(value) for value in column.to_pylist()]
    if any("\ufffd" in value for value in made[:1000]):
        raise DataError(
            f"{where}, column {name!r}: holds characters that no encoding gives: say [data.columns] encoding."
        )
    return made


def _text(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def floats(column: Any, where: str, name: str, header: int = 1) -> Any:
    """The cells as float64, a missing one NaN. Raises DataError for dates, text and what is infinite."""
    import pyarrow as pa  # noqa: PLC0415 - an optional package, loaded where it is needed

    kind = column.type
    if pa.types.is_temporal(kind):
        raise DataError(f"{where}, column {name!r}: holds dates ({kind}): name it in [data.columns] drop, or as time.")
    if pa.types.is_null(kind):
        raise DataError(f"{where}, column {name!r}: every cell is empty: name it in [data.columns] drop.")
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        _refuse_text(column, where, name, header)
    values = np.array(column.cast(pa.float64()).to_numpy(), dtype=np.float64)
    infinite = np.flatnonzero(np.isinf(values))
    if len(infinite):
        raise DataError(
            f"{where}, column {name!r}, row {int(infinite[0]) + 1 + header}: an infinite number ({len(infinite)} "
            "of them): "
            "clean or drop those rows."
        )
    return values


def _refuse_text(column: Any, where: str, name: str, header: int) -> None:
    for row, value in enumerate(column.to_pylist()):
        if value is not None and not is_number(str(value)):
            raise DataError(
                f"{where}, column {name!r}, row {row + 1 + header}: {str(value)[:40]!r} is no number: mend it, or "
                "name the "
                "column in [data.columns] categorical or drop."
            )


def _numbers(values: Any) -> Numbers:
    there = values[~np.isnan(values)]
    if not len(there):
        return Numbers(missing=len(values))
    return Numbers(
        count=len(there),
        missing=len(values) - len(there),
        total=math.fsum(there),
        squares=math.fsum(there * there),
        low=float(there.min()),
        high=float(there.max()),
    )


def mixed(column: Any, where: str, name: str, header: int = 1) -> None:
    """Raises DataError for a column of text most of whose cells are numbers: a few cells spoil it."""
    values = [value for value in column.to_pylist() if isinstance(value, str) and value.strip()]
    odd = [value for value in values if not is_number(value)]
    if not values or not odd:
        return
    commas = [value for value in values if re.fullmatch(r"-?\d+,\d+", value.strip())]
    if 2 * len(commas) > len(values):
        raise DataError(
            f'{where}, column {name!r}: numbers with a comma, such as {commas[0]!r}: set [data.columns] decimal = ",".'
        )
    if 2 * len(odd) < len(values):
        row = column.to_pylist().index(odd[0]) + 1 + header
        raise DataError(
            f"{where}, column {name!r}, row {row}: {odd[0][:40]!r} among numbers ({len(odd)} such cells of "
            f"{len(values)}): "
            "mend them, leave them empty, or name the column in [data.columns] categorical."
        )


def total(surveys: Iterable[tuple[str, Survey]]) -> Survey:
    """All surveys, by where they are from, added up in their order."""
    found = Survey()
    for where, one in surveys:
        found.add(one, where)
    return found
