"""pfl-research on the same work. ``rival_pfl.py THREADS``, by itself or under ``torch.distributed.run``."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import sys
from typing import Any

import torch
import torch.nn.functional as F
import work
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn


class Learner(nn.Module):
    """The net with the two functions that pfl asks for."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def loss(self, x: Tensor, y: Tensor, eval: bool = False) -> Tensor:
        """Mean cross-entropy."""
        self.train(not eval)
        return F.cross_entropy(self.net(x), y)

    @torch.no_grad()
    def metrics(self, x: Tensor, y: Tensor, eval: bool = False) -> dict[str, Any]:
        """Never asked for here; pfl demands it."""
        self.train(not eval)
        return {"loss": Weighted(float(F.cross_entropy(self.net(x), y, reduction="sum")), len(y))}


class Clock(TrainingProcessCallback):
    """Notes the end of each round."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: Any, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        """Goes on."""
        self.ends.append(work.now())
        return False, Metrics()


def main() -> None:
    """Plays the rounds."""
    logging.disable(logging.WARNING)
    torch.set_num_threads(int(sys.argv[1]))
    told, clock = work.load(), Clock()
    torch.manual_seed(told.seed)
    learner, shares = Learner(told.make_net()), told.shares

    def share(user: int) -> PyTorchTensorDataset:
        x, y = shares[user]
        order = torch.randperm(len(x))  # each visit of a user in another order, as the others do
        return PyTorchTensorDataset((x[order], y[order]))

    model = PyTorchModel(
        learner,
        local_optimizer_create=torch.optim.SGD,
        central_optimizer=torch.optim.SGD(learner.parameters(), lr=1.0),
    )
    users = FederatedDataset(share, get_user_sampler("minimize_reuse", list(range(len(shares)))))
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=told.rounds,
            evaluation_frequency=10**6,
            train_cohort_size=len(shares),
            val_cohort_size=0,
        ),
        SimulatedBackend(training_data=users, val_data=users),
        model,
        NNTrainHyperParams(local_num_epochs=1, local_learning_rate=told.lr, local_batch_size=told.batch),
        NNEvalHyperParams(local_batch_size=250),
        [clock],
        send_metrics_to_platform=False,
    )
    if int(os.environ.get("RANK", "0")) == 0:
        versions = {"pfl": importlib.metadata.version("pfl"), "torch": torch.__version__}
        work.tell(clock.ends, work.accuracy(learner.net, told), versions)


if __name__ == "__main__":
    main()
