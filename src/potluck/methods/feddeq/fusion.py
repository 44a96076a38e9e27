"""Fusion of weights: how much the reply of each device counts in the mean.

    samples      n_i
    iterations   n_i K_i^p
    residual     n_i exp(-β r_i)
    calibrated   softmax(a): a fitted so that the loss of the fused weights Σ w_i θ_i on samples of the server is least

The first three are not normalised: a weighted mean divides by their sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from potluck.core import meter
from potluck.core.contexts import Reply
from potluck.core.errors import ConfigError
from potluck.core.mean import WeightedMean
from potluck.core.options import Setup
from potluck.core.types import Shard

Weights = Mapping[str, Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]
RULE_OF = {"fusion_power": "iterations", "fusion_beta": "residual", "fusion_steps": "calibrated"}
UNHEALTHY, DOUBTFUL, CLIP = 1.0, 0.3, 10.0
"""Mean residuals: above the first a reply is left out, above the second it is noted; none above the third is sent."""
RATE = 0.1
"""The learning rate of Adam on a."""


def require_rule(rule: str, setup: Setup) -> None:
    """Raises ConfigError for a rule without the data it needs, and for options of another rule."""
    for key, owner in RULE_OF.items():
        if rule != owner and key in setup.given:
            raise ConfigError(
                f'method.{key} = {setup.given[key]} has no effect with fusion = "{rule}"; '
                f'remove it or choose "{owner}".'
            )
    if rule == "calibrated" and setup.server_samples < 2:
        raise ConfigError(
            'method.fusion = "calibrated" needs server data: set data.server_samples >= 2, or choose samples, '
            "iterations or residual."
        )


def sound(replies: Iterable[Reply[Any]]) -> Iterator[Any]:
    """The messages of the healthy replies; the record of the round names the others, with the reason."""
    for reply in replies:
        update, residual = reply.update, reply.update["residual"]
        if update["healthy"] and "weights" in update and residual <= UNHEALTHY:
            yield update
        else:
            reason = f"mean residual above {UNHEALTHY:g}" if residual < CLIP else "something is not finite"
            meter.note(f"device {reply.device.id} dropped: {reason}", residual)


def share(rule: str, samples: int, steps: int, residual: float, *, power: float, beta: float) -> float:
    """The weight of one reply by a rule that needs no data."""
    if rule == "iterations":
        return samples * math.pow(steps, power)
    if rule == "residual":
        return samples * math.exp(-beta * residual)
    return float(samples)  # also where calibrated starts


def calibrated(
    theta_RP: Tensor,
    shares: Iterable[float],
    fit: Callable[[Tensor], Tensor],
    judge: Callable[[Tensor], Tensor],
    steps: int,
) -> Tensor:
    """The weights w (R,) of R replies, non-negative and of sum 1.

    ``theta_RP`` holds a flat reply in each row; ``fit`` and ``judge`` give the loss of flat weights (P,) on two sets of
    samples. ``steps`` steps of Adam from w proportional to ``shares``, which stay unless ``judge`` finds w better.
    """
    start_R = torch.tensor(list(shares), dtype=theta_RP.dtype, device=theta_RP.device)
    start_R = start_R / start_R.sum()
    a_R = start_R.log().requires_grad_()
    optimiser = torch.optim.Adam([a_R], lr=RATE)
    least, w_R = math.inf, start_R
    for step in range(steps + 1):
        loss = fit(torch.softmax(a_R, 0) @ theta_RP)
        if float(loss.detach()) < least:  # Adam swings round a minimum: the best place it passed counts, not the last
            least, w_R = float(loss.detach()), torch.softmax(a_R.detach(), 0)
        if step < steps:
            (a_R.grad,) = torch.autograd.grad(loss, [a_R])
            optimiser.step()
    with torch.no_grad():  # a loss that is not finite is not better
        better = bool(judge(w_R @ theta_RP) < judge(start_R @ theta_RP))
    return w_R if better else start_R


def flat(weights: Weights) -> Tensor:
    """All numbers in one row, in the order of the names."""
    return torch.cat([weights[name].reshape(-1) for name in sorted(weights)])


def loss_of(net: nn.Module, like: Weights, x: Tensor, y: Tensor, loss: Loss) -> Callable[[Tensor], Tensor]:
    """Flat weights (P,), shaped as ``like`` -> the loss of ``net`` with them on the samples; the net is not changed."""
    names = sorted(like)
    sizes = [like[name].numel() for name in names]

    def found(theta_P: Tensor) -> Tensor:
        parts = zip(names, torch.split(theta_P, sizes), strict=True)
        named = {name: part.reshape(like[name].shape) for name, part in parts}
        return loss(torch.func.functional_call(net, named, (x,)), y)

    return found


def mean(replies: Iterable[tuple[Weights, float]]) -> dict[str, Tensor] | None:
    """The weighted mean, folded one by one; None of nothing. A reply without weight is left out."""
    found = WeightedMean()
    for weights, weight in replies:
        if weight > 0:
            found.add(weights, weight)
    return found.result() if found else None


def calibrated_mean(
    replies: Iterable[tuple[Weights, float]], net: nn.Module, held: Shard, loss: Loss, steps: int
) -> dict[str, Tensor] | None:
    """The mean with calibrated weights, for ``net``: the even samples of ``held`` fit, the odd ones judge.

    Memory: all replies at once.
    """
    kept = [(weights, share) for weights, share in replies if share > 0]
    if not kept:
        return None
    device = next(net.parameters()).device
    x, y = held.x.to(device), held.y.to(device)
    fit, judge = (loss_of(net.eval(), kept[0][0], x[first::2], y[first::2], loss) for first in (0, 1))
    with meter.part("calibrate"):
        theta_RP = torch.stack([flat(weights) for weights, _ in kept]).to(device)
        w_R = calibrated(theta_RP, [share for _, share in kept], fit, judge, steps)
    return mean((weights, w) for (weights, _), w in zip(kept, w_R.tolist(), strict=True))
