"""The two apps of Flower on the same work: the FedAvg strategy, no evaluation on clients.

In a module of their own, so that Ray's processes import them: an app of the main script would be sent with all that
it refers to, the data among it, for every message.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
import work
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

HELD: dict[str, Any] = {}
"""Of an actor's process: the work, read once, as a careful user would do it."""


def held() -> work.Work:
    """The work, read once a process."""
    if not HELD:
        torch.set_num_threads(1)
        HELD["work"] = work.load()
        HELD["net"] = HELD["work"].make_net()
    return HELD["work"]


client = ClientApp()
server = ServerApp()


@client.train()
def train(message: Message, context: Context) -> Message:
    """One epoch on the client's share."""
    told = held()
    net = HELD["net"]
    x, y = told.shares[int(context.node_config["partition-id"])]
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    net.train()
    optimiser = torch.optim.SGD(net.parameters(), lr=told.lr)
    for rows in torch.split(torch.randperm(len(x)), told.batch):
        optimiser.zero_grad()
        F.cross_entropy(net(x[rows]), y[rows]).backward()
        optimiser.step()
    metrics = MetricRecord({"num-examples": len(x)})
    return Message(content=RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": metrics}), reply_to=message)


class Timed(FedAvg):
    """FedAvg that notes the end of each round."""

    ends: list[float] = []  # noqa: RUF012 - one a process

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        """The strategy's own, then the clock."""
        found = super().aggregate_train(server_round, replies)
        Timed.ends.append(work.now())
        return found


@server.main()
def main_server(grid: Grid, context: Context) -> None:
    """Plays the rounds."""
    told = held()
    strategy = Timed(fraction_train=1.0, fraction_evaluate=0.0, min_available_nodes=len(told.shares))
    result = strategy.start(grid=grid, initial_arrays=ArrayRecord(told.weights), num_rounds=told.rounds)
    net = told.make_net()
    net.load_state_dict(result.arrays.to_torch_state_dict())
    versions = {name: importlib.metadata.version(name) for name in ("flwr", "ray", "torch")}
    work.tell(Timed.ends, work.accuracy(net, told), versions)
