"""Domains made by rotation, such as rotated MNIST: the same digits, seen at six angles by six devices."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from potluck.core import seeds
from potluck.core.errors import DataError
from potluck.data.dataset import SPLIT_SEED, TEST_SHARE, Dataset, stratified, without
from potluck.data.partition.rules import Domains
from potluck.tasks.task import strata_of


def rotated(dataset: Dataset, spec: Domains, seed: int) -> Dataset:
    """A data set whose domain d holds ``samples`` training images of its own at angle d, and all test images at it.

    Where the source brings no test data of its own, all its images are one pool: a constant choice of it trains, the
    rest tests. Which domain an image trains depends on ``seed``, what is tested does not.
    """
    if dataset.inputs.kind != "images":
        raise DataError(
            f"partition 'domains': rotate needs images, but {dataset.name!r} holds {dataset.inputs.kind}: leave rotate "
            "out."
        )
    if dataset.domain_train is not None:
        raise DataError(
            f"partition 'domains': rotate is given, but {dataset.name!r} carries domains of its own: leave rotate out."
        )
    angles = spec.rotate
    x, y, x_test, y_test = _parts(dataset, spec)
    each = spec.samples or len(x) // len(angles)
    order = torch.randperm(len(x), generator=seeds.generator(seed, 0, seeds.SERVER, "domains"))
    chunks = [order[d * each : (d + 1) * each] for d in range(len(angles))]
    numbers = torch.arange(len(angles), dtype=torch.int64)
    return replace(
        dataset,
        x_train=torch.cat([rotate(x[chunk], angle) for chunk, angle in zip(chunks, angles, strict=True)]),
        y_train=torch.cat([y[chunk] for chunk in chunks]),
        domain_train=numbers.repeat_interleave(each),
        x_test=torch.cat([rotate(x_test, angle) for angle in angles]),
        y_test=torch.cat([y_test] * len(angles)),
        domain_test=numbers.repeat_interleave(len(x_test)),
        owner_train=None,
    )


def _parts(dataset: Dataset, spec: Domains) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The images to train on and their labels, the images to test on and theirs."""
    domains, asked = len(spec.rotate), spec.samples * len(spec.rotate)
    there = len(dataset.x_train) + (0 if dataset.own_test else len(dataset.x_test))
    most = there if dataset.own_test else there - 1
    if max(asked, domains) > most:
        raise DataError(
            f"partition 'domains': {domains} domains of samples = {spec.samples} need {max(asked, domains)} training "
            f"images, and {dataset.name!r} has {most} to give: lower samples to {most // domains} or less."
        )
    if dataset.own_test:
        return dataset.x_train, dataset.y_train, dataset.x_test, dataset.y_test
    x, y = torch.cat([dataset.x_train, dataset.x_test]), torch.cat([dataset.y_train, dataset.y_test])
    count = asked or max(domains, round((1 - TEST_SHARE) * there))
    chosen = stratified(strata_of(y, dataset.facts)[0], count, seeds.generator(SPLIT_SEED, 0, seeds.SERVER, "domains"))
    rest = without(there, chosen)
    return x[chosen], y[chosen], x[rest], y[rest]


def rotate(x_BCHW: Tensor, degrees: float) -> Tensor:
    """The images turned counter-clockwise about their centre, bilinearly, zero beyond the edge; the type stays."""
    if degrees % 360 == 0:
        return x_BCHW.clone()
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    height, width = x_BCHW.shape[2:]
    # From a place in the result to the place it comes from, in coordinates that run from -1 to 1 along both edges.
    turn = torch.tensor([[cos, -sin * height / width, 0.0], [sin * width / height, cos, 0.0]], dtype=torch.float32)
    parts = []
    for part in torch.split(x_BCHW, 1024):  # in slices: float32 copies of all images would be many
        grid = F.affine_grid(turn.expand(len(part), 2, 3), list(part.shape), align_corners=False)
        turned = F.grid_sample(part.to(torch.float32), grid, mode="bilinear", align_corners=False)
        parts.append(turned.round_().clamp_(0, 255).to(torch.uint8) if x_BCHW.dtype == torch.uint8 else turned)
    return torch.cat(parts)
