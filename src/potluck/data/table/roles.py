"""What the columns of a table seem to be, for somebody who has not said it yet: guesses to be looked over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from potluck.core.errors import DataError
from potluck.data.dataset import is_number
from potluck.data.table.columns import Columns
from potluck.data.table.layout import MOST_CLASSES
from potluck.data.table.survey import WORD

if TYPE_CHECKING:
    import pyarrow as pa

TARGETS = ("target", "label", "labels", "class", "y", "outcome", "cnt", "count", "price", "value", "category")
IDS = ("id", "user", "user_id", "device", "device_id", "client", "client_id", "writer", "station", "customer", "site")
MOST_CATEGORIES = 31
"""A column of no more different whole numbers is taken for names: days of a month, hours of a day."""
MOST_GUESSED_NAMES = 50
TOO_CLOSE = 0.95
"""A column that goes so closely with the target may be known only afterwards."""
LONGEST_NAME = 60
LONG_TEXT = 25
"""Letters that a cell of text has on average, and a name has not."""
LEAST_ROWS_AN_ID, MOST_IDS = 5, 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Roles:
    """The columns as they seem to be, and a line about each that is left out or taken as something special."""

    columns: Columns
    task: str
    devices: int
    """How many ids there are; 0: no column names any."""
    told: tuple[str, ...]


def has_header(names: Sequence[str]) -> bool:
    """Whether the first row of a csv seems to name its columns: no number among the names, and no long text."""
    return not any(is_number(name) or len(name) > LONGEST_NAME for name in names)


def guess(table: pa.Table, where: str, target: str = "", ids: Sequence[str] = ()) -> Roles:
    """What the columns seem to be. Raises DataError for a target that is not there."""
    names: list[str] = table.column_names
    wanted = target or next((name for name in names if name.lower() in TARGETS), names[-1])
    if wanted not in names:
        raise DataError(f"{where}: there is no column {wanted!r} (columns: {', '.join(names)}).")
    told, drop, categorical, texts, time, missing = [], [], [], [], "", False
    owners = list(ids) or [name for name in names if name.lower() in IDS and _names_devices(table, name)][:1]
    for name in names:
        if name == wanted or name in owners:
            continue
        column = table.column(name)
        missing = missing or bool(column.null_count)
        kind, different = str(column.type), len(column.unique())
        if "date" in kind or "timestamp" in kind:
            drop.append(name)
            time = time or name
            told.append(
                f"{name}: dates" + (": taken as the time, the latest fifth tests" if time == name else ", dropped")
            )
        elif different <= 1:
            drop.append(name)
            told.append(f"{name}: the same in all rows, dropped")
        elif kind in ("string", "large_string"):
            if _is_long(column):
                texts.append(name)
            elif different > min(MOST_GUESSED_NAMES, table.num_rows // 2):
                drop.append(name)
                told.append(f"{name}: {different:,} different names, dropped")
        elif "int" in kind and different <= MOST_CATEGORIES and different > 2:
            categorical.append(name)
            told.append(f"{name}: {different} different whole numbers, taken as names")
        elif "int" in kind and different == table.num_rows:
            drop.append(name)
            told.append(f"{name}: another whole number in each row, dropped")
    task = _task(table.column(wanted))
    told += [
        f"{name}: goes with the target ({close:.2f}); drop it if it is only known afterwards"
        for name, close in _close(table, wanted, [one for one in names if one not in (wanted, *owners, *drop, *texts)])
    ]
    if texts:
        told.append(f"{texts[0]}: text, which is what is learned from; all other columns are left")
    columns = Columns(
        target=wanted,
        text=texts[0] if texts else "",
        drop=[] if texts else drop,
        categorical=[] if texts else categorical,
        id=owners[0] if len(owners) == 1 else owners,
        time=time,
        missing="impute" if missing and not texts else "error",
    )
    joined = {tuple(row) for row in zip(*(table.column(name).to_pylist() for name in owners), strict=True)}
    return Roles(columns=columns, task=task, devices=len(joined) if owners else 0, told=tuple(told))


def _close(table: pa.Table, target: str, names: Sequence[str]) -> list[tuple[str, float]]:
    """The number columns whose correlation with a number target is too good, and how good."""
    found = []
    wanted = table.column(target)
    if not _is_numeric(wanted):
        return []
    y = np.array(wanted.to_numpy(), dtype=np.float64)
    for name in names:
        column = table.column(name)
        if _is_numeric(column):
            x = np.array(column.to_numpy(), dtype=np.float64)
            there = np.isfinite(x) & np.isfinite(y)
            if there.sum() > LEAST_ROWS_AN_ID and x[there].std() > 0 and y[there].std() > 0:
                close = float(abs(np.corrcoef(x[there], y[there])[0, 1]))
                found += [(name, close)] if close >= TOO_CLOSE else []
    return found


def _is_numeric(column: Any) -> bool:
    return any(part in str(column.type) for part in ("int", "float", "double"))


def _names_devices(table: pa.Table, name: str) -> bool:
    different = len(table.column(name).unique())
    return 1 < different <= MOST_IDS and table.num_rows >= LEAST_ROWS_AN_ID * different


def _is_long(column: Any) -> bool:
    cells = [str(cell) for cell in column.to_pylist() if cell is not None][:1000]
    words = [len(WORD.findall(cell)) for cell in cells]
    return bool(cells) and sum(map(len, cells)) / len(cells) >= LONG_TEXT and sum(words) / len(words) >= 3


def _task(column: Any) -> str:
    kind = str(column.type)
    if kind in ("string", "large_string", "bool"):
        return "classification"
    return "classification" if "int" in kind and len(column.unique()) <= MOST_CLASSES else "regression"
