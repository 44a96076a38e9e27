"""Nets with one equilibrium layer: one cell, iterated for as many evaluations as a device can afford.

    x = stem(image),   z* = f(z*, x),   logits = head(z*)
    stem:  conv 3×3, n→c, with bias; GroupNorm(8, c)
    cell:  f(z, x) = N3( relu( z + N2( x + W2 * N1( relu( W1 * z ) ) ) ) ),   W1: c→w, W2: w→c, 3×3, no bias
    head:  GroupNorm(8, c); adaptive average pool to 4×4; linear 16c → classes

For a series the convolutions go along its steps, and the pool leaves four of them; for rows they are linear layers,
the norms have one group, since a channel is one number there, and there is nothing to pool.

The budget, the solver and the gradient are set on an existing net and are no part of its state dict. The last operation
of the cell is a norm, which bounds the state; its kernels start at N(0, 0.01²), without which the iteration does not
start out convergent. Source of the cell: FeDEQ (Le et al., arXiv 2309.15659); ``-like``: our reading of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potluck.core.errors import ModelError
from potluck.nets.net import Net, by_shape
from potluck.nets.odenet import channels_first, require_room
from potluck.solvers import FixedPoint, Gradient, Phantom, Solution, Solver, solve
from potluck.solvers.gradient import tail_of
from potluck.solvers.options import MOST_STEPS

WIDTHS = {"deq-xs-like": (16, 32), "deq-s-like": (48, 64), "deq-m-like": (64, 128), "deq-l-like": (128, 256)}
"""(c, w): the channels of the state, and those inside the cell."""
DEQ_NORMS = ("group", "none")
STARTS = ("zero", "input")
GROUPS = 8
POOL = 4
INITIAL_DEVIATION = 0.01

Kernels = tuple[Tensor, Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]
"""(logits (B, classes), labels (B,)) → a scalar."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeqDepth:
    """How the cell is iterated: ``steps`` evaluations, from z0 = 0 (``zero``) or z0 = x (``input``).

    With a tolerance there may be fewer: a sample stops once its residual is at most ``tol``.
    """

    steps: int
    solver: Solver
    gradient: Gradient
    z0: str
    tol: float | None = None


class Trace(NamedTuple):
    """What a forward pass found: the logits (B, classes), the solution, and the logits of its recorded tail states."""

    logits: Tensor
    solution: Solution
    tail_logits: tuple[Tensor, ...]


class DeqCell(nn.Module):
    """f(z, x). With ``weight_norm`` each kernel is a direction times a length per output channel."""

    gain1: nn.Parameter | None
    gain2: nn.Parameter | None

    def __init__(self, channels: int, inner: int, norm: str, *, weight_norm: bool, dims: int = 2) -> None:
        super().__init__()
        self.kernel1 = nn.Parameter(torch.randn(inner, channels, *[3] * dims) * INITIAL_DEVIATION)
        self.kernel2 = nn.Parameter(torch.randn(channels, inner, *[3] * dims) * INITIAL_DEVIATION)
        self.norm1 = _norm(norm, inner, dims)
        self.norm2 = _norm(norm, channels, dims)
        self.norm3 = _norm(norm, channels, dims)
        self.register_parameter("gain1", nn.Parameter(_lengths(self.kernel1)) if weight_norm else None)
        self.register_parameter("gain2", nn.Parameter(_lengths(self.kernel2)) if weight_norm else None)

    def kernels(self) -> Kernels:
        """The two kernels, scaled where the cell has weight norm: once for all evaluations of a solve."""
        return _scaled(self.kernel1, self.gain1), _scaled(self.kernel2, self.gain2)

    def forward(self, z_BCHW: Tensor, x_BCHW: Tensor, kernels: Kernels) -> Tensor:
        inner = self.norm1(F.relu(_conv(z_BCHW, kernels[0]), inplace=True))
        outer = self.norm2(x_BCHW + _conv(inner, kernels[1]))
        f_BCHW: Tensor = self.norm3(F.relu(z_BCHW + outer, inplace=True))
        return f_BCHW


