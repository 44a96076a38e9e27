"""FedProx: local training that is held near the global weights, and devices that may do less work.

T. Li, A. K. Sahu, M. Zaheer, M. Sanjabi, A. Talwalkar, V. Smith, *Federated Optimization in Heterogeneous Networks*,
2018, arXiv 1812.06127.

    θ_k ≈ argmin_w  F_k(w) + (μ/2) ‖w - w_t‖²          its gradient: ∇F_k(w) + μ (w - w_t)

| symbol | name | meaning |
|---|---|---|
| w_t | ``anchor`` | the weights that the device received: a detached copy, made before the first step |
| μ | ``mu`` | strength of the pull towards them |

Partial work, the paper's second idea, is ``[train] epochs`` per tier; a device that did less counts in full.

What the term is not, though it is often written so: a sum of *unsquared* norms (its gradient would not vanish at w_t),
or a distance to ``net.parameters()`` kept as the generator that it is (empty from the second batch on, so that the term
is gone), or a matter of the server alone (whose side is plain averaging: without the device's half this is FedAvg).
With F = a/2 (w - c)² and steps of size η, K steps from w_t end at w* + (1 - η (a + μ))^K (w_t - w*), where
w* = (a c + μ w_t) / (a + μ): a test holds us to it.

*Departures*: none known. The norm is squared, one sum over all trainable tensors; the term stands in the loss, so that
momentum and weight decay see it. *Defaults*: ``mu`` = 0.01, the weaker end of the paper's search (our reading).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor, nn

from potluck.core.contexts import DeviceContext
from potluck.methods.averaging import Averaging, State, Update


@dataclass(frozen=True, slots=True, kw_only=True)
class FedProx(Averaging):
    """averaging with a proximal term, and per-tier epochs"""

    mu: Annotated[float, Ge(0), Le(10)] = 0.01

    def train(self, local_state: None, broadcast: State, context: DeviceContext) -> tuple[None, Update]:
        net = self.net.with_weights(context.device.tier, broadcast["weights"])
        anchor = [w.detach().clone() for w in net.parameters()]

        def objective(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            distance = torch.stack([(w - a).square().sum() for w, a in zip(net.parameters(), anchor, strict=True)])
            return self.fit.base(net, x, y) + self.mu / 2 * distance.sum()

        trained = self.fit.train(net, context, objective=objective if self.mu > 0 else None)
        return None, self.answer(net, broadcast["weights"], trained)


METHODS = {"fedprox": FedProx}
