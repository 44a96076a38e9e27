"""What every source returns: arrays, checked once, so that nothing behind this file meets damaged data."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from potluck.core import seeds
from potluck.core.errors import DataError
from potluck.core.types import Inputs, TargetFacts
from potluck.tasks.task import IGNORED, strata_of, told_by

Array = NDArray[Any]

SPLIT_SEED = 20_240
"""The seed of every split that a source makes itself: a constant, so that all runs are judged on the same images."""

TEST_SHARE = 0.2
"""The share that is held out where a source brings no test data of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Training and test data, read and checked.

    ``x_train`` (N, C, H, W), (N, features) or (N, steps, channels), uint8 or float32, or (N, length) int64 tokens of a
    ``vocabulary``. ``y_train`` (N,) int64 classes, (N, labels) uint8 marks, (N, targets) float32 numbers, or
    (N, length) int64 tokens; ``facts`` say how many. ``x_test`` and ``y_test`` likewise. ``domain_train`` and
    ``domain_test`` name each sample's domain, ``owner_train`` numbers the natural ids of a column from 0; all int64.
    ``own_test`` says that the source brought its test data, instead of leaving it to the fixed split.
    """

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    facts: TargetFacts
    own_test: bool
    vocabulary: int = 0
    domain_train: Tensor | None = None
    domain_test: Tensor | None = None
    owner_train: Tensor | None = None
    unscaled: Tensor | None = None
    """Which features are left as they are, bool, (features,): those that are 0 or 1."""
    layout: Mapping[str, Any] | None = None
    """By what rows of a table were encoded (data/table/layout.py)."""

    @property
    def inputs(self) -> Inputs:
        """What a net is given of it."""
        return Inputs(tuple(self.x_train.shape[1:]), self.vocabulary)

    @property
    def task(self) -> str:
        """The task that the targets are of, as their type says."""
        return told_by(self.y_train)


def expanded(where: str) -> str:
    """The path with ``~`` and ``$VARIABLES`` filled in; what is unknown stays as it is."""
    return os.path.expanduser(os.path.expandvars(where))  # noqa: PTH111 - pathlib's raises where a user is unknown


def samples(x: Array, what: str, kind: str = "") -> Tensor:
    """Samples as a contiguous tensor: uint8 stays uint8, any other number becomes float32, tokens int64, as they stand.

    Values that are not finite are refused, but for whole steps of NaN behind the end of a ``series``.
    """
    if x.dtype.kind not in "buif":
        raise DataError(f"{what} holds values of type {x.dtype}, expected numbers: convert it to uint8 or float32.")
    if x.size == 0:
        raise DataError(f"{what} is empty (shape {x.shape}), expected at least one sample.")
    if kind == "tokens":
        if x.dtype.kind not in "ui" or x.ndim != 2:
            raise DataError(f"{what} is {x.dtype} of shape {x.shape}, expected whole numbers (n, length) for tokens.")
        return torch.from_numpy(np.array(x, dtype=np.int64, order="C"))
    if x.dtype == np.uint8:
        return torch.from_numpy(np.array(x, dtype=np.uint8, order="C"))
    with np.errstate(over="ignore"):  # what does not fit into float32 is infinite, and refused just below
        values = np.array(x, dtype=np.float32, order="C")
    bad = int(values.size - np.isfinite(values).sum())
    if bad and kind == "series":
        bad -= _after_the_end(values)
    if bad:
        raise DataError(
            f"{what} holds {bad} values that are not finite (NaN or infinite): clean or drop those samples."
        )
    return torch.from_numpy(values)


def _after_the_end(series: Array) -> int:
    """How many values (n, steps, channels) stand in steps of NaN behind the end of a series; one step is left."""
    absent = np.all(np.isnan(series), axis=2)
    ended: Array = np.logical_and.accumulate(absent[:, ::-1], axis=1)[:, ::-1]
    return int(ended[:, 1:].sum()) * int(series.shape[2])


def labels(y: Array, what: str) -> Tensor:
    """Class labels as int64, (n,); what is not a whole number from 0 on is refused."""
    flat = y.reshape(-1) if y.ndim == 2 and y.shape[1] == 1 else y
    if flat.ndim != 1:
        raise DataError(f"{what} has shape {y.shape}, expected one label per sample: (n,).")
    if flat.dtype.kind not in "ui":
        raise DataError(
            f"{what} has type {y.dtype}, expected whole numbers 0, 1, ...: convert it with astype('int64')."
        )
    if flat.size and flat.min() < 0:
        raise DataError(f"{what} holds the negative label {flat.min()}, expected 0, 1, ...: number the classes from 0.")
    if flat.size and flat.max() > np.iinfo(np.int64).max:
        raise DataError(f"{what} holds the label {flat.max()}, expected 0, 1, ...: number the classes from 0.")
    return torch.from_numpy(np.array(flat, dtype=np.int64))


def targets(
    columns: Mapping[str, Array],
    *,
    task: str = "",
    names: tuple[str, ...] | None = None,
    numbered: bool = False,
) -> tuple[list[Tensor], tuple[str, ...] | None]:
    """Target columns (by what they are called in messages) as tensors of one kind, and the names of their classes.

    ``task`` is what ``[task] kind`` says; without it text and whole numbers are classes, rows of 0 and 1 marks, rows
    of other whole numbers tokens, anything else numbers. Classes that are text, or do not run from 0, are numbered in
    their sorted order and named; with ``names``, labels are those or their places, and if ``numbered``, places.
    """
    found = {what: y.reshape(-1) if y.ndim == 2 and y.shape[1] == 1 else y for what, y in columns.items()}
    for what, y in found.items():
        if y.ndim not in (1, 2):
            raise DataError(f"{what} has shape {y.shape}, expected one label per sample: (n,), or (n, targets).")
        if y.size == 0:
            raise DataError(f"{what} is empty, expected a target for each sample.")
    task = task or _task_of(found)
    if task == "classification" and numbered and names is None:
        return [labels(y, what) for what, y in found.items()], None
    if task == "classification":
        return _numbered(found, names)
    made = []
    for what, y in found.items():
        if y.dtype.kind not in "buif":
            raise DataError(f"{what} has type {y.dtype}, expected numbers for the task {task!r}.")
        if task == "multilabel" and (y.ndim != 2 or not bool(np.isin(y, (0, 1)).all())):
            raise DataError(
                f"{what}, shape {y.shape}: expected rows of 0 and 1, (n, labels), for the task 'multilabel'."
            )
        if task == "next_token" and (y.ndim != 2 or y.dtype.kind not in "ui"):
            raise DataError(f"{what} is {y.dtype} of shape {y.shape}, expected whole numbers (n, length) for tokens.")
        kinds = {"multilabel": np.uint8, "next_token": np.int64}
        made.append(torch.from_numpy(np.array(y, dtype=kinds.get(task, np.float32), order="C")))
    return made, names


def _task_of(columns: Mapping[str, Array]) -> str:
    """The task that these columns are of. Raises DataError where that cannot be told."""
    what, y = next(iter(columns.items()))
    if y.dtype.kind in "US" or (y.dtype.kind in "bui" and y.ndim == 1):
        return "classification"
    if y.dtype.kind in "bui":
        marks = all(bool(np.isin(column, (0, 1)).all()) for column in columns.values())
        return "multilabel" if marks else "next_token"
    if y.dtype.kind != "f":
        raise DataError(f"{what} has type {y.dtype}, expected numbers, or text without Python objects.")
    different = np.unique(y[np.isfinite(y)])
    whole = y.ndim == 1 and different.size > 0 and bool((different == np.round(different)).all())
    if whole and len(different) <= MOST_GUESSED:
        raise DataError(
            f"{what} has type {y.dtype} and holds {len(different)} whole numbers, which may be classes or numbers to "
            'predict: set [task] kind = "classification", or "regression".'
        )
    return "regression"


MOST_GUESSED = 100
"""So many different whole numbers, written as floats, may be classes."""


def _numbered(
    columns: Mapping[str, Array], names: tuple[str, ...] | None
) -> tuple[list[Tensor], tuple[str, ...] | None]:
    """Labels as int64 from 0, and their names where they have some."""
    for what, y in columns.items():
        if y.ndim != 1 or (y.dtype.kind == "f" and not bool((y == np.round(y)).all())):
            raise DataError(
                f"{what} is {y.dtype} of shape {y.shape}, expected one label per sample: (n,), numbers or text."
            )
        if y.dtype.kind not in "buifUS":
            raise DataError(f"{what} has type {y.dtype}, expected whole numbers or text.")
    plain = {what: y.astype(np.int64) if y.dtype.kind in "bf" else y for what, y in columns.items()}
    if any(y.dtype.kind in "US" for y in plain.values()):
        plain = {what: y.astype(str) for what, y in plain.items()}
        known = list(names) if names is not None else sorted({str(v) for y in plain.values() for v in np.unique(y)})
        place = {name: at for at, name in enumerate(known)}
        for what, y in plain.items():
            odd = sorted(set(np.unique(y).tolist()) - place.keys())
            if odd:
                raise DataError(f"{what} holds the label {odd[0]!r}, expected one of {', '.join(known[:12])}.")
        return [torch.tensor([place[str(v)] for v in y], dtype=torch.int64) for y in plain.values()], tuple(known)
    values = np.unique(np.concatenate([np.unique(y).astype(object) for y in plain.values()]))
    if names is not None and all(name.lstrip("-").isdigit() for name in names):  # labels that were numbered anew
        return _numbered({what: y.astype(str) for what, y in plain.items()}, names)
    if names is not None or list(values) == list(range(len(values))):
        return [labels(y, what) for what, y in plain.items()], names
    first, y = next(iter(plain.items()))
    if len(values) > len(y) // 2:
        raise DataError(
            f"{first} holds {len(values)} different labels among {len(y)} samples, expected several samples of each: "
            'is it an id, or a number to predict ([task] kind = "regression")?'
        )
    place_of = {int(value): at for at, value in enumerate(values)}
    made = [torch.tensor([place_of[int(v)] for v in y], dtype=torch.int64) for y in plain.values()]
    return made, tuple(str(value) for value in values)


def ids(column: Array, what: str) -> Tensor:
    """Natural ids (numbers or text) numbered 0, 1, ... in sorted order, int64, (n,)."""
    if column.ndim != 1 or column.dtype.kind not in "buiUS":
        raise DataError(
            f"{what} has type {column.dtype} and shape {column.shape}, expected one number or text a sample."
        )
    return torch.from_numpy(np.unique(column, return_inverse=True)[1].astype(np.int64))


def stratified(keys: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """``count`` positions in which each key has its share, up to rounding; sorted, int64, (count,)."""
    shuffled = torch.randperm(len(keys), generator=generator)
    by_key = shuffled[torch.argsort(keys[shuffled], stable=True)]
    # Evenly spaced picks from the list sorted by key: as many from each key as its length deserves.
    picks = ((2 * torch.arange(count, dtype=torch.int64) + 1) * len(keys)) // (2 * max(count, 1))
    return torch.sort(by_key[picks]).values


def without(count: int, taken: Tensor) -> Tensor:
    """The numbers of 0..count-1 that are not in ``taken``, ascending, int64."""
    left = torch.ones(count, dtype=torch.bool)
    left[taken] = False
    return torch.nonzero(left).reshape(-1)


def dataset(
    name: str,
    x_train: Tensor,
    y_train: Tensor,
    x_test: Tensor,
    y_test: Tensor,
    *,
    classes: int | None = None,
    class_names: tuple[str, ...] | None = None,
    vocabulary: int = 0,
    domain_train: Tensor | None = None,
    domain_test: Tensor | None = None,
    owner_train: Tensor | None = None,
    unscaled: Tensor | None = None,
    layout: Mapping[str, Any] | None = None,
    own_test: bool = True,
) -> Dataset:
    """A checked data set whose source brings its own test data.

    ``classes`` left out is the largest label plus one; ``class_names`` name classes, labels, target columns or tokens.
    """
    _check_lengths(name, "training ", len(x_train), y=y_train, domain=domain_train, id=owner_train)
    _check_lengths(name, "test ", len(x_test), y=y_test, domain=domain_test)
    if x_train.shape[1:] != x_test.shape[1:]:
        raise DataError(
            f"{name}: training samples have shape {tuple(x_train.shape[1:])} and test samples "
            f"{tuple(x_test.shape[1:])}, expected the same."
        )
    if x_train.dtype != x_test.dtype:  # bytes are divided by 255 later, so a mixture would be on two scales
        raise DataError(
            f"{name}: training samples are {x_train.dtype} and test samples {x_test.dtype}, expected one type for both."
        )
    _check_tokens(name, vocabulary, x_train, x_test)
    return Dataset(
        name=name,
        x_train=x_train,
        y_train=_column(y_train),
        x_test=x_test,
        y_test=_column(y_test),
        facts=_facts(name, _column(y_train), _column(y_test), classes, class_names, vocabulary),
        own_test=own_test,
        vocabulary=vocabulary,
        domain_train=domain_train,
        domain_test=domain_test,
        owner_train=owner_train,
        unscaled=unscaled,
        layout=layout,
    )


def split_dataset(
    name: str,
    x: Tensor,
    y: Tensor,
    *,
    classes: int | None = None,
    class_names: tuple[str, ...] | None = None,
    vocabulary: int = 0,
    domain: Tensor | None = None,
    owner: Tensor | None = None,
) -> Dataset:
    """A checked data set of a source without test data: a fixed, stratified fifth is held out."""
    _check_lengths(name, "", len(x), y=y, domain=domain, id=owner)
    if len(x) < 5:
        raise DataError(f"{name}: {len(x)} samples, expected at least 5, a fifth of which is held out for testing.")
    _check_tokens(name, vocabulary, x)
    y = _column(y)
    facts = _facts(name, y, y, classes, class_names, vocabulary)
    draw = seeds.generator(SPLIT_SEED, 0, seeds.SERVER, "split")
    held = stratified(strata_of(y, facts)[0], round(TEST_SHARE * len(x)), draw)
    kept = without(len(x), held)
    return Dataset(
        name=name,
        x_train=x[kept],
        y_train=y[kept],
        x_test=x[held],
        y_test=y[held],
        facts=facts,
        own_test=False,
        vocabulary=vocabulary,
        domain_train=None if domain is None else domain[kept],
        domain_test=None if domain is None else domain[held],
        owner_train=None if owner is None else owner[kept],
    )


def retargeted(found: Dataset, task: str) -> Dataset:
    """The data set with its classes read as numbers to predict. Raises DataError where that cannot be."""
    if (found.task, task) != ("classification", "regression"):
        raise DataError(
            f'task.kind = "{task}": the targets of {found.name!r} are of the task {found.task!r}; leave kind out, or '
            "convert them."
        )
    if any(not is_number(name) for name in found.facts.names):
        raise DataError(f'task.kind = "regression": the classes of {found.name!r} are names, not numbers.')
    values = torch.tensor([float(name) for name in found.facts.names] or list(range(found.facts.outputs)))
    y_train, y_test = (values[y].to(torch.float32)[:, None] for y in (found.y_train, found.y_test))
    return replace(found, y_train=y_train, y_test=y_test, facts=TargetFacts(outputs=1))


def is_number(text: str) -> bool:
    """Whether a text is a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def fixed_order(count: int) -> Tensor:
    """A constant permutation for sources that come sorted by class, so that their first N samples hold all classes."""
    return torch.randperm(count, generator=seeds.generator(SPLIT_SEED, 0, seeds.SERVER, "order"))


