"""Posteriors as whole numbers: their sums are exact, so neither the order of peers nor a relay changes a bit.

| form | what is sent | bytes a value | largest error of a value |
|---|---|---|---|
| fixed16 | round(65535 p), uint16 | 2 | 7.7e-6 |
| fixed8 | round(255 p), uint8 | 1 | 2.0e-3 |
| float32 | p | 4 | 0 |
| onehot | argmax p, uint8 (uint16 beyond 256 classes) | 1/C or 2/C | |

Rounded rows need not add up to the scale, so a mean is always a sum over its row's sum. What other tasks soften to is
sent likewise, p being its share of the way from the least value to the greatest (``Soft``); its rows have no sum.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from potluck.core.spec import Array
from potluck.tasks.task import Soft

Form = Literal["fixed16", "fixed8", "float32", "onehot"]
SCALE = {"fixed16": 65535, "fixed8": 255, "float32": 1, "onehot": 1}
MOST_CLASSES = {"fixed16": 65535, "fixed8": 255, "float32": 65535, "onehot": 65535}
"""With more, the rounded row of a uniform posterior could be all zero."""
DTYPE = {"fixed16": torch.uint16, "fixed8": torch.uint8, "float32": torch.float32}
ROW_TOLERANCE = 1e-3
POSTERIORS = Soft(low=0.0, high=1.0, distribution=True)


def encode(p_SC: Tensor, form: Form, soft: Soft = POSTERIORS) -> Tensor:
    """What is sent of values in [soft.low, soft.high]: (S, C), or (S,) of ``onehot``."""
    if form == "float32":
        return p_SC.float()
    if form == "onehot":
        return p_SC.argmax(dim=1).to(torch.uint8 if p_SC.shape[1] <= 256 else torch.uint16)
    unit_SC = (p_SC.double() - soft.low) / (soft.high - soft.low)
    return (unit_SC * SCALE[form]).round().to(torch.int32).to(DTYPE[form])


def expected(form: Form, samples: int, classes: int, soft: Soft = POSTERIORS) -> Array:
    """What an update must look like: shape, values, and rows of posteriors that add up to one but for the rounding."""
    if form == "onehot":
        dtype = torch.uint8 if classes <= 256 else torch.uint16
        return Array(dtype=dtype, shape=(samples,), low=0, high=classes - 1)
    if not soft.distribution:
        low, high = (soft.low, soft.high) if form == "float32" else (0, SCALE[form])
        return Array(dtype=DTYPE[form], shape=(samples, classes), low=low, high=high)
    rounding = 0.0 if form == "float32" else classes / 2
    slack = ROW_TOLERANCE * SCALE[form] + rounding
    return Array(
        dtype=DTYPE[form], shape=(samples, classes), low=0, row_sums=(SCALE[form] - slack, SCALE[form] + slack)
    )


def total(updates: Iterable[Tensor], form: Form, classes: int) -> Tensor | None:
    """The sum of updates, (S, C): int64, or float64 of ``float32``, where the order of summands counts; or None."""
    found: Tensor | None = None
    for update in updates:
        wide = F.one_hot(update.to(torch.int64), classes) if form == "onehot" else update
        wide = wide.to(torch.float64 if form == "float32" else torch.int64)
        found = wide if found is None else found + wide
    return found


def mean(total_SC: Tensor, soft: Soft = POSTERIORS, form: Form = "fixed16", count: int = 1) -> Tensor:
    """The mean, float32, of a sum of ``count`` updates; the rows of posteriors add up to one."""
    wide = total_SC.to(torch.float64)
    if soft.distribution:
        return (wide / wide.sum(dim=1, keepdim=True)).to(torch.float32)
    if form == "float32":
        return (wide / count).to(torch.float32)
    return (soft.low + wide / (count * SCALE[form]) * (soft.high - soft.low)).to(torch.float32)


POOLED = ("fixed16", "fixed8")
"""The forms whose sum says as much as the updates do."""


def pooled(updates: Iterable[Tensor], form: Form, classes: int) -> dict[str, Tensor | int]:
    """``{"sum": (S, C), "count": updates}``: uint32, or uint16 of fixed8 among at most 257. uint32 holds 65,537."""
    found = list(updates)
    most = len(found) * SCALE[form]
    summed = total(found, form, classes)
    assert summed is not None, "a sum is of one update at least"
    assert most < 2**32, "a sum is of 65,537 updates at most"
    return {"sum": summed.to(torch.uint16 if most < 2**16 else torch.uint32), "count": len(found)}


def without(pool: Mapping[str, Any], mine: Tensor, form: Form, classes: int) -> Tensor | None:
    """The sum of the others' updates, exactly; None where there are none."""
    local_state = total([mine], form, classes)
    return None if pool["count"] < 2 else pool["sum"].to(torch.int64) - local_state
