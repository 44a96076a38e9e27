"""Each device's own test: what is held out, what is said of it, and that the common test stays what it was."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest
import torch

from potluck.core.errors import ConfigError
from potluck.experiment import run
from potluck.experiment.prepare import prepare
from potluck.report import page, runs
from potluck.testing import small_experiment

BOTH = ("evaluate.on=both", "evaluate.own_test=0.25", "fleet.participation=1.0")


def test_a_share_of_each_devices_data_is_held_out_and_not_trained_on() -> None:
    plain, shares = prepare(small_experiment("fedavg")).shares, prepare(small_experiment("fedavg", *BOTH)).shares
    assert plain.own is None
    assert shares.own is not None
    for whole, kept, held in zip(plain.train, shares.train, shares.own, strict=True):
        assert len(held) == max(1, round(0.25 * len(whole)))
        together = torch.cat([kept.index, held.index]).sort().values
        assert torch.equal(together, whole.index.sort().values)


@pytest.mark.parametrize("method", ["fedavg", "local", "fedhm", "fedh2l"])
@pytest.mark.parametrize("task", ["classification", "regression"])
def test_both_tests_are_told_beside_each_other(method: str, task: str, tmp_path: Path) -> None:
    found = run.run(small_experiment(method, *BOTH, task=task), tmp_path / "run")
    own, common = found.rounds[-1]["own"], found.rounds[-1]["metric"]
    values = list(own["devices"].values())
    assert len(values) == 4
    assert own["mean"] == pytest.approx(statistics.mean(values))
    assert own["worst"] == (min(values) if common["better"] == "higher" else max(values))
    assert own["percentiles"]["50"] == pytest.approx(statistics.median(values))
    assert found.summary["own"] == own
    assert common["mean"] != own["mean"]
    html = page.write_report([tmp_path / "run"], tmp_path / "report.html").read_text(encoding="utf-8")
    assert "on each device's own data" in html.replace("&#x27;", "'").replace("\\u0027", "'")
    assert runs.read(tmp_path / "run").rounds[-1].own is not None


def test_the_pool_says_the_same_and_the_own_test_alone_is_the_metric(tmp_path: Path) -> None:
    here = run.run(small_experiment("fedavg", *BOTH), tmp_path / "here")
    there = run.run(small_experiment("fedavg", *BOTH, "engine.kind=pool", "engine.workers=2"), tmp_path / "there")
    alone = run.run(small_experiment("fedavg", *BOTH[1:], "evaluate.on=own"), tmp_path / "alone")
    assert here.rounds[-1]["own"] == there.rounds[-1]["own"]
    assert alone.rounds[-1]["metric"]["mean"] == here.rounds[-1]["own"]["mean"]
    assert "own" not in alone.rounds[-1]
    assert alone.summary["state_sha256"] == here.summary["state_sha256"]


def test_it_changes_what_is_trained_so_it_changes_the_digest() -> None:
    digests = {
        prepare(small_experiment("fedavg", *settings)).resolved.digest
        for settings in ((), ("evaluate.on=both",), BOTH[:2], ("evaluate.on=own", "evaluate.own_test=0.25"))
    }
    assert len(digests) == 3


def test_real_devices_are_told_that_it_does_not_work_yet() -> None:
    with pytest.raises(ConfigError, match="works in a simulation so far"):
        prepare(small_experiment("fedavg", "evaluate.on=own", "engine.kind=flower"))
