"""Who gets which training samples. The work is done by flwr-datasets' partitioners; here are the checks round it."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from potluck.core import seeds
from potluck.core.errors import DataError, MissingExtraError
from potluck.data.dataset import Dataset
from potluck.data.partition.rules import (
    Column,
    Dirichlet,
    Domains,
    Files,
    Iid,
    PartitionSpec,
    Pathological,
    Shards,
    Size,
)
from potluck.tasks.task import strata_of

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner

POOL_PER_DEVICE = 32
"""How many samples a device has on average, at least, where ``replace`` lets them come again."""

DIRICHLET_ATTEMPTS = 5
"""How many partitioners are tried; each draws eleven times by itself."""


def partition(
    dataset: Dataset, spec: PartitionSpec, devices: int, seed: int, rows: Tensor | None = None
) -> list[Tensor]:
    """The training samples of each device, as int64 positions in ``dataset.x_train``; never an empty one.

    ``rows`` are the positions to share out (all of them if left out). No sample goes to two devices, unless ``replace``
    says so. The result depends on the arguments alone. Raises DataError if it cannot be done, naming the device.
    """
    if devices < 1:
        raise DataError(f"{devices} devices, expected at least one: add a [[fleet.tier]] with devices.")
    rows = torch.arange(len(dataset.x_train), dtype=torch.int64) if rows is None else rows
    if isinstance(spec, Column | Domains | Files):
        shares = _by_owner(dataset, spec, devices, seed, rows)
    else:
        if devices > len(rows) and not spec.replace:
            raise DataError(
                f"partition {spec.kind!r}: {devices} devices for {len(rows)} training samples, so device {len(rows)} "
                "would get none: take fewer devices, more data, or set replace = true."
            )
        shares = _by_label(
            strata_of(dataset.y_train, dataset.facts)[0], spec, devices, seed, _pool(rows, spec.replace, devices, seed)
        )
    for device, share in enumerate(shares):
        if not len(share):
            raise DataError(
                f"partition {spec.kind!r} leaves device {device} of {devices} without a training sample: take fewer "
                "devices or more data."
            )
    return shares


def _pool(rows: Tensor, replace: bool, devices: int, seed: int) -> Tensor:
    """The rows, shuffled; with ``replace``, shuffled again and again until there are enough for the devices."""
    draw = seeds.generator(seed, 0, seeds.SERVER, "partition")
    wanted = max(len(rows), POOL_PER_DEVICE * devices) if replace else len(rows)
    again = -(-wanted // max(len(rows), 1))
    return torch.cat([rows[torch.randperm(len(rows), generator=draw)] for _ in range(again)])[:wanted]


def _by_label(
    y: Tensor, spec: Iid | Dirichlet | Shards | Pathological | Size, devices: int, seed: int, pool: Tensor
) -> list[Tensor]:
    """The pool, shared out by flwr-datasets."""
    marks = y[pool]
    _check(spec, devices, marks)
    try:
        import datasets  # noqa: PLC0415 - an optional package, loaded where it is needed
        import flwr_datasets  # noqa: F401, PLC0415 - the same
    except ImportError as error:
        raise MissingExtraError(f"the partition {spec.kind!r}", "lab") from error
    table = datasets.Dataset.from_dict({"label": marks.numpy(), "row": np.arange(len(pool))})
    attempts = DIRICHLET_ATTEMPTS if isinstance(spec, Dirichlet) else 1
    for attempt in range(attempts):
        partitioner = _partitioner(spec, devices, seeds.derived(seed, attempt, seeds.SERVER, "partitioner"))
        partitioner.dataset = table
        try:
            with _quiet():
                parts = [partitioner.load_partition(device).with_format("numpy") for device in range(devices)]
        except ValueError as error:
            if attempt + 1 < attempts:
                continue
            raise DataError(_refusal(spec, devices, len(pool))) from error
        return [pool[torch.from_numpy(np.array(part[:]["row"], dtype=np.int64))] for part in parts]
    raise AssertionError("the loop returns or raises")


def _partitioner(spec: Iid | Dirichlet | Shards | Pathological | Size, devices: int, seed: int) -> Partitioner:
    from flwr_datasets import partitioner as flower  # noqa: PLC0415 - an optional package, loaded where it is needed

    match spec:
        case Iid():
            return flower.IidPartitioner(num_partitions=devices)
        case Dirichlet():
            return flower.DirichletPartitioner(
                num_partitions=devices,
                partition_by="label",
                alpha=spec.alpha,
                min_partition_size=spec.min_samples,
                seed=seed,
            )
        case Shards():
            return flower.ShardPartitioner(
                num_partitions=devices, partition_by="label", num_shards_per_partition=spec.per_device, seed=seed
            )
        case Pathological():
            return flower.PathologicalPartitioner(
                num_partitions=devices,
                partition_by="label",
                num_classes_per_partition=spec.classes,
                class_assignment_mode="first-deterministic",  # so that no class stays unused without need
                seed=seed,
            )
        case Size():
            grown = {
                "linear": flower.LinearPartitioner,
                "square": flower.SquarePartitioner,
                "exponential": flower.ExponentialPartitioner,
            }
            return grown[spec.skew](num_partitions=devices)


def _check(spec: Iid | Dirichlet | Shards | Pathological | Size, devices: int, marks: Tensor) -> None:
    """Refuses what the partitioners would refuse in their own words, or not at all."""
    if isinstance(spec, Dirichlet) and spec.min_samples * devices > len(marks):
        raise DataError(
            f"partition 'dirichlet': {devices} devices of at least min_samples = {spec.min_samples} need "
            f"{spec.min_samples * devices} training samples, there are {len(marks)}: lower min_samples, or take fewer "
            "devices."
        )
    if isinstance(spec, Shards) and spec.per_device * devices > len(marks):
        raise DataError(
            f"partition 'shards': {devices} devices with per_device = {spec.per_device} need "
            f"{spec.per_device * devices} training samples, there are {len(marks)}: lower per_device, or take fewer "
            "devices."
        )
    present = len(torch.unique(marks))
    if isinstance(spec, Pathological) and spec.classes > present:
        raise DataError(
            f"partition 'pathological': classes = {spec.classes}, but the training data hold {present} classes: "
            f"expected 1 to {present}."
        )


def _refusal(spec: Iid | Dirichlet | Shards | Pathological | Size, devices: int, count: int) -> str:
    """What the user can do where a partitioner gave up."""
    given = f"partition {spec.kind!r} cannot share {count} training samples among {devices} devices"
    match spec:
        case Dirichlet():
            return (
                f"{given}: with alpha = {spec.alpha} a device keeps getting fewer than min_samples = "
                f"{spec.min_samples}: raise alpha, lower min_samples, or take fewer devices."
            )
        case Size():
            return f'{given}: with skew = "{spec.skew}" device 0 would get none: take fewer devices or a smaller skew.'
        case _:
            return f"{given}: some class has fewer samples than devices that see it: take fewer devices or more data."


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars, and no warnings about draws that are made again or sizes that overflow: both are checked."""
    from datasets.utils import logging as bars  # noqa: PLC0415 - an optional package, loaded where it is needed

    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            yield
    finally:
        if shown:
            bars.enable_progress_bar()


