"""Multi-label: any number of labels a sample; binary cross-entropy of each.

| metric | meaning |
|---|---|
| average_precision, auroc | means over the labels that have both kinds of samples (curves.py) |
| macro_f1, micro_f1 | F1 at a probability of one half: mean over labels, and of all marks together |
| exact_match | samples whose labels are all right |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from potluck.core.types import TargetFacts
from potluck.tasks import curves
from potluck.tasks.task import Better, Soft, Totals, mean_of, negative, ratio


@dataclass(frozen=True, slots=True, kw_only=True)
class Multilabel:
    """any number of labels; average precision"""

    facts: TargetFacts

    name: ClassVar[str] = "multilabel"
    primary: ClassVar[str] = "average_precision"
    better: ClassVar[Better] = "higher"
    per_step: ClassVar[bool] = False
    soft: ClassVar[Soft | None] = Soft(low=0.0, high=1.0, distribution=False)

    @property
    def outputs(self) -> int:
        """A logit a label."""
        return self.facts.outputs

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(outputs, targets.to(outputs.dtype))

    def totals(self, outputs: Tensor, targets: Tensor) -> Totals:
        said_BL, marked_BL = outputs > 0, targets > 0
        return {
            "curve": curves.histogram(outputs.double().sigmoid(), marked_BL),
            "hits": (said_BL & marked_BL).sum(dim=0),
            "said": said_BL.sum(dim=0),
            "exact": (said_BL == marked_BL).all(dim=1).sum().reshape(1),
            "samples": outputs.new_zeros(1).long() + len(outputs),
        }

    def metrics(self, totals: Totals) -> dict[str, float]:
        marked = totals["curve"][:, 1].sum(dim=1)
        both = (marked > 0) & (marked < totals["samples"])
        size = marked + totals["said"]
        return {
            "average_precision": mean_of(curves.average_precision(totals["curve"]), both),
            "auroc": mean_of(curves.auroc(totals["curve"]), both),
            "macro_f1": mean_of(ratio(2 * totals["hits"], size), size > 0),
            "micro_f1": float(ratio(2 * totals["hits"].sum(), size.sum())),
            "exact_match": float(ratio(totals["exact"].sum(), totals["samples"].sum())),
        }

    def breakdown(self, totals: Totals) -> dict[str, float]:
        """The average precision of each label that occurs."""
        values, there = curves.average_precision(totals["curve"]).tolist(), totals["curve"][:, 1].sum(dim=1) > 0
        return {self.facts.name(at): value for at, value in enumerate(values) if bool(there[at])}

    def fault(self, totals: Totals) -> str:
        marks = totals["curve"].sum(dim=(1, 2))
        if bool((marks != totals["samples"]).any()) or bool((totals["exact"] > totals["samples"]).any()):
            return "counts that do not add up to the samples"
        return negative(totals)

    def soften(self, outputs: Tensor, temperature: float) -> Tensor:
        """The chance of each label."""
        return (outputs / temperature).sigmoid()

    def agree(self, outputs: Tensor, soft: Tensor, temperature: float) -> Tensor:
        """The cross-entropy of chances, summed over labels."""
        logits = outputs.float() / temperature
        return F.binary_cross_entropy_with_logits(logits, soft, reduction="none").sum(dim=1).mean()


TASKS = {"multilabel": Multilabel}
