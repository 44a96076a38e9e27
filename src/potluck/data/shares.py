"""From a data set to shares: the public one, the server's, each device's, and the test data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from potluck.core import seeds
from potluck.core.errors import DataError
from potluck.core.types import Inputs, Shard, TargetFacts
from potluck.data.dataset import Dataset, stratified, without
from potluck.data.partition.domains import rotated
from potluck.data.partition.files import with_files
from potluck.data.partition.partition import partition
from potluck.data.partition.rules import Domains, Files, PartitionSpec
from potluck.data.statistics import moments, neutral, scaled
from potluck.tasks.task import strata_of, told_by


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """Who has what. No training sample is in two of ``train``, ``public`` and ``held`` (the server's).

    ``test`` is all held-out data; ``tests`` are the devices' own, where the partition ``files`` brings them.
    """

    train: tuple[Shard, ...]
    public: Shard | None
    held: Shard | None
    test: Shard
    tests: tuple[Shard, ...] | None
    own: tuple[Shard, ...] | None = None
    """What each device has held out of its own data for its own test, where it was asked for."""
    layout: Mapping[str, Any] | None = None
    """By what rows of a table were encoded."""

    @property
    def inputs(self) -> Inputs:
        """What a net is given."""
        return self.test.inputs

    @property
    def facts(self) -> TargetFacts:
        """What is known of the targets."""
        return self.test.facts

    @property
    def task(self) -> str:
        """The task that the targets are of, as their type says."""
        return told_by(self.test.targets)


def share_out(
    dataset: Dataset,
    spec: PartitionSpec,
    *,
    devices: int,
    seed: int,
    public: float,
    server_samples: int,
    normalise: bool,
    limit: int,
    own_test: float = 0.0,
) -> Shares:
    """The shares of an experiment; a pure function of its arguments.

    First ``limit`` cuts the training data (0: all), then the ``public`` fraction and ``server_samples`` are set aside,
    each class (and domain, and file) giving its part, and the rest is partitioned. Of each device's part the share
    ``own_test`` is held out for its own test, unless its file brings one. All shards hold the same tensors.
    Raises DataError if the data do not suffice, or do not fit.
    """
    _check(public, server_samples, limit)
    arranged, tests = _arranged(dataset, spec, devices, seed, limit)
    public_rows, server_rows = _set_aside(arranged, spec, seed, public, server_samples)
    rest = without(len(arranged.x_train), torch.cat([public_rows, server_rows]))
    parts = partition(arranged, spec, devices, seed, rest)
    own: list[Tensor] | None = None
    if own_test and tests is None:
        strata, _ = strata_of(arranged.y_train, arranged.facts)
        own = [_own_rows(strata, part, own_test, seed, device) for device, part in enumerate(parts)]
        parts = [part[~torch.isin(part, held)] for part, held in zip(parts, own, strict=True)]
    # Views of one tensor: thousands of small ones, each on its own, leave a heap in which every allocation is slower.
    indices = torch.split(torch.cat(parts), [len(part) for part in parts])
    mean, deviation = moments(arranged.x_train) if normalise else neutral(arranged.x_train)
    if arranged.unscaled is not None:
        mean, deviation = mean.masked_fill(arranged.unscaled, 0.0), deviation.masked_fill(arranged.unscaled, 1.0)
    train = Shard(
        samples=arranged.x_train,
        targets=arranged.y_train,
        index=rest,
        mean=mean,
        deviation=deviation,
        facts=scaled(arranged.facts, arranged.y_train),
        vocabulary=arranged.vocabulary,
        domains=arranged.domain_train,
    )
    test = _test(arranged, train)
    return Shares(
        train=tuple(replace(train, index=index) for index in indices),
        public=replace(train, index=public_rows) if len(public_rows) else None,
        held=replace(train, index=server_rows) if len(server_rows) else None,
        test=test,
        tests=None if tests is None else tuple(replace(test, index=rows) for rows in tests),
        own=None if own is None else tuple(replace(train, index=rows) for rows in own),
        layout=dataset.layout,
    )


def _own_rows(strata: Tensor, part: Tensor, share: float, seed: int, device: int) -> Tensor:
    """The rows of a device's part that test; each stratum gives its share. One row at least stays to train on."""
    count = min(len(part) - 1, max(1, round(share * len(part))))
    return part[stratified(strata[part], count, seeds.generator(seed, 0, device, "own test"))]


def _test(dataset: Dataset, train: Shard) -> Shard:
    """All test data, seen as ``train`` is."""
    return replace(
        train,
        samples=dataset.x_test,
        targets=dataset.y_test,
        index=torch.arange(len(dataset.x_test), dtype=torch.int64),
        domains=dataset.domain_test,
    )


def _check(public: float, server_samples: int, limit: int) -> None:
    if not 0.0 <= public < 1.0:
        raise DataError(f"public = {public}, expected a share of the training data from 0 to below 1.")
    if server_samples < 0:
        raise DataError(f"server_samples = {server_samples}, expected 0 or more.")
    if limit < 0:
        raise DataError(f"limit = {limit}, expected 0 (all training samples) or more.")


def _arranged(
    dataset: Dataset, spec: PartitionSpec, devices: int, seed: int, limit: int
) -> tuple[Dataset, list[Tensor] | None]:
    """The data set after ``limit``, rotation and files; and the devices' own test positions."""
    if limit and isinstance(spec, Files):
        raise DataError(f"limit = {limit} does not go with partition 'files': set limit = 0 and shorten the files.")
    if limit:
        dataset = _limited(dataset, limit)
    if isinstance(spec, Domains) and spec.rotate:
        return rotated(dataset, spec, seed), None
    if isinstance(spec, Files):
        return with_files(dataset, spec, devices)
    return dataset, None


def _limited(dataset: Dataset, limit: int) -> Dataset:
    """The data set with its first training samples only."""
    y = dataset.y_train[:limit]
    if dataset.task == "classification" and int(y.min()) == int(y.max()):
        raise DataError(
            f"limit = {limit} leaves only class {int(y[0])} of {dataset.name!r}, expected two classes at least: raise "
            "limit, or shuffle the data."
        )
    return replace(
        dataset,
        x_train=dataset.x_train[:limit].clone(),  # what is shared between processes is the whole storage
        y_train=y.clone(),
        domain_train=None if dataset.domain_train is None else dataset.domain_train[:limit].clone(),
        owner_train=None if dataset.owner_train is None else dataset.owner_train[:limit].clone(),
    )


def _set_aside(
    dataset: Dataset, spec: PartitionSpec, seed: int, public: float, server_samples: int
) -> tuple[Tensor, Tensor]:
    """The positions of the public and of the server's samples."""
    count = len(dataset.x_train)
    public_count = max(1, round(public * count)) if public else 0
    if public_count + server_samples >= count:
        raise DataError(
            f"public = {public} and server_samples = {server_samples} take {public_count + server_samples} of {count} "
            "training samples, so the devices would have none: lower them, or raise limit."
        )
    strata = _strata(dataset, spec)
    public_rows = stratified(strata, public_count, seeds.generator(seed, 0, seeds.SERVER, "public"))
    rest = without(count, public_rows)
    picks = stratified(strata[rest], server_samples, seeds.generator(seed, 0, seeds.SERVER, "server samples"))
    return public_rows, rest[picks]


def _strata(dataset: Dataset, spec: PartitionSpec) -> Tensor:
    """A number for each combination of file, domain and stratum of the targets, (N,)."""
    y, kinds = strata_of(dataset.y_train, dataset.facts)
    zero = torch.zeros_like(y)
    domain = zero if dataset.domain_train is None else dataset.domain_train
    owner = dataset.owner_train if isinstance(spec, Files) and dataset.owner_train is not None else zero
    group = domain + (1 + int(domain.max())) * owner
    # The choice walks the strata at an even pace. Every other group lists its classes backwards: otherwise the same
    # classes would be rounded up in all groups.
    return kinds * group + torch.where(group % 2 == 1, kinds - 1 - y, y)
