"""Shares as npz files, for a real fleet: a device that reads its file computes what the simulated one does."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from potluck.core.errors import DataError
from potluck.core.types import Shard, TargetFacts
from potluck.data.dataset import Array, expanded, targets
from potluck.data.shares import Shares
from potluck.data.sources import npz
from potluck.data.statistics import neutral
from potluck.tasks.task import strata_of, told_by

FORMAT = 1
"""The version of the manifest."""


def content_digest(shard: Shard) -> str:
    """SHA-256, in hexadecimal, of all that a share says: its samples in order, labels, domains and normalisation."""
    found = _content(shard)
    whole = hashlib.sha256()
    for name in sorted(found):
        array = found[name]
        whole.update(json.dumps([name, array.dtype.str, list(array.shape)]).encode())
        whole.update(array.tobytes())
    return whole.hexdigest()


def write_split(shares: Shares, directory: Path) -> dict[str, Any]:
    """Writes every share to ``directory`` and returns the manifest, which is written there last.

    device-000.npz and so on, test.npz, and where there are such shares public.npz, server.npz and test-000.npz and so
    on. Each holds x and y as the source has them, classes (how many outputs), mean, deviation, and where there is such
    a thing domain, target_mean, target_deviation, target_names and vocabulary. The manifest names file, samples,
    samples per class, and SHA-256 of each share. The folder must be empty or not there.
    """
    named: dict[str, Shard] = {f"device-{i:03d}.npz": shard for i, shard in enumerate(shares.train)}
    named |= {f"test-{i:03d}.npz": shard for i, shard in enumerate(shares.tests or ())}
    named |= {"test.npz": shares.test}
    named |= {} if shares.public is None else {"public.npz": shares.public}
    named |= {} if shares.held is None else {"server.npz": shares.held}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise DataError(f"{directory} is not empty, expected a new folder for the shares: name another.")
        for name, shard in named.items():
            np.savez_compressed(directory / name, **_content(shard))
        manifest = {"format": FORMAT, "shares": [_entry(name, shard) for name, shard in named.items()]}
        (directory / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise DataError(f"{directory} cannot be written ({error}): name another folder.") from error
    return manifest


def read_shard(
    path: Path | str,
    *,
    part: Literal["train", "test"] = "train",
    like: Shard | None = None,
    digest: str | None = None,
) -> Shard:
    """The share in an npz file (``npz:FILE`` is understood too).

    A file of ``write_split`` brings its normalisation along. A file of one's own, with x and y, or x_train to y_test of
    which ``part`` chooses, takes normalisation and classes from ``like``, which every file must fit in shape. With
    ``digest``, the content must be what the manifest says.
    """
    form = str(path).partition(":")[0]
    if form in ("csv", "parquet", "jsonl", "text"):
        raise DataError(
            f"{path}: a device cannot bring a {form} file of its own yet: split the data with `potluck split`, "
            "and give it "
            "its device-NNN.npz."
        )
    place = Path(expanded(str(path).removeprefix("npz:")))
    found = npz.canonical(npz.arrays(place))
    keys = npz.TEST if part == "test" and "x_test" in found else npz.TRAIN
    missing = [key for key in keys if key not in found]
    if missing:
        raise DataError(f"{place} holds no array {missing[0]!r}, only {', '.join(sorted(found))}: expected x and y.")
    kind = "" if like is None else like.inputs.kind
    x = npz.samples_of(found, f"{place}, {keys[0]}", keys[0], kind)
    facts, vocabulary = _facts(found, place, like)
    mean, deviation = _normalisation(found, place, x, like)
    y = _targets(found[keys[1]], f"{place}, {keys[1]}", facts, like)
    domains = npz.domains(found, str(place), "domain_test" if keys == npz.TEST else "domain_train")
    shard = Shard(
        samples=x,
        targets=y,
        index=torch.arange(len(x), dtype=torch.int64),
        mean=mean,
        deviation=deviation,
        facts=facts,
        vocabulary=vocabulary,
        domains=domains,
    )
    _check(shard, place, like)
    if digest is not None and content_digest(shard) != digest:
        raise DataError(f"{place}: the content is {content_digest(shard)}, expected {digest}: copy the file again.")
    return shard


def _content(shard: Shard) -> dict[str, Any]:
    """The share's arrays, by the names they have in a file, little-endian."""
    facts = shard.facts
    found = {
        "x": shard.samples[shard.index],
        "y": shard.y,
        "mean": shard.mean,
        "deviation": shard.deviation,
        "classes": torch.tensor(facts.outputs, dtype=torch.int64),
    }
    if facts.mean:
        found["target_mean"] = torch.tensor(facts.mean, dtype=torch.float64)
        found["target_deviation"] = torch.tensor(facts.deviation, dtype=torch.float64)
    if shard.vocabulary:
        found["vocabulary"] = torch.tensor(shard.vocabulary, dtype=torch.int64)
    domains = shard.d
    if domains is not None:
        found["domain"] = domains
    arrays: dict[str, Any] = {name: tensor.contiguous().numpy() for name, tensor in found.items()}
    if facts.names:
        arrays["target_names"] = np.array(facts.names)
    return {name: array.astype(array.dtype.newbyteorder("<"), copy=False) for name, array in arrays.items()}


