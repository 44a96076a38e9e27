"""Federated averaging.

H. B. McMahan, E. Moore, D. Ramage, S. Hampson, B. Agüera y Arcas, *Communication-Efficient Learning of Deep Networks
from Decentralized Data*, 2017, arXiv 1602.05629.

    θ_k ← E epochs of SGD on F_k from w_t            w_{t+1} = Σ_{k∈Q} n_k θ_k / Σ_{k∈Q} n_k

| symbol | name | meaning |
|---|---|---|
| w_t | ``state["weights"]`` | global weights, sent to every device of the round |
| θ_k | ``update["weights"]`` | device k's weights after local training |
| n_k | ``update["samples"]`` | device k's samples |
| Q | ``replies`` | the devices that answered |

What the server does (initial_state, broadcast, aggregate) is ``averaging.py``, which other methods share.

*Departures*: floating buffers are averaged like parameters and integer buffers keep the largest; ``server_lr`` scales
the step towards the mean; ``send = "update"`` sends θ_k - w_t, which lossy codecs want. The defaults switch both off.
*Defaults*: ours; local training is ``[train]``.
"""

from __future__ import annotations

from dataclasses import dataclass

from potluck.core.contexts import DeviceContext
from potluck.methods.averaging import Averaging, State, Update


@dataclass(frozen=True, slots=True, kw_only=True)
class FedAvg(Averaging):
    """mean of the devices' weights"""

    def train(self, local_state: None, broadcast: State, context: DeviceContext) -> tuple[None, Update]:
        net = self.net.with_weights(context.device.tier, broadcast["weights"])
        trained = self.fit.train(net, context)
        return None, self.answer(net, broadcast["weights"], trained)


METHODS = {"fedavg": FedAvg}
