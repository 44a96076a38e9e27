"""By what rows of a table are encoded: made of a survey, the same for everybody, kept with a run.

A number is one feature, standardised later like any other; a name is one of several 0/1 features, the last of which
stands for names that the survey did not see. A missing number is the mean, with a 0/1 feature beside it that says so;
a missing name is an unknown one. Text is a row of token numbers: 0 behind its end, 1 for a token that is not known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from potluck.core.errors import DataError
from potluck.core.types import TargetFacts
from potluck.data.table.columns import Columns
from potluck.data.table.survey import MOST_NAMES, Survey, floats, strings, tokens_of

if TYPE_CHECKING:
    import pyarrow as pa

PADDING, UNKNOWN, FIRST_TOKEN = 0, 1, 2
MOST_CLASSES = 50
"""A target of more different whole numbers may be a number to predict."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The columns in their order, and what is known of each."""

    task: str
    targets: tuple[str, ...]
    classes: tuple[str, ...]
    """The names of the classes, sorted; of other tasks none."""
    numbers: Mapping[str, tuple[float, bool]]
    """Of each column of numbers its mean, and whether a mark says where it is missing."""
    names: Mapping[str, tuple[str, ...]]
    """Of each column of names, those that are known, sorted."""
    order: tuple[str, ...]
    """All feature columns, in the order of the table."""
    text: str
    tokens: tuple[str, ...]
    """The known tokens of the text, the most frequent first."""

    @property
    def vocabulary(self) -> int:
        """How many token numbers there are; 0 without text."""
        return FIRST_TOKEN + len(self.tokens) if self.text else 0

    @property
    def features(self) -> tuple[str, ...]:
        """What each feature is."""
        made: list[str] = []
        for name in self.order:
            if name in self.numbers:
                made += [name, f"{name} is missing"] if self.numbers[name][1] else [name]
            else:
                made += [f"{name} = {value}" for value in self.names[name]] + [f"{name} is unknown"]
        return tuple(made)

    @property
    def unscaled(self) -> tuple[bool, ...]:
        """Which features are 0 or 1, and stay so."""
        made: list[bool] = []
        for name in self.order:
            if name in self.numbers:
                made += [False, True] if self.numbers[name][1] else [False]
            else:
                made += [True] * (len(self.names[name]) + 1)
        return tuple(made)

    @property
    def facts(self) -> TargetFacts:
        """What is known of the targets."""
        if self.task == "classification":
            return TargetFacts(outputs=len(self.classes), names=self.classes)
        return TargetFacts(outputs=len(self.targets), names=self.targets)

    def as_table(self) -> dict[str, Any]:
        """The same as plain values, for a file."""
        return asdict(self)

    @classmethod
    def of_table(cls, table: Mapping[str, Any]) -> Layout:
        """What ``as_table`` gave, after a file."""
        return cls(
            **{key: tuple(table[key]) for key in ("targets", "classes", "order", "tokens")},
            task=table["task"],
            text=table["text"],
            numbers={name: (float(mean), bool(mark)) for name, (mean, mark) in table["numbers"].items()},
            names={name: tuple(known) for name, known in table["names"].items()},
        )


def layout_of(found: Survey, columns: Columns, there: Sequence[str], where: str, task: str = "") -> Layout:
    """The layout of what a survey has seen. Raises DataError for what cannot be learned from: column and remedy."""
    targets = columns.targets
    _require_whole(found, columns, where)
    kind = _task(found, targets, task, where)
    classes = _classes(found, targets[0], where) if kind == "classification" else ()
    order = tuple(name for name in there if name in found.numbers or name in found.names)
    order = tuple(name for name in order if name not in targets)
    if not columns.text and not order:
        raise DataError(f"{where}: no column is left to learn from: shorten [data.columns] drop, or name features.")
    if columns.text and not found.tokens:
        raise DataError(f"{where}, column {columns.text!r}: holds no text at all.")
    for name in order:
        _require_of_use(found, name, where, told=name in columns.categorical)
    ranked = sorted(found.tokens.items(), key=lambda pair: (-pair[1], pair[0]))
    return Layout(
        task=kind,
        targets=tuple(targets),
        classes=classes,
        numbers={name: (found.numbers[name].mean, found.missing[name] > 0) for name in order if name in found.numbers},
        names={name: tuple(sorted(found.names[name], key=_sortable)) for name in order if name in found.names},
        order=order,
        text=columns.text,
        tokens=tuple(token for token, _ in ranked[: columns.vocabulary - FIRST_TOKEN]),
    )


def _sortable(name: str) -> tuple[int, float, str]:
    """Numbers by their size, before text."""
    try:
        return 0, float(name), name
    except ValueError:
        return 1, 0.0, name


