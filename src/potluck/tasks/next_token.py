"""Next token: of each step of a text, what comes next; cross-entropy over the steps that count.

| metric | meaning |
|---|---|
| token_accuracy | steps whose likeliest token is right / steps that count |
| perplexity | exp of the mean negative log-likelihood of a step |
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from potluck.core.types import TargetFacts
from potluck.tasks.task import IGNORED, Better, Soft, Totals, fixed, negative, ratio, real

MOST_LOSS = 700.0
"""exp() of more is beyond a float."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NextToken:
    """what comes next in a text; token accuracy"""

    facts: TargetFacts

    name: ClassVar[str] = "next_token"
    primary: ClassVar[str] = "token_accuracy"
    better: ClassVar[Better] = "higher"
    per_step: ClassVar[bool] = True
    soft: ClassVar[Soft | None] = None

    @property
    def outputs(self) -> int:
        """A logit a token of the vocabulary."""
        return self.facts.outputs

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Zero where no step counts."""
        flat_NV, y_N = outputs.flatten(0, 1), targets.flatten()
        counted = (y_N != IGNORED).sum().clamp(min=1)
        return F.cross_entropy(flat_NV, y_N, ignore_index=IGNORED, reduction="sum") / counted

    def totals(self, outputs: Tensor, targets: Tensor) -> Totals:
        flat_NV, y_N = outputs.flatten(0, 1), targets.flatten()
        there = y_N != IGNORED
        flat_NV, y_N = flat_NV[there], y_N[there]
        return {
            "right": (flat_NV.argmax(dim=1) == y_N).sum().reshape(1),
            "total": there.sum().reshape(1),
            "nll": fixed(F.cross_entropy(flat_NV.double(), y_N, reduction="none")[:, None]),
        }

    def metrics(self, totals: Totals) -> dict[str, float]:
        loss = float(real(totals["nll"]).sum() / totals["total"].sum().clamp(min=1))
        return {
            "token_accuracy": float(ratio(totals["right"].sum(), totals["total"].sum())),
            "perplexity": math.exp(min(loss, MOST_LOSS)),
        }

    def breakdown(self, totals: Totals) -> dict[str, float]:
        return {}

    def fault(self, totals: Totals) -> str:
        if bool((totals["right"] > totals["total"]).any()):
            return "more right tokens than steps"
        return negative(totals)

    def soften(self, outputs: Tensor, temperature: float) -> Tensor:
        raise NotImplementedError("soft is None")

    def agree(self, outputs: Tensor, soft: Tensor, temperature: float) -> Tensor:
        raise NotImplementedError("soft is None")


TASKS = {"next_token": NextToken}
