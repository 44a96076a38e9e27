"""A gradient step that must not undo another: projection on a half-space, in closed form.

    z = g                              if ⟨g, r⟩ ≥ 0
    z = g - (⟨g, r⟩ / ‖r‖²) r          otherwise;  then ⟨z, r⟩ = 0 and ‖z‖ ≤ ‖g‖
    margin γ > 0:  z = g + max(γ - ⟨g, r⟩ / ‖r‖², 0) r,  so that ⟨z, r⟩ ≥ γ ‖r‖²

It is the solution of min_z ½‖z - g‖² subject to ⟨z, r⟩ ≥ γ‖r‖², the one-constraint case of gradient episodic memory
(Lopez-Paz and Ranzato 2017, arXiv 1706.08840).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from potluck.core import meter
from potluck.core.contexts import DeviceContext
from potluck.training.fit import Fit

Protect = Literal["private", "seed", "both", "none"]
SMALLEST_SQUARE = 1e-12
"""A reference gradient of a smaller squared norm says nothing."""


def project(g: Tensor, r: Tensor, margin: float = 0.0) -> Tensor:
    """z for the gradient ``g`` and the reference ``r``, both flat; ``g`` itself where nothing is in conflict."""
    square = torch.dot(r, r)
    if float(square) < SMALLEST_SQUARE:
        return g
    share = torch.dot(g, r) / square
    return g if float(share) >= margin else g + (margin - share) * r


def trainable(net: nn.Module) -> list[nn.Parameter]:
    """The trainable parameters in the order of their names."""
    return [value for _, value in sorted(net.named_parameters()) if value.requires_grad]


def flat(gradients: Sequence[Tensor | None], parameters: Sequence[Tensor]) -> Tensor:
    """The gradients as one float32 vector; a missing one is zero."""
    pairs = zip(gradients, parameters, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).reshape(-1).float() for g, p in pairs])


def put(vector: Tensor, parameters: Sequence[nn.Parameter]) -> None:
    """Makes ``vector`` the gradients of the parameters."""
    at = 0
    for parameter in parameters:
        part = vector[at : at + parameter.numel()]
        parameter.grad = part.reshape(parameter.shape).to(parameter.dtype).clone()
        at += parameter.numel()


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """Adjusts the gradients g of steps on shared samples by a reference r: the loss of a private batch, at the same θ.

    ``private`` steps with g projected on r; ``seed`` with r projected on g; ``both`` with the sum of the two (in the
    manner of PCGrad, arXiv 2001.06782).
    """

    fit: Fit
    context: DeviceContext
    protect: Protect
    margin: float
    batches: Iterator[tuple[Tensor, Tensor]]
    seen: list[tuple[float, float]] = field(default_factory=list)
    """(cosine of g and r, ‖g - z‖/‖g‖) of each step."""

    @classmethod
    def of(cls, fit: Fit, context: DeviceContext, protect: Protect, margin: float) -> Guard:
        """A guard whose private batches go round the task's data in an order of their own."""
        return cls(fit=fit, context=context, protect=protect, margin=margin, batches=_endless(fit, context))

    def adjust(self, net: nn.Module) -> None:
        """Replaces the gradients of the net."""
        if self.protect == "none" or not len(self.context.data):
            return
        parameters = trainable(net)
        g = flat([p.grad for p in parameters], parameters)
        x, y = next(self.batches)
        with self.fit.autocast():
            loss = self.fit.base(net, x, y)
        r = flat(torch.autograd.grad(loss, parameters, allow_unused=True), parameters)
        self.fit.count(net, self.context, "reference", self.context.data, len(y))
        first, second = (r, g) if self.protect == "seed" else (g, r)
        z = project(first, second, self.margin)
        lengths = float(first.norm() * second.norm())
        cosine = float(torch.dot(first, second)) / lengths if lengths else 0.0
        self.seen.append((cosine, float((first - z).norm()) / max(float(first.norm()), 1e-30)))
        put(z + project(r, g, self.margin) if self.protect == "both" else z, parameters)

    def note(self) -> None:
        """Puts the share of steps in conflict, the mean removed share and the mean cosine into the round's record."""
        if self.seen:
            steps = len(self.seen)
            meter.note("conflict_rate", sum(cosine < 0 for cosine, _ in self.seen) / steps)
            meter.note("removed_norm", sum(removed for _, removed in self.seen) / steps)
            meter.note("cosine", sum(cosine for cosine, _ in self.seen) / steps)


def _endless(fit: Fit, context: DeviceContext) -> Iterator[tuple[Tensor, Tensor]]:
    rng = context.rng("reference")
    while True:
        for x, y, _ in fit.batches(context.data, rng, 1):
            yield x, y