def _require_whole(found: Survey, columns: Columns, where: str) -> None:
    """Raises DataError for empty cells that nobody said what to do with, counted by column."""
    empty = {name: many for name, many in found.missing.items() if many}
    empty |= {name: one.missing for name, one in found.numbers.items() if one.missing}
    for name in columns.targets:
        if name in empty:
            raise DataError(
                f"{where}, column {name!r}: the target is missing in {empty[name]} of {found.rows} rows: drop "
                "those rows."
            )
    empty.pop(columns.text, None)
    if empty and columns.missing == "error":
        counted = ", ".join(f"{name!r} {many}" for name, many in sorted(empty.items(), key=lambda pair: -pair[1])[:8])
        raise DataError(
            f"{where}: cells are missing in {found.rows} rows: {counted}. Fill them, drop the columns, or set "
            '[data.columns] missing = "impute".'
        )


def _task(found: Survey, targets: Sequence[str], asked: str, where: str) -> str:
    named = [name for name in targets if name in found.names]
    if named:
        if len(targets) > 1:
            raise DataError(f"{where}, column {named[0]!r}: one of several targets, so it must hold numbers.")
        if asked not in ("", "classification"):
            raise DataError(f"{where}, column {named[0]!r}: holds names, so the task cannot be {asked!r}.")
        whole = all(name.lstrip("-").isdigit() for name in found.names[named[0]])
        if not asked and whole and len(found.names[named[0]]) > MOST_CLASSES:
            raise DataError(
                f"{where}, column {named[0]!r}: {len(found.names[named[0]])} different whole numbers, which may "
                "be classes "
                'or numbers to predict: set [task] kind = "regression", or "classification".'
            )
        return "classification"
    if asked:
        return asked
    marks = all(one.low >= 0 and one.high <= 1 for one in (found.numbers[name] for name in targets))
    return "multilabel" if marks and len(targets) > 1 else "regression"


def _classes(found: Survey, target: str, where: str) -> tuple[str, ...]:
    names = found.names[target]
    if len(names) < 2:
        only = next(iter(names), "empty")
        raise DataError(
            f"{where}, column {target!r}: the target is {only!r} in all rows, expected two classes at least."
        )
    if len(names) > MOST_NAMES:
        raise DataError(f"{where}, column {target!r}: {len(names)} different classes, expected at most {MOST_NAMES}.")
    return tuple(sorted(names, key=_sortable))


def _require_of_use(found: Survey, name: str, where: str, *, told: bool) -> None:
    """Raises DataError for a column that says nothing, or that says another thing in each row."""
    if name in found.names:
        kinds = len(found.names[name])
        if kinds > MOST_NAMES or (not told and found.rows > 20 and kinds > found.rows // 2):
            raise DataError(
                f"{where}, column {name!r}: {kinds} different names in {found.rows} rows, too many for "
                "categories: name it "
                "in [data.columns] drop, or as text or id."
            )
        same, only = kinds <= 1 and not found.missing[name], next(iter(found.names[name]), "")
    else:
        one = found.numbers[name]
        same, only = one.low == one.high and not one.missing, f"{one.low:g}"
    if same:
        raise DataError(f"{where}, column {name!r}: {only!r} in all rows, so it says nothing: name it in drop.")


def encode(table: pa.Table, layout: Layout, columns: Columns, where: str, header: int = 1) -> tuple[Tensor, Tensor]:
    """Samples (n, features) float32, or (n, length) int64 tokens, and targets. Raises DataError."""
    y = _targets(table, layout, where, header)
    if layout.text:
        return _tokens(table.column(layout.text), layout, columns, where), y
    parts: list[Any] = []
    for name in layout.order:
        if name in layout.numbers:
            values = floats(table.column(name), where, name, header)
            mean, marked = layout.numbers[name]
            absent = np.isnan(values)
            parts.append(np.where(absent, mean, values)[:, None])
            parts += [absent[:, None]] if marked else []
        else:
            known = {value: place for place, value in enumerate(layout.names[name])}
            places = np.array([known.get(value, len(known)) for value in strings(table.column(name), where, name)])
            parts.append(np.eye(len(known) + 1, dtype=np.float32)[places])
    return torch.from_numpy(np.concatenate(parts, axis=1).astype(np.float32)), y


def _tokens(column: Any, layout: Layout, columns: Columns, where: str) -> Tensor:
    number = {token: place + FIRST_TOKEN for place, token in enumerate(layout.tokens)}
    texts = strings(column, where, layout.text)
    made = np.full((len(texts), columns.length), PADDING, dtype=np.int64)
    for row, text in enumerate(texts):
        known = [number.get(token, UNKNOWN) for token in tokens_of(text, columns)]
        made[row, : len(known)] = known
    return torch.from_numpy(made)


def _targets(table: pa.Table, layout: Layout, where: str, header: int) -> Tensor:
    if layout.task == "classification":
        name = layout.targets[0]
        place = {value: at for at, value in enumerate(layout.classes)}
        found = strings(table.column(name), where, name)
        for row, value in enumerate(found):
            if value not in place:
                raise DataError(
                    f"{where}, column {name!r}, row {row + 1 + header}: the class {value!r} is none of "
                    f"{', '.join(layout.classes[:12])}."
                )
        return torch.tensor([place[value] for value in found], dtype=torch.int64)
    values = np.stack([floats(table.column(name), where, name, header) for name in layout.targets], axis=1)
    kind = np.uint8 if layout.task == "multilabel" else np.float32
    return torch.from_numpy(values.astype(kind))