class DeqNet(nn.Module):
    """Logits (B, classes) of images (B, C, H, W), series (B, S, C) or rows (B, C), by ``depth.steps`` evaluations."""

    def __init__(
        self, shape: Sequence[int], classes: int, widths: tuple[int, int], norm: str, weight_norm: bool
    ) -> None:
        super().__init__()
        channels, inner = widths
        dims = len(shape) - 1
        first = shape[1] if dims == 1 else shape[0]
        self.depth = DeqDepth(steps=8, solver=FixedPoint(), gradient=Phantom(), z0="zero")
        self.stem = nn.Sequential(_stem(first, channels, dims), _norm(norm, channels, dims))
        self.cell = DeqCell(channels, inner, norm, weight_norm=weight_norm, dims=dims)
        pool = (nn.Identity(), nn.AdaptiveAvgPool1d(POOL), nn.AdaptiveAvgPool2d(POOL))[dims]
        last = nn.Linear(channels * POOL**dims, classes)
        self.head = nn.Sequential(_norm(norm, channels, dims), pool, nn.Flatten(), last)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        logits_BN: Tensor = self.head(self.equilibrium(image_BCHW).value)
        return logits_BN

    def equilibrium(self, image_BCHW: Tensor) -> Solution:
        """What the cell's iteration found, before the head."""
        x_BCHW, kernels, depth = self.stem(channels_first(image_BCHW)), self.cell.kernels(), self.depth
        return solve(
            lambda z_BCHW: self.cell(z_BCHW, x_BCHW, kernels),
            torch.zeros_like(x_BCHW) if depth.z0 == "zero" else x_BCHW,
            solver=depth.solver,
            gradient=depth.gradient,
            steps=depth.steps,
            tol=depth.tol,
        )

    def trace(self, image_BCHW: Tensor) -> Trace:
        """The logits with their solution (residuals, evaluations) and, while gradients are on, the tail's logits.

        The tail's states are those before the last, oldest first; the gradient option decides how many there are.
        """
        solution = self.equilibrium(image_BCHW)
        return Trace(self.head(solution.value), solution, tuple(self.head(z_BCHW) for z_BCHW in solution.tail))

    def jacobian_penalty(self, image_BCHW: Tensor, z_BCHW: Tensor, rng: torch.Generator) -> Tensor:
        """‖Jᵀε‖²/D averaged over the batch, one Gaussian probe ε, J = ∂f/∂z at ``z_BCHW`` (held constant), D = C·H·W.

        Differentiable in the weights. Costs one evaluation of the cell beyond the budget, and its double backward.
        """
        x_BCHW, kernels = self.stem(channels_first(image_BCHW)), self.cell.kernels()
        z_in = z_BCHW.detach().requires_grad_()
        f_BCHW = self.cell(z_in, x_BCHW, kernels)
        probe = torch.randn(z_in.shape, generator=rng, device=rng.device, dtype=z_in.dtype).to(z_in.device)
        (product,) = torch.autograd.grad(f_BCHW, z_in, probe.to(f_BCHW.dtype), create_graph=True)
        return product.square().mean()


def make_deq(
    name: str, shape: Sequence[int], classes: int, norm: str = "group", *, weight_norm: bool = False
) -> DeqNet:
    """The preset ``name`` for images of ``shape`` = (channels, height, width), 8×8 or larger, series or rows.

    Eight plain steps.
    The norm is GroupNorm of 8 groups, or none; ``weight_norm`` is that of the cell's kernels. Raises ModelError for an
    unknown preset or norm, or a shape that does not fit.
    """
    if name not in WIDTHS:
        raise ModelError(f'model.name = "{name}": expected one of {", ".join(WIDTHS)}.')
    require_room(name, shape)
    if norm not in DEQ_NORMS:
        raise ModelError(
            f'model.norm = "{norm}": {name} expects one of {", ".join(DEQ_NORMS)}, since each evaluation of the cell '
            "would move the statistics of a batch norm."
        )
    return DeqNet(shape, classes, WIDTHS[name], norm, weight_norm)


