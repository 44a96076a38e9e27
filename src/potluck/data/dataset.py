"""What every source returns: arrays, checked once, so that nothing behind this file meets damaged data."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from potluck.core import seeds
from potluck.core.errors import DataError

Array = NDArray[Any]

SPLIT_SEED = 20_240
"""The seed of every split that a source makes itself: a constant, so that all runs are judged on the same images."""

TEST_SHARE = 0.2
"""The share that is held out where a source brings no test data of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Training and test data, read and checked.

    ``x_train`` (N, C, H, W) or (N, features), uint8 or float32; ``y_train`` (N,) int64 in 0..classes-1; ``x_test`` and
    ``y_test`` likewise. ``domain_train`` and ``domain_test`` name each sample's domain, ``owner_train`` numbers the
    natural ids of a column from 0; all int64. ``own_test`` says that the source brought its test data, instead of
    leaving it to the fixed split.
    """

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    classes: int
    own_test: bool
    domain_train: Tensor | None = None
    domain_test: Tensor | None = None
    owner_train: Tensor | None = None
    class_names: tuple[str, ...] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample, as (channels, height, width), or (features,)."""
        return tuple(self.x_train.shape[1:])


def expanded(where: str) -> str:
    """The path with ``~`` and ``$VARIABLES`` filled in; what is unknown stays as it is."""
    return os.path.expanduser(os.path.expandvars(where))  # noqa: PTH111 - pathlib's raises where a user is unknown


def samples(x: Array, what: str) -> Tensor:
    """Images or rows as a contiguous tensor: uint8 stays uint8, any other number becomes float32, as it stands.

    Values that are not finite are refused.
    """
    if x.dtype.kind not in "buif":
        raise DataError(f"{what} holds values of type {x.dtype}, expected numbers: convert it to uint8 or float32.")
    if x.size == 0:
        raise DataError(f"{what} is empty (shape {x.shape}), expected at least one sample.")
    if x.dtype == np.uint8:
        return torch.from_numpy(np.array(x, dtype=np.uint8, order="C"))
    with np.errstate(over="ignore"):  # what does not fit into float32 is infinite, and refused just below
        values = np.array(x, dtype=np.float32, order="C")
    bad = int(values.size - np.isfinite(values).sum())
    if bad:
        raise DataError(
            f"{what} holds {bad} values that are not finite (NaN or infinite): clean or drop those samples."
        )
    return torch.from_numpy(values)


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
    domain_train: Tensor | None = None,
    domain_test: Tensor | None = None,
    owner_train: Tensor | None = None,
) -> Dataset:
    """A checked data set whose source brings its own test data; ``classes`` left out is the largest label plus one."""
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
    return Dataset(
        name=name,
        x_train=x_train,
        y_train=y_train,
        x_test=x_test,
        y_test=y_test,
        classes=_classes(name, y_train, y_test, classes),
        own_test=True,
        domain_train=domain_train,
        domain_test=domain_test,
        owner_train=owner_train,
        class_names=class_names,
    )


def split_dataset(
    name: str,
    x: Tensor,
    y: Tensor,
    *,
    classes: int | None = None,
    class_names: tuple[str, ...] | None = None,
    domain: Tensor | None = None,
    owner: Tensor | None = None,
) -> Dataset:
    """A checked data set of a source without test data: a fixed, stratified fifth is held out."""
    _check_lengths(name, "", len(x), y=y, domain=domain, id=owner)
    if len(x) < 5:
        raise DataError(f"{name}: {len(x)} samples, expected at least 5, a fifth of which is held out for testing.")
    _classes(name, y, y, classes)
    held = stratified(y, round(TEST_SHARE * len(x)), seeds.generator(SPLIT_SEED, 0, seeds.SERVER, "split"))
    kept = without(len(x), held)
    return Dataset(
        name=name,
        x_train=x[kept],
        y_train=y[kept],
        x_test=x[held],
        y_test=y[held],
        classes=_classes(name, y, y, classes),
        own_test=False,
        domain_train=None if domain is None else domain[kept],
        domain_test=None if domain is None else domain[held],
        owner_train=None if owner is None else owner[kept],
        class_names=class_names,
    )


def fixed_order(count: int) -> Tensor:
    """A constant permutation for sources that come sorted by class, so that their first N samples hold all classes."""
    return torch.randperm(count, generator=seeds.generator(SPLIT_SEED, 0, seeds.SERVER, "order"))


def _check_lengths(
    name: str, part: str, count: int, *, y: Tensor, domain: Tensor | None = None, id: Tensor | None = None
) -> None:
    if count == 0:
        raise DataError(f"{name}: no {part}samples, expected at least one.")
    for what, column in (("labels", y), ("domains", domain), ("ids", id)):
        if column is not None and len(column) != count:
            raise DataError(f"{name}: {count} {part}samples but {len(column)} {what}, expected one for each sample.")


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
