"""The evaluation of a net: the totals of its task, of all samples and of each domain."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from potluck.core.types import Shard
from potluck.tasks.task import LearningTask, Totals, added, fixed, real

Metric = Callable[[Tensor, Tensor], Tensor]
"""(outputs (B, ...), targets (B, ...)) -> a number per sample, (B,), whose mean is reported: a metric of one's own."""
Score = Mapping[str, Any]
"""``{"all": totals, "domains": {"0": totals}}``: a tree for the wire, whose sums add up over devices and samples."""
OWN_SUM, OWN_COUNT = "own_sum", "own_count"


@torch.no_grad()
def evaluate(
    net: nn.Module,
    shard: Shard,
    task: LearningTask,
    *,
    metric: Metric | None = None,
    domains: int = 0,
    batch_size: int = 250,
    device: str = "cpu",
) -> Score:
    """The totals over the share, and over each of so many domains; ``metric`` is summed beside those of the task."""
    net.eval()
    whole, by_domain = nothing(task, shard, metric), [nothing(task, shard, metric) for _ in range(domains)]
    for rows in torch.split(torch.arange(len(shard)), batch_size):
        part = shard.take(rows)
        out, y, d = net(part.x.to(device)), part.y.to(device), part.d
        whole = added(whole, _totals(task, out, y, metric))
        for domain in range(domains if d is not None else 0):
            here = torch.eq(d, domain).to(device)  # type: ignore[arg-type]
            if bool(here.any()):
                by_domain[domain] = added(by_domain[domain], _totals(task, out[here], y[here], metric))
    return {"all": whole, "domains": {str(at): totals for at, totals in enumerate(by_domain)}}


def nothing(task: LearningTask, shard: Shard, metric: Metric | None = None) -> dict[str, Tensor]:
    """The totals of no sample: what all totals of the task look like."""
    steps = tuple(shard.targets.shape[1:]) if task.per_step else ()
    empty = torch.zeros((0, *steps, task.outputs))
    found = {name: value.cpu() for name, value in task.totals(empty, shard.targets[:0]).items()}
    own = {OWN_SUM: torch.zeros(1, dtype=torch.int64), OWN_COUNT: torch.zeros(1, dtype=torch.int64)}
    return found if metric is None else {**found, **own}


def _totals(task: LearningTask, outputs: Tensor, targets: Tensor, metric: Metric | None) -> dict[str, Tensor]:
    found = {name: value.cpu() for name, value in task.totals(outputs.float(), targets).items()}
    if metric is not None:
        values = metric(outputs, targets).reshape(len(targets))
        found[OWN_SUM] = fixed(values[:, None]).cpu()
        found[OWN_COUNT] = torch.tensor([len(targets)])
    return found


def metrics_of(task: LearningTask, totals: Totals, own: str = "") -> dict[str, float]:
    """The metrics of totals; one's own by the name ``own``, which then is the first."""
    found = task.metrics({name: value for name, value in totals.items() if name not in (OWN_SUM, OWN_COUNT)})
    if not own:
        return found
    mean = float(real(totals[OWN_SUM]).sum()) / max(1, int(totals[OWN_COUNT].sum()))
    return {own: mean, **found}


def sum_scores(first: Score, second: Score) -> Score:
    """The sums of both."""
    pairs = {name: added(value, second["domains"][name]) for name, value in first["domains"].items()}
    return {"all": added(first["all"], second["all"]), "domains": pairs}
