"""Images as Pillow opens them, stacked into one array."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from potluck.core.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

GREY = ("1", "L", "LA")
COLOUR = ("RGB", "RGBA", "P", "PA", "CMYK", "YCbCr")


def stack(pictures: Iterable[tuple[str, Image]], source: str) -> Tensor:
    """Pairs of (name, image) as (N, C, H, W) uint8: one channel if all are grey, else three.

    Transparency is dropped. Images of different size, or with more than eight bits, are refused by name.
    """
    planes: list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]] = []
    first = ""
    for name, picture in pictures:
        if picture.mode not in GREY + COLOUR:
            raise DataError(
                f"{source}: {name} has mode {picture.mode}, expected eight bits a channel: convert it to PNG."
            )
        pixels = np.array(picture.convert("L" if picture.mode in GREY else "RGB"), dtype=np.uint8)
        if planes and pixels.shape[:2] != planes[0].shape[:2]:
            (h, w), (h_0, w_0) = pixels.shape[:2], planes[0].shape[:2]
            raise DataError(
                f"{source}: {name} is {w}x{h} pixels and {first} is {w_0}x{h_0}, expected one size: resize them."
            )
        first = first or name
        planes.append(pixels)
    if not planes:
        raise DataError(f"{source}: found no images, expected at least one.")
    if any(plane.ndim == 3 for plane in planes):
        planes = [plane if plane.ndim == 3 else np.stack([plane] * 3, axis=2) for plane in planes]
        return torch.from_numpy(np.ascontiguousarray(np.stack(planes).transpose(0, 3, 1, 2)))
    return torch.from_numpy(np.stack(planes)[:, None])