def _column(y: Tensor) -> Tensor:
    """Numbers as (n, targets), also where there is one target."""
    return y[:, None] if y.is_floating_point() and y.ndim == 1 else y


def _check_lengths(
    name: str, part: str, count: int, *, y: Tensor, domain: Tensor | None = None, id: Tensor | None = None
) -> None:
    if count == 0:
        raise DataError(f"{name}: no {part}samples, expected at least one.")
    for what, column in (("labels", y), ("domains", domain), ("ids", id)):
        if column is not None and len(column) != count:
            raise DataError(f"{name}: {count} {part}samples but {len(column)} {what}, expected one for each sample.")


def _check_tokens(name: str, vocabulary: int, *parts: Tensor) -> None:
    for x in parts:
        if bool(vocabulary) != (x.dtype == torch.int64):
            raise DataError(
                f"{name}: samples of type {x.dtype} and a vocabulary of {vocabulary}: only tokens have one."
            )
        if vocabulary and (int(x.min()) < 0 or int(x.max()) >= vocabulary):
            raise DataError(f"{name}: tokens from {int(x.min())} to {int(x.max())}, expected 0..{vocabulary - 1}.")


def _facts(
    name: str,
    y_train: Tensor,
    y_test: Tensor,
    classes: int | None,
    names: tuple[str, ...] | None,
    vocabulary: int,
) -> TargetFacts:
    """What is known of the targets; both columns must fit it."""
    task = told_by(y_train)
    if y_train.dtype != y_test.dtype or y_train.shape[1:] != y_test.shape[1:]:
        raise DataError(
            f"{name}: training targets are {tuple(y_train.shape[1:])} of {y_train.dtype} and test targets "
            f"{tuple(y_test.shape[1:])} of {y_test.dtype}, expected the same."
        )
    if task == "classification":
        outputs = _classes(name, y_train, y_test, classes)
    elif task == "next_token":
        outputs = classes or vocabulary or 1 + int(max(y_train.max(), y_test.max()))
        for y in (y_train, y_test):
            counted = y[y != IGNORED]
            low, high = (int(counted.min()), int(counted.max())) if counted.numel() else (0, 0)
            if low < 0 or high >= outputs:
                raise DataError(f"{name}: target tokens from {low} to {high}, expected 0..{outputs - 1}.")
    else:
        outputs = y_train.shape[1]
        _check_columns(name, y_train, names)
    if names is not None and len(names) != outputs:
        raise DataError(f"{name}: {len(names)} names for {outputs} classes or targets, expected one each.")
    return TargetFacts(outputs=outputs, names=names or ())


