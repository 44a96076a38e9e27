"""Weights seen as matrices, and at which rank two factors are smaller than the matrix.

linear (O, I), embedding          M: (O, I)
conv (O, I, k)                    M: (O, I·k)
conv (O, I, kh, kw), "ok_ik"      M: (O·kh, I·kw), axes moved to (O, kh, I, kw) first
conv (O, I, kh, kw), "o_ikk"      M: (O, I·kh·kw)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from torch import Tensor

Flatten = Literal["ok_ik", "o_ikk"]


def to_matrix(weight: Tensor, flatten: Flatten) -> Tensor:
    """The weight of two or more dimensions as a matrix (m, n). Reshaping "ok_ik" without moving the axes is wrong."""
    if weight.dim() == 4 and flatten == "ok_ik":
        outputs, inputs, high, wide = weight.shape
        return weight.permute(0, 2, 1, 3).reshape(outputs * high, inputs * wide)
    return weight.reshape(weight.shape[0], -1)


def from_matrix(matrix_MN: Tensor, shape: Sequence[int], flatten: Flatten) -> Tensor:
    """The weight of this shape whose ``to_matrix`` is ``matrix_MN``, contiguous."""
    if len(shape) == 4 and flatten == "ok_ik":
        outputs, inputs, high, wide = shape
        return matrix_MN.reshape(outputs, high, inputs, wide).permute(0, 2, 1, 3).contiguous()
    return matrix_MN.reshape(tuple(shape))


def matrix_shape(shape: Sequence[int], flatten: Flatten) -> tuple[int, int]:
    """(m, n) of ``to_matrix`` of a weight of this shape."""
    if len(shape) == 4 and flatten == "ok_ik":
        return shape[0] * shape[2], shape[1] * shape[3]
    return shape[0], math.prod(shape[1:])


def break_even(rows: int, columns: int) -> int:
    """The largest rank r with r·(m + n) < m·n, strictly; 0 if none."""
    return (rows * columns - 1) // (rows + columns)
