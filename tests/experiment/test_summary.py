"""AD and AL: accuracy on all domains, and on a device's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from potluck.core.types import TargetFacts
from potluck.experiment import run, summary
from potluck.experiment.config import Experiment
from potluck.experiment.measure import Measure
from potluck.tasks.classification import Classification

MakeExperiment = Callable[..., Experiment]


MEASURE = Measure(name="accuracy", better="higher", task=Classification(facts=TargetFacts(outputs=3)))


def totals(right: list[int], total: list[int]) -> dict[str, torch.Tensor]:
    nothing = {"said": torch.zeros(3, dtype=torch.int64), "nll": torch.zeros(1, dtype=torch.int64)}
    return {"right": torch.tensor(right), "total": torch.tensor(total), **nothing}


def test_with_domains_each_counts_the_same() -> None:
    parts = zip(([1, 0, 0], [3, 0, 0], [0, 0, 0]), ([10, 0, 0], [4, 0, 0], [0, 0, 0]), strict=True)
    domains = {str(at): totals(*part) for at, part in enumerate(parts)}
    found = {"all": totals([4, 0, 0], [30, 0, 0]), "domains": domains}
    ad, al = summary.ad_and_al(found, MEASURE, torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64))
    assert (ad, al) == (pytest.approx((0.1 + 0.75) / 2), pytest.approx(0.75))


def test_without_domains_recalls_are_weighted_by_label_shares() -> None:
    found = {"all": totals([1, 3, 0], [10, 4, 0]), "domains": {}}
    ad, al = summary.ad_and_al(found, MEASURE, torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64))
    assert ad == pytest.approx(4 / 14)
    assert al == pytest.approx((0.5 * 0.1 + 0.25 * 0.75) / 0.75)


def test_domains_of_a_run_reach_its_lines(small: MakeExperiment, tmp_path: Path) -> None:
    experiment = small(
        "fedh2l",
        "data.source=synthetic:300,1,8,8",
        'data.partition={kind="domains",rotate=[0,90]}',
        "fleet.participation=1.0",
        "model.name=mlp",
    )
    accuracy = run.run(experiment, tmp_path / "run").rounds[-1]["accuracy"]
    for device, domains in accuracy["domains"].items():
        assert accuracy["ad"]["devices"][device] == pytest.approx(sum(domains) / 2)
        assert accuracy["al"]["devices"][device] == pytest.approx(domains[int(device) % 2])
    assert accuracy["al"]["mean"] == pytest.approx(sum(accuracy["al"]["devices"].values()) / 4)
    shared = run.run(small("fedavg"), tmp_path / "shared").rounds[-1]["accuracy"]
    assert shared["ad"] == {"mean": pytest.approx(shared["mean"])}
