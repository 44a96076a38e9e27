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
from potluck.core.types import Shard
from potluck.data.dataset import Array, expanded
from potluck.data.shares import Shares
from potluck.data.sources import npz

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
    on. Each holds x as the source has it, y, classes, mean, deviation, and domain where there are domains. The manifest
    names file, samples, samples per class, and SHA-256 of each share. The folder must be empty or not there.
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
    place = Path(expanded(str(path).removeprefix("npz:")))
    found = npz.canonical(npz.arrays(place))
    keys = npz.TEST if part == "test" and "x_test" in found else npz.TRAIN
    missing = [key for key in keys if key not in found]
    if missing:
        raise DataError(f"{place} holds no array {missing[0]!r}, only {', '.join(sorted(found))}: expected x and y.")
    x, y = npz.pair(found, str(place), keys)
    mean, deviation, classes = _normalisation(found, place, x, like)
    domains = npz.domains(found, str(place), "domain_test" if keys == npz.TEST else "domain_train")
    shard = Shard(
        images=x,
        labels=y,
        index=torch.arange(len(x), dtype=torch.int64),
        mean=mean,
        deviation=deviation,
        classes=classes,
        domains=domains,
    )
    _check(shard, place, like)
    if digest is not None and content_digest(shard) != digest:
        raise DataError(f"{place}: the content is {content_digest(shard)}, expected {digest}: copy the file again.")
    return shard


def _content(shard: Shard) -> dict[str, Any]:
    """The share's arrays, by the names they have in a file, little-endian."""
    found = {
        "x": shard.images[shard.index],
        "y": shard.y,
        "mean": shard.mean,
        "deviation": shard.deviation,
        "classes": torch.tensor(shard.classes, dtype=torch.int64),
    }
    domains = shard.d
    if domains is not None:
        found["domain"] = domains
    arrays = {name: tensor.contiguous().numpy() for name, tensor in found.items()}
    return {name: array.astype(array.dtype.newbyteorder("<"), copy=False) for name, array in arrays.items()}


def _entry(name: str, shard: Shard) -> dict[str, Any]:
    per_class = torch.bincount(shard.y, minlength=shard.classes).tolist()
    return {"file": name, "samples": len(shard), "classes": per_class, "sha256": content_digest(shard)}


def _normalisation(
    found: Mapping[str, Array], place: Path, x: Tensor, like: Shard | None
) -> tuple[Tensor, Tensor, int]:
    """Mean, deviation and classes, from the file, or else from ``like``."""
    given = [key for key in ("mean", "deviation", "classes") if key in found]
    if not given:
        if like is None:
            raise DataError(
                f"{place} says nothing of mean, deviation and classes, expected a file of `potluck split`: split the "
                "data with it, or bring the public share as well."
            )
        return like.mean, like.deviation, like.classes
    if len(given) < 3 or found["classes"].shape != () or found["classes"].dtype.kind not in "ui":
        raise DataError(f"{place}: mean, deviation and classes do not belong together: run `potluck split` again.")
    mean, deviation = (torch.from_numpy(np.array(found[key], dtype=np.float32, order="C")) for key in given[:2])
    shape = (x.shape[1], *[1] * (x.ndim - 2))
    finite = bool((deviation > 0).all() & deviation.isfinite().all() & mean.isfinite().all())
    if mean.shape != shape or deviation.shape != shape or not finite:
        raise DataError(
            f"{place}: mean and deviation are {tuple(mean.shape)} and {tuple(deviation.shape)}, expected {shape}, all "
            "finite and the deviation positive: run `potluck split` again."
        )
    return mean, deviation, int(found["classes"])


def _check(shard: Shard, place: Path, like: Shard | None) -> None:
    """The share must be whole, and fit ``like``."""
    count = len(shard)
    for what, column in (("labels", shard.labels), ("domains", shard.domains)):
        if column is not None and len(column) != count:
            raise DataError(f"{place}: {count} samples but {len(column)} {what}, expected one for each sample.")
    if int(shard.labels.max()) >= shard.classes:
        raise DataError(
            f"{place}: label {int(shard.labels.max())} is out of range, expected 0..{shard.classes - 1}: renumber them."
        )
    if like is not None and (shard.shape, shard.classes) != (like.shape, like.classes):
        raise DataError(
            f"{place}: samples of shape {shard.shape} in {shard.classes} classes, expected {like.shape} in "
            f"{like.classes}: it is of another experiment."
        )