def _by_owner(dataset: Dataset, spec: Column | Domains | Files, devices: int, seed: int, rows: Tensor) -> list[Tensor]:
    """The rows whose id, domain or file belongs to a device."""
    owner = dataset.domain_train if isinstance(spec, Domains) else dataset.owner_train
    if owner is None:
        wanted = {
            "column": "natural ids: load the source with that column",
            "domains": "domains: set rotate, or bring domain_train in the npz file",
            "files": "files of the devices: share it out instead of partitioning it",
        }
        raise DataError(f"partition {spec.kind!r}: the data of {dataset.name!r} carry no {wanted[spec.kind]}.")
    count = int(owner.max()) + 1
    if isinstance(spec, Domains):
        return _domains(owner, count, devices, seed, rows)
    if isinstance(spec, Column) and 0 < spec.largest < count:
        owner, count = _largest(owner, rows, spec.largest), spec.largest
        rows = rows[owner[rows] >= 0]
    if count < devices:
        raise DataError(
            f"partition {spec.kind!r}: {count} different ids for {devices} devices, so device {count} would get none: "
            f"take at most {count} devices."
        )
    return [rows[owner[rows] % devices == device] for device in range(devices)]


def _largest(owner: Tensor, rows: Tensor, count: int) -> Tensor:
    """The owners numbered anew: so many, those with the most of these rows, in their old order; -1 for the others."""
    sizes = torch.bincount(owner[rows], minlength=int(owner.max()) + 1)
    kept = torch.sort(torch.argsort(sizes, descending=True, stable=True)[:count]).values
    numbers = torch.full_like(sizes, -1)
    numbers[kept] = torch.arange(count)
    return numbers[owner]


def _domains(domain: Tensor, count: int, devices: int, seed: int, rows: Tensor) -> list[Tensor]:
    """Device i gets its part of domain i modulo ``count``: every n-th sample, shuffled, of the n devices there."""
    shares = []
    for device in range(devices):
        here, before = device % count, device // count
        together = len(range(here, devices, count))
        mine = rows[domain[rows] == here]
        draw = seeds.generator(seed, 0, seeds.SERVER, f"domain {here}")
        shares.append(mine[torch.randperm(len(mine), generator=draw)[before::together]])
    return shares
