"""The partition ``files``: what each device has lies in an npz file of its own."""

from __future__ import annotations

import glob
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from potluck.core.errors import DataError
from potluck.data.dataset import Array, Dataset, expanded
from potluck.data.partition.rules import Files
from potluck.data.sources import npz


def with_files(dataset: Dataset, spec: Files, devices: int) -> tuple[Dataset, list[Tensor] | None]:
    """The data set with the files' training data in place of its own, ``owner_train`` being the device.

    Beside it each device's positions in ``x_test``, where the files hold test data; these then replace the source's.
    """
    paths = sorted(Path(path) for path in glob.glob(expanded(spec.files)))  # noqa: PTH207 - pathlib takes no absolute pattern
    if len(paths) != devices:
        raise DataError(
            f"partition 'files': {len(paths)} files match {spec.files!r} for {devices} devices, expected one file each."
        )
    found = [npz.canonical(npz.arrays(path)) for path in paths]
    train = [_pair(arrays, path, npz.TRAIN, dataset) for arrays, path in zip(found, paths, strict=True)]
    owner = torch.arange(devices, dtype=torch.int64).repeat_interleave(torch.tensor([len(x) for x, _ in train]))
    filled = replace(
        dataset,
        x_train=torch.cat([x for x, _ in train]),
        y_train=torch.cat([y for _, y in train]),
        domain_train=_domains(found, paths, "domain_train", [len(x) for x, _ in train]),
        owner_train=owner,
    )
    having = ["x_test" in arrays for arrays in found]
    if not any(having):
        return filled, None
    if not all(having):
        raise DataError(
            f"partition 'files': {paths[having.index(False)]} holds no x_test, but others do: give it to all or none."
        )
    test = [_pair(arrays, path, npz.TEST, dataset) for arrays, path in zip(found, paths, strict=True)]
    sizes = [len(x) for x, _ in test]
    filled = replace(
        filled,
        x_test=torch.cat([x for x, _ in test]),
        y_test=torch.cat([y for _, y in test]),
        domain_test=_domains(found, paths, "domain_test", sizes),
    )
    return filled, list(torch.split(torch.arange(sum(sizes), dtype=torch.int64), sizes))


def _pair(arrays: Mapping[str, Array], path: Path, keys: tuple[str, str], dataset: Dataset) -> tuple[Tensor, Tensor]:
    """A file's samples and labels, which must fit the source."""
    for key in keys:
        if key not in arrays:
            raise DataError(f"{path} holds no array {key!r}, only {', '.join(sorted(arrays))}: expected x and y.")
    x, y = npz.pair_like(arrays, str(path), keys, dataset)
    if len(x) != len(y):
        raise DataError(f"{path}: {len(x)} samples but {len(y)} labels, expected one label for each sample.")
    if tuple(x.shape[1:]) != dataset.inputs.shape or x.dtype != dataset.x_train.dtype:
        raise DataError(
            f"{path}: samples of shape {tuple(x.shape[1:])} and type {x.dtype}, expected {dataset.inputs.shape} and "
            f"{dataset.x_train.dtype} as in the source {dataset.name!r}: convert the file, or name another source."
        )
    if y.dtype != dataset.y_train.dtype or y.shape[1:] != dataset.y_train.shape[1:]:
        raise DataError(
            f"{path}: targets of shape {tuple(y.shape[1:])} and type {y.dtype}, expected "
            f"{tuple(dataset.y_train.shape[1:])} and {dataset.y_train.dtype} as in the source {dataset.name!r}."
        )
    if dataset.task == "classification" and int(y.max()) >= dataset.facts.outputs:
        raise DataError(
            f"{path}: label {int(y.max())} is out of range, expected 0..{dataset.facts.outputs - 1} as in the source "
            f"{dataset.name!r}."
        )
    return x, y


def _domains(found: list[dict[str, Array]], paths: list[Path], key: str, sizes: list[int]) -> Tensor | None:
    """The files' domains, one after the other, if all of them name some."""
    columns = [npz.domains(arrays, str(path), key) for arrays, path in zip(found, paths, strict=True)]
    named = [column for column in columns if column is not None]
    if len(named) < len(columns):
        return None
    for column, path, size in zip(named, paths, sizes, strict=True):
        if len(column) != size:
            raise DataError(f"{path}: {size} samples but {len(column)} domains in {key}, expected one for each sample.")
    return torch.cat(named)
