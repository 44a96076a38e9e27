"""Classification: one class of several a sample; cross-entropy.

| metric | meaning |
|---|---|
| accuracy | right answers / samples |
| balanced_accuracy | mean recall of the classes that occur |
| macro_f1 | mean F1 of the classes that occur, or were said |
| top5 | the class is among the five likeliest; with more than five classes |
| log_loss | mean negative log-likelihood, nats |
| auroc, average_precision | of class 1 against class 0; with two classes (curves.py) |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from potluck.core.types import TargetFacts
from potluck.tasks import curves
from potluck.tasks.task import Better, Soft, Totals, fixed, mean_of, negative, ratio, real

TOP = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Classification:
    """one class of several; accuracy"""

    facts: TargetFacts

    name: ClassVar[str] = "classification"
    primary: ClassVar[str] = "accuracy"
    better: ClassVar[Better] = "higher"
    per_step: ClassVar[bool] = False
    soft: ClassVar[Soft | None] = Soft(low=0.0, high=1.0, distribution=True)

    @property
    def outputs(self) -> int:
        """A logit a class."""
        return self.facts.outputs

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets)

    def totals(self, outputs: Tensor, targets: Tensor) -> Totals:
        classes = self.facts.outputs
        y_B, said_B = targets.clamp(0, classes - 1), outputs.argmax(dim=1)
        nll_B = F.cross_entropy(outputs.double(), y_B, reduction="none")
        found = {
            "right": torch.bincount(y_B[said_B == y_B], minlength=classes),
            "total": torch.bincount(y_B, minlength=classes),
            "said": torch.bincount(said_B, minlength=classes),
            "nll": fixed(nll_B[:, None]),
        }
        if classes > TOP:
            found["top5"] = (outputs.topk(TOP, dim=1).indices == y_B[:, None]).sum().reshape(1)
        if classes == 2:
            found["curve"] = curves.histogram(outputs.double().softmax(dim=1)[:, 1:], y_B[:, None] == 1)
        return found

    def metrics(self, totals: Totals) -> dict[str, float]:
        right, total, said = totals["right"], totals["total"], totals["said"]
        samples = total.sum()
        found = {
            "accuracy": float(ratio(right.sum(), samples)),
            "balanced_accuracy": mean_of(ratio(right, total), total > 0),
            "macro_f1": mean_of(ratio(2 * right, total + said), total + said > 0),
            "log_loss": float(real(totals["nll"]).sum() / samples.clamp(min=1)),
        }
        if "top5" in totals:
            found["top5"] = float(ratio(totals["top5"].sum(), samples))
        if "curve" in totals:
            found["auroc"] = float(curves.auroc(totals["curve"])[0])
            found["average_precision"] = float(curves.average_precision(totals["curve"])[0])
        return found

    def breakdown(self, totals: Totals) -> dict[str, float]:
        """The recall of each class that occurs."""
        rates, there = ratio(totals["right"], totals["total"]).tolist(), (totals["total"] > 0).tolist()
        return {
            self.facts.name(c): rate for c, (rate, is_there) in enumerate(zip(rates, there, strict=True)) if is_there
        }

    def fault(self, totals: Totals) -> str:
        if bool((totals["right"] > totals["total"]).any()):
            return "more right answers than samples"
        return negative(totals)

    def soften(self, outputs: Tensor, temperature: float) -> Tensor:
        """Posteriors."""
        return (outputs / temperature).softmax(dim=1)

    def agree(self, outputs: Tensor, soft: Tensor, temperature: float) -> Tensor:
        """The cross-entropy of posteriors, whose gradient is that of KL(soft ‖ softmax(outputs / temperature))."""
        return -(soft * (outputs.float() / temperature).log_softmax(dim=1)).sum(dim=1).mean()


TASKS = {"classification": Classification}
