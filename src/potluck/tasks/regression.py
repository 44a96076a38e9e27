"""Regression: one number or several a sample.

Inside, targets are standardised by mean and deviation of the training data, so that losses and nets do not know of
units; metrics are in the targets' own.

| metric | meaning |
|---|---|
| rmse | root of the mean squared error, in the targets' own units; of several, the mean over targets |
| mae | mean absolute error, likewise |
| r2 | 1 - squared error / squared deviation from the test mean; mean over targets |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from annotated_types import Gt
from torch import Tensor

from potluck.core.types import TargetFacts
from potluck.tasks.task import Better, Soft, Totals, fixed, real

SOFT_RANGE = 8.0
"""Peers tell each other predictions of at most so many deviations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Regression:
    """numbers; root mean squared error in their own units"""

    facts: TargetFacts
    error: Literal["mse", "mae", "huber"] = "mse"
    huber_delta: Annotated[float, Gt(0)] = 1.0

    name: ClassVar[str] = "regression"
    primary: ClassVar[str] = "rmse"
    better: ClassVar[Better] = "lower"
    per_step: ClassVar[bool] = False
    soft: ClassVar[Soft | None] = Soft(low=-SOFT_RANGE, high=SOFT_RANGE, distribution=False, tempered=False)

    @property
    def outputs(self) -> int:
        """A standardised number a target."""
        return self.facts.outputs

    def _scale(self, like: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the targets, (T,)."""
        mean, deviation = self.facts.mean or (0.0,) * self.outputs, self.facts.deviation or (1.0,) * self.outputs
        return like.new_tensor(mean, dtype=dtype), like.new_tensor(deviation, dtype=dtype)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        mean_T, deviation_T = self._scale(targets, torch.float32)
        wanted = ((targets - mean_T) / deviation_T).to(outputs.dtype)
        if self.error == "mae":
            return F.l1_loss(outputs, wanted)
        if self.error == "huber":
            return F.huber_loss(outputs, wanted, delta=self.huber_delta)
        return F.mse_loss(outputs, wanted)

    def totals(self, outputs: Tensor, targets: Tensor) -> Totals:
        mean_T, deviation_T = self._scale(targets, torch.float64)
        wanted_BT = (targets.double() - mean_T) / deviation_T
        error_BT = outputs.double() - wanted_BT
        return {
            "squares": fixed(error_BT.square()),
            "sizes": fixed(error_BT.abs()),
            "sum": fixed(wanted_BT),
            "sum_squares": fixed(wanted_BT.square()),
            "samples": outputs.new_zeros(1).long() + len(outputs),
        }

    def _errors(self, totals: Totals) -> tuple[Tensor, Tensor, Tensor]:
        """RMSE, MAE and R2 of each target, float64, (T,)."""
        count = totals["samples"].to(torch.float64).clamp(min=1)
        deviation_T = self._scale(totals["squares"], torch.float64)[1]
        mse, mae, mean = (real(totals[name]) / count for name in ("squares", "sizes", "sum"))
        spread = real(totals["sum_squares"]) / count - mean.square()
        return mse.sqrt() * deviation_T, mae * deviation_T, 1 - mse / spread.clamp(min=1e-12)

    def metrics(self, totals: Totals) -> dict[str, float]:
        rmse, mae, r2 = self._errors(totals)
        return {"rmse": float(rmse.mean()), "mae": float(mae.mean()), "r2": float(r2.mean())}

    def breakdown(self, totals: Totals) -> dict[str, float]:
        """The RMSE of each of several targets."""
        return {self.facts.name(at): value for at, value in enumerate(self._errors(totals)[0].tolist())}

    def fault(self, totals: Totals) -> str:
        bounded = ("squares", "sizes", "sum_squares", "samples")
        if any(bool((totals[name] < 0).any()) for name in bounded):
            return "a sum of squares or sizes below zero"
        return ""

    def soften(self, outputs: Tensor, temperature: float) -> Tensor:
        """The standardised predictions; a temperature has no meaning for them."""
        return outputs.clamp(-SOFT_RANGE, SOFT_RANGE)

    def agree(self, outputs: Tensor, soft: Tensor, temperature: float) -> Tensor:
        """Half the squared error, summed over targets: its gradient is outputs - soft, as that of posteriors is."""
        return (outputs.float() - soft).square().sum(dim=1).mean() / 2


TASKS = {"regression": Regression}