def set_depth(
    net: nn.Module,
    steps: int,
    *,
    solver: Solver,
    gradient: Gradient,
    z0: str = "zero",
    tol: float | None = None,
    key: str = "steps",
) -> None:
    """Sets how the cell of ``net`` is iterated, in place.

    Raises ModelError for values out of range (naming ``key``) or a net of another kind, ValueError for a solver and a
    gradient that do not go together.
    """
    if not isinstance(net, DeqNet):
        raise ModelError(
            f"a net of kind {type(net).__name__} has no cell: expected one of {', '.join(WIDTHS)}, or a DeqNet of "
            "your own (potluck.nets.deqnet)."
        )
    if not isinstance(steps, int) or isinstance(steps, bool) or not 1 <= steps <= MOST_STEPS:
        raise ModelError(f"{key} = {steps!r}: expected an integer from 1 to {MOST_STEPS}.")
    if z0 not in STARTS:
        raise ModelError(f'z0 = "{z0}": expected one of {", ".join(STARTS)}.')
    tail_of(gradient, solver, steps)  # refuses at once what solve() would refuse in the first batch
    net.depth = DeqDepth(steps=steps, solver=solver, gradient=gradient, z0=z0, tol=tol)


def equilibrium_loss(
    net: DeqNet,
    image_BCHW: Tensor,
    label_B: Tensor,
    *,
    loss: Loss = F.cross_entropy,
    fixed_point_loss: float = 0.0,
    jacobian_weight: float = 0.0,
    rng: torch.Generator | None = None,
) -> tuple[Tensor, Solution]:
    """The loss of the logits, plus the fixed-point correction, plus the Jacobian penalty; and the solution.

    The correction is Σ_j γ^(K-j) · loss(head(z_j)) over the recorded states j < K, γ = ``fixed_point_loss``; the
    penalty has the weight ``jacobian_weight`` and needs ``rng``. A term of weight 0 is not computed, adds nothing.
    """
    if fixed_point_loss == 0:
        solution = net.equilibrium(image_BCHW)
        total = loss(net.head(solution.value), label_B)
    else:
        logits_BN, solution, tail_logits = net.trace(image_BCHW)
        total = loss(logits_BN, label_B)
        for age, earlier_BN in enumerate(reversed(tail_logits), start=1):
            total = total + fixed_point_loss**age * loss(earlier_BN, label_B)
    if jacobian_weight:
        assert rng is not None, "the Jacobian penalty draws a probe: give rng"
        total = total + jacobian_weight * net.jacobian_penalty(image_BCHW, solution.value, rng)
    return total, solution


def _conv(z: Tensor, kernel: Tensor) -> Tensor:
    """The convolution of the state with a kernel, along as many dimensions as the kernel has; along none, a product."""
    if kernel.dim() == 2:
        return F.linear(z, kernel)
    return F.conv2d(z, kernel, padding=1) if kernel.dim() == 4 else F.conv1d(z, kernel, padding=1)


def _stem(inputs: int, channels: int, dims: int) -> nn.Module:
    if dims == 0:
        return nn.Linear(inputs, channels)
    return (nn.Conv2d if dims == 2 else nn.Conv1d)(inputs, channels, 3, padding=1)


def _norm(kind: str, channels: int, dims: int) -> nn.Module:
    return nn.GroupNorm(GROUPS if dims else 1, channels) if kind == "group" else nn.Identity()


def _lengths(kernel_OIHW: Tensor) -> Tensor:
    lengths_O: Tensor = torch.linalg.vector_norm(kernel_OIHW.detach().flatten(1), dim=1)
    return lengths_O


def _scaled(kernel_OIHW: Tensor, gain_O: Tensor | None) -> Tensor:
    if gain_O is None:
        return kernel_OIHW
    behind = tuple(range(1, kernel_OIHW.dim()))
    lengths_O111: Tensor = torch.linalg.vector_norm(kernel_OIHW, dim=behind, keepdim=True)
    return kernel_OIHW * (gain_O.reshape(-1, *[1] * len(behind)) / lengths_O111)


def _set_steps(net: nn.Module, steps: int) -> None:
    set_depth(net, steps, solver=FixedPoint(), gradient=Phantom(), key="model.steps")


PARAMETERS = {"deq-xs-like": "12,426", "deq-s-like": "64,842", "deq-m-like": "160,266", "deq-l-like": "615,434"}
"""For 10 classes of 3x32x32."""
NETS = {
    name: Net(
        line=f"one equilibrium layer, width {width}, {inner} inside its cell; {PARAMETERS[name]} parameters",
        make=by_shape(partial(make_deq, name)),
        kind="deq",
        inputs=("images", "series", "rows"),
        set_depth=_set_steps,
    )
    for name, (width, inner) in WIDTHS.items()
}
