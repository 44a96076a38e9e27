"""``synthetic``: samples made up from a seed, of any kind and for any task, which need no file.

Images, rows and series are a pattern a class, plus noise; texts have words that are likelier in their class. Numbers to
predict, and marks, follow from the samples' values, and so does what comes next in a text.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from potluck.core import seeds
from potluck.core.errors import DataError
from potluck.data.dataset import SPLIT_SEED, Dataset, dataset
from potluck.data.source import Reading, Source
from potluck.tasks.task import IGNORED

CLASSES = 10
VOCABULARY = 100
LABELS = 3
LARGEST_ELEMENTS = 2**33
FORM = "synthetic:N,C,H,W"


def synthetic(spec: str, reading: Reading | None = None) -> Dataset:
    """``N,C,H,W``: N training and N/4 test images, uint8, of ten classes; ``N,S,C`` series and ``N,F`` rows, float32.

    ``reading.kind = "tokens"`` makes texts of ``N,L``; ``reading.task`` other targets than classes.
    """
    how = reading or Reading()
    count, *shape = _shape(spec)
    draw = seeds.generator(SPLIT_SEED, 0, seeds.SERVER, "synthetic")
    name, tests = f"synthetic:{spec}", max(CLASSES, count // 4)
    if how.kind == "tokens":
        if len(shape) != 1:
            raise DataError(f"{name}: texts are synthetic:N,L, N of them of L tokens.")
        parts = [_texts(size, shape[0], draw, how.task) for size in (count, tests)]
        return dataset(name, *parts[0], *parts[1], classes=_classes(how.task), vocabulary=VOCABULARY)
    if len(shape) == 3:
        coarse = torch.randn(CLASSES, shape[0], min(4, shape[1]), min(4, shape[2]), generator=draw)
        # Smooth patterns: a convolutional net can learn them, and augmentation does not destroy them.
        patterns = F.interpolate(coarse, size=(shape[1], shape[2]), mode="bilinear", align_corners=False)
    else:
        patterns = torch.randn(CLASSES, *shape, generator=draw)
    x_train, y_train = _noisy(patterns, count, draw)
    x_test, y_test = _noisy(patterns, tests, draw)
    if how.task in ("regression", "multilabel"):
        toward = torch.randn(math.prod(shape), LABELS, generator=draw)
        y_train, y_test = (_of_values(x, toward, how.task) for x in (x_train, x_test))
    return dataset(name, x_train, y_train, x_test, y_test, classes=_classes(how.task))


def _classes(task: str) -> int | None:
    return CLASSES if task in ("", "classification") else None


def _shape(spec: str) -> list[int]:
    try:
        numbers = [int(part) for part in spec.split(",")]
    except ValueError:
        numbers = []
    if not 2 <= len(numbers) <= 4:
        raise DataError(
            f"synthetic:{spec} is not two to four whole numbers: write synthetic:N,C,H,W, such as "
            "synthetic:1000,3,32,32, or N,steps,channels for series, or N,features for rows."
        )
    if numbers[0] < CLASSES or min(numbers[1:]) < 1:
        raise DataError(
            f"synthetic:{spec} is out of range: expected N >= {CLASSES} samples, one at least of each class, and C, H, "
            "W (or what stands for them) >= 1."
        )
    if math.prod(numbers) > LARGEST_ELEMENTS:
        raise DataError(f"synthetic:{spec} would take more than 8 GiB: ask for fewer or smaller samples.")
    return numbers


def _noisy(patterns: Tensor, count: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Samples and labels; every class equally often, in a shuffled order. Images are bytes."""
    y = (torch.arange(count, dtype=torch.int64) % CLASSES)[torch.randperm(count, generator=draw)]
    images = patterns.dim() == 4
    x = torch.empty((count, *patterns.shape[1:]), dtype=torch.uint8 if images else torch.float32)
    for start in range(0, count, 4096):  # in slices: the float32 images would take four times the memory
        part = y[start : start + 4096]
        noise = torch.randn((len(part), *patterns.shape[1:]), generator=draw)
        made = patterns[part] + noise
        x[start : start + 4096] = (128 + 40 * made).clamp_(0, 255).to(torch.uint8) if images else made
    return x, y


def _of_values(x: Tensor, toward: Tensor, task: str) -> Tensor:
    """One number a sample, (n, 1), or three marks, (n, 3), which are linear in its values but for rounding."""
    flat = x.flatten(1).to(torch.float32)
    flat = (flat - 128) / 40 if x.dtype == torch.uint8 else flat
    found = flat @ toward / math.sqrt(toward.shape[0])
    return 50 + 10 * found[:, :1] if task == "regression" else (found > 0).to(torch.uint8)


def _texts(count: int, length: int, draw: torch.Generator, task: str) -> tuple[Tensor, Tensor]:
    """Token numbers (n, length), 0 behind the end of a text, and its class, number, marks, or next tokens."""
    y = (torch.arange(count, dtype=torch.int64) % CLASSES)[torch.randperm(count, generator=draw)]
    ends = torch.randint(max(1, length // 2), length + 1, (count, 1), generator=draw)
    if task == "next_token":
        x = torch.empty((count, length + 1), dtype=torch.int64)
        x[:, 0] = torch.randint(1, VOCABULARY, (count,), generator=draw)
        for step in range(length):  # mostly the same word after a word
            strange = torch.randint(1, VOCABULARY, (count,), generator=draw)
            usual = 1 + (7 * x[:, step]) % (VOCABULARY - 1)
            x[:, step + 1] = torch.where(torch.rand(count, generator=draw) < 0.8, usual, strange)
        there = torch.arange(length) < ends
        return torch.where(there, x[:, :-1], 0), torch.where(there, x[:, 1:], IGNORED)
    any_word = torch.randint(1, VOCABULARY, (count, length), generator=draw)
    own_word = 1 + y[:, None] * 9 + torch.randint(0, 9, (count, length), generator=draw)
    x = torch.where(torch.rand((count, length), generator=draw) < 0.5, own_word, any_word)
    x = torch.where(torch.arange(length) < ends, x, 0)
    if task == "regression":
        return x, (x.sum(dim=1, keepdim=True) / ends).to(torch.float32)
    marks = torch.stack([y % 2, (y > 4).long(), y % 3 % 2], dim=1).to(torch.uint8)
    return x, marks if task == "multilabel" else y


SOURCES = {
    "synthetic": Source(
        form=FORM,
        summary="N made-up, learnable samples of ten classes: images, or N,S,C series, N,F rows",
        read=synthetic,
    )
}