def _entry(name: str, shard: Shard) -> dict[str, Any]:
    """What the manifest says of a share: its file, and how many samples of each class there are."""
    strata, kinds = strata_of(shard.y, shard.facts)
    counts = torch.bincount(strata, minlength=kinds).tolist() if told_by(shard.targets) == "classification" else []
    return {"file": name, "samples": len(shard), "classes": counts, "sha256": content_digest(shard)}


def _targets(y: Array, what: str, facts: TargetFacts, like: Shard | None) -> Tensor:
    """The targets of a file, read as those of ``like`` where it is given."""
    task = told_by(like.targets) if like is not None else ""
    if not task and facts.mean:
        task = "regression"
    (found,), _ = targets({what: y}, task=task, names=facts.names or None, numbered=True)
    return found[:, None] if found.is_floating_point() and found.ndim == 1 else found


def _facts(found: Mapping[str, Array], place: Path, like: Shard | None) -> tuple[TargetFacts, int]:
    """What is known of the targets and the vocabulary, from the file, or else from ``like``."""
    if "classes" not in found:
        if like is None:
            raise DataError(
                f"{place} says nothing of mean, deviation and classes, expected a file of `potluck split`: split the "
                "data with it, or bring the public share as well."
            )
        return like.facts, like.vocabulary
    if found["classes"].shape != () or found["classes"].dtype.kind not in "ui":
        raise DataError(f"{place}: mean, deviation and classes do not belong together: run `potluck split` again.")
    numbers = {
        key: tuple(float(value) for value in found[f"target_{key}"].reshape(-1)) if f"target_{key}" in found else ()
        for key in ("mean", "deviation")
    }
    names = tuple(str(name) for name in found["target_names"].reshape(-1)) if "target_names" in found else ()
    vocabulary = int(found["vocabulary"].reshape(-1)[0]) if "vocabulary" in found else 0
    return TargetFacts(outputs=int(found["classes"]), names=names, **numbers), vocabulary


def _normalisation(found: Mapping[str, Array], place: Path, x: Tensor, like: Shard | None) -> tuple[Tensor, Tensor]:
    """Mean and deviation, from the file, or else from ``like``."""
    given = [key for key in ("mean", "deviation", "classes") if key in found]
    if not given and like is not None:
        return like.mean, like.deviation
    if len(given) < 3:
        raise DataError(f"{place}: mean, deviation and classes do not belong together: run `potluck split` again.")
    mean, deviation = (torch.from_numpy(np.array(found[key], dtype=np.float32, order="C")) for key in given[:2])
    shape = tuple(neutral(x)[0].shape)
    finite = bool((deviation > 0).all() & deviation.isfinite().all() & mean.isfinite().all())
    if mean.shape != shape or deviation.shape != shape or not finite:
        raise DataError(
            f"{place}: mean and deviation are {tuple(mean.shape)} and {tuple(deviation.shape)}, expected {shape}, all "
            "finite and the deviation positive: run `potluck split` again."
        )
    return mean, deviation


def _check(shard: Shard, place: Path, like: Shard | None) -> None:
    """The share must be whole, and fit ``like``."""
    count = len(shard)
    for what, column in (("labels", shard.targets), ("domains", shard.domains)):
        if column is not None and len(column) != count:
            raise DataError(f"{place}: {count} samples but {len(column)} {what}, expected one for each sample.")
    outputs = shard.facts.outputs
    if told_by(shard.targets) == "classification" and int(shard.targets.max()) >= outputs:
        raise DataError(
            f"{place}: label {int(shard.targets.max())} is out of range, expected 0..{outputs - 1}: renumber them."
        )
    if like is not None and (shard.inputs, outputs) != (like.inputs, like.facts.outputs):
        raise DataError(
            f"{place}: {shard.inputs} in {outputs} classes, expected {like.inputs} in {like.facts.outputs}: it is of "
            "another experiment."
        )
    if like is not None and shard.targets.dtype != like.targets.dtype:
        raise DataError(f"{place}: targets of type {shard.targets.dtype}, expected {like.targets.dtype}.")