def _check_columns(name: str, y: Tensor, names: tuple[str, ...] | None) -> None:
    """Raises DataError for a target that never varies, or numbers that are not finite."""
    for at in range(y.shape[1]):
        called = f"target {names[at]!r}" if names and at < len(names) else f"target {at}"
        column = y[:, at].double()
        if not bool(column.isfinite().all()):
            raise DataError(f"{name}: {called} holds values that are not finite: clean or drop those samples.")
        if float(column.min()) == float(column.max()):
            raise DataError(f"{name}: {called} is {float(column[0]):g} in all training samples, expected it to vary.")


def _classes(name: str, y_train: Tensor, y_test: Tensor, given: int | None) -> int:
    """The number of classes; both label columns must fit it."""
    top = int(y_train.max())
    classes = top + 1 if given is None else given
    if int(y_train.min()) == top:
        raise DataError(f"{name}: all training samples are of class {top}, expected at least two classes.")
    if given is None and top >= len(y_train):
        raise DataError(
            f"{name}: label {top} among {len(y_train)} training samples, expected labels 0..classes-1: renumber them."
        )
    for part, y in (("training", y_train), ("test", y_test)):
        if int(y.max()) >= classes:
            raise DataError(
                f"{name}: the {part} data hold label {int(y.max())}, which is out of range: expected 0..{classes - 1} "
                f"for {classes} classes."
            )
    return classes
