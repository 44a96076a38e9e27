"""Learning tasks: totals that add up exactly, and metrics that are those of torchmetrics."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchmetrics.functional import classification as theirs
from torchmetrics.functional import mean_absolute_error, mean_squared_error, r2_score
from torchmetrics.functional.text import perplexity

from potluck.core.errors import ConfigError
from potluck.core.types import TargetFacts
from potluck.tasks import TASKS
from potluck.tasks.classification import Classification
from potluck.tasks.curves import BINS
from potluck.tasks.multilabel import Multilabel
from potluck.tasks.next_token import NextToken
from potluck.tasks.regression import Regression
from potluck.tasks.task import IGNORED, LearningTask, added, strata_of, told_by

SCALE = TargetFacts(outputs=2, names=("rides", "cost"), mean=(100.0, -3.0), deviation=(50.0, 0.25))
MADE: dict[str, LearningTask] = {
    "classification": Classification(facts=TargetFacts(outputs=7)),
    "two classes": Classification(facts=TargetFacts(outputs=2)),
    "multilabel": Multilabel(facts=TargetFacts(outputs=3)),
    "regression": Regression(facts=SCALE),
    "next_token": NextToken(facts=TargetFacts(outputs=9)),
}


def drawn(name: str, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Outputs and targets of so many samples."""
    rng, task = torch.Generator().manual_seed(seed), MADE[name]
    wide = task.facts.outputs
    if name == "next_token":
        y = torch.randint(0, wide, (count, 5), generator=rng)
        y = torch.where(torch.rand(count, 5, generator=rng) < 0.2, IGNORED, y)
        return torch.randn(count, 5, wide, generator=rng), y
    out = 2 * torch.randn(count, wide, generator=rng)
    if name == "multilabel":
        return out, torch.randint(0, 2, (count, wide), generator=rng, dtype=torch.uint8)
    if name == "regression":
        return out, torch.tensor(SCALE.mean) + torch.randn(count, wide, generator=rng) * torch.tensor(SCALE.deviation)
    return out, torch.randint(0, wide, (count,), generator=rng)


@pytest.mark.parametrize("name", MADE)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_the_totals_of_any_split_add_up_to_those_of_the_whole(name: str, data: Any) -> None:
    count = data.draw(st.integers(1, 40))
    out, y = drawn(name, count, data.draw(st.integers(0, 99)))
    owner = torch.tensor(data.draw(st.lists(st.integers(0, 4), min_size=count, max_size=count)))
    task = MADE[name]
    summed = task.totals(out[:0], y[:0])
    for device in data.draw(st.permutations(range(5))):
        summed = added(summed, task.totals(out[owner == device], y[owner == device]))
    whole = task.totals(out, y)
    assert whole.keys() == summed.keys()
    for key, value in whole.items():
        assert value.dtype == torch.int64
        assert torch.equal(value, summed[key]), key
    assert repr(task.metrics(whole)) == repr(task.metrics(summed))  # repr: a metric that does not exist is NaN
    assert task.fault(whole) == ""


@pytest.mark.parametrize("name", MADE)
def test_the_primary_metric_is_one_of_them_and_its_loss_has_a_gradient(name: str) -> None:
    out, y = drawn(name, 30, 1)
    task = MADE[name]
    assert task.primary in task.metrics(task.totals(out, y))
    out.requires_grad_()
    loss = task.loss(out, y)
    loss.backward()  # type: ignore[no-untyped-call]
    assert out.grad is not None
    assert bool((out.grad != 0).any())


def metrics(name: str, out: Tensor, y: Tensor) -> dict[str, float]:
    return MADE[name].metrics(MADE[name].totals(out, y))


def test_classification_is_that_of_torchmetrics() -> None:
    out, y = drawn("classification", 400, 2)
    found = metrics("classification", out, y)
    p = out.softmax(dim=1)
    assert found["accuracy"] == pytest.approx(float(theirs.multiclass_accuracy(p, y, 7, average="micro")))
    assert found["balanced_accuracy"] == pytest.approx(float(theirs.multiclass_accuracy(p, y, 7, average="macro")))
    assert found["macro_f1"] == pytest.approx(float(theirs.multiclass_f1_score(p, y, 7, average="macro")))
    assert found["top5"] == pytest.approx(float(theirs.multiclass_accuracy(p, y, 7, average="micro", top_k=5)))
    assert found["log_loss"] == pytest.approx(float(F.cross_entropy(out.double(), y)), abs=2e-6)


def binned(score: Tensor) -> Tensor:
    """Scores at the lower edge of their bin, a little above it: as thresholds at these edges see them."""
    return (score * BINS).floor() / BINS + 1e-7


def test_areas_under_curves_are_torchmetrics_binned_ones() -> None:
    out, y = drawn("two classes", 500, 3)
    found = metrics("two classes", out, y)
    p, edges = out.double().softmax(dim=1)[:, 1], torch.arange(BINS + 1, dtype=torch.float64) / BINS
    assert found["auroc"] == pytest.approx(float(theirs.binary_auroc(binned(p), y, thresholds=edges)), abs=1e-6)
    exact = float(theirs.binary_auroc(p, y))
    assert found["auroc"] == pytest.approx(exact, abs=1 / BINS)
    their_ap = float(theirs.binary_average_precision(binned(p), y, thresholds=edges))
    assert found["average_precision"] == pytest.approx(their_ap, abs=1e-6)


def test_multilabel_is_that_of_torchmetrics() -> None:
    out, y = drawn("multilabel", 400, 4)
    found, p = metrics("multilabel", out, y), out.double().sigmoid()
    edges = torch.arange(BINS + 1, dtype=torch.float64) / BINS
    known = y.long()
    ap = theirs.multilabel_average_precision(binned(p), known, 3, thresholds=edges)
    assert found["average_precision"] == pytest.approx(float(ap), abs=1e-6)
    assert found["auroc"] == pytest.approx(
        float(theirs.multilabel_auroc(binned(p), known, 3, thresholds=edges)), abs=1e-6
    )
    assert found["macro_f1"] == pytest.approx(float(theirs.multilabel_f1_score(p, known, 3)))
    assert found["micro_f1"] == pytest.approx(float(theirs.multilabel_f1_score(p, known, 3, average="micro")))
    assert found["exact_match"] == pytest.approx(float(theirs.multilabel_exact_match(p, known, 3)))


def test_regression_is_that_of_torchmetrics_in_the_targets_own_units() -> None:
    out, y = drawn("regression", 300, 5)
    found = metrics("regression", out, y)
    said = torch.tensor(SCALE.mean).double() + out.double() * torch.tensor(SCALE.deviation).double()
    rmse = mean_squared_error(said, y.double(), squared=False, num_outputs=2)
    mae = torch.stack([mean_absolute_error(said[:, at].contiguous(), y[:, at].double()) for at in range(2)])
    assert found["rmse"] == pytest.approx(float(rmse.mean()), rel=1e-5)
    assert found["mae"] == pytest.approx(float(mae.mean()), rel=1e-5)
    assert found["r2"] == pytest.approx(float(r2_score(said, y.double())), rel=1e-4)
    parts = MADE["regression"].breakdown(MADE["regression"].totals(out, y))
    assert parts == {"rides": pytest.approx(float(rmse[0]), rel=1e-5), "cost": pytest.approx(float(rmse[1]), rel=1e-5)}


@pytest.mark.parametrize(("error", "loss"), [("mse", F.mse_loss), ("mae", F.l1_loss), ("huber", F.huber_loss)])
def test_regression_learns_standardised_targets(error: Any, loss: Any) -> None:
    out, y = drawn("regression", 20, 6)
    wanted = (y - torch.tensor(SCALE.mean)) / torch.tensor(SCALE.deviation)
    assert torch.allclose(Regression(facts=SCALE, error=error).loss(out, y), loss(out, wanted))


def test_next_token_is_that_of_torchmetrics_and_padding_does_not_count() -> None:
    out, y = drawn("next_token", 60, 7)
    found, task = metrics("next_token", out, y), MADE["next_token"]
    assert found["perplexity"] == pytest.approx(float(perplexity(out, y, ignore_index=IGNORED)), rel=1e-5)
    there = y != IGNORED
    assert found["token_accuracy"] == pytest.approx(float((out.argmax(dim=2) == y)[there].double().mean()))
    assert torch.allclose(task.loss(out, y), F.cross_entropy(out[there], y[there]))
    assert float(task.loss(out, torch.full_like(y, IGNORED))) == 0.0
    assert math.isfinite(task.metrics(task.totals(out * 1e6, y))["perplexity"])


@pytest.mark.parametrize("name", [name for name in MADE if MADE[name].soft is not None])
def test_what_peers_tell_each_other_is_in_its_range_and_is_agreed_on_at_itself(name: str) -> None:
    out, _ = drawn(name, 50, 8)
    task = MADE[name]
    assert task.soft is not None
    soft = task.soften(out, 1.0)
    assert float(soft.min()) >= task.soft.low
    assert float(soft.max()) <= task.soft.high
    if task.soft.distribution:
        assert torch.allclose(soft.sum(dim=1), torch.ones(50))
    inside = out.clamp(task.soft.low, task.soft.high).requires_grad_() if name == "regression" else out.requires_grad_()
    task.agree(inside, task.soften(inside.detach(), 1.0), 1.0).backward()  # type: ignore[no-untyped-call]
    assert inside.grad is not None
    assert float(inside.grad.abs().max()) < 1e-6


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("classification", "right", 10**6),
        ("classification", "total", -1),
        ("multilabel", "exact", 10**6),
        ("regression", "squares", -1),
        ("next_token", "right", 10**6),
    ],
)
def test_sums_that_cannot_be_are_told(name: str, key: str, value: int) -> None:
    task = MADE[name]
    sound = task.totals(*drawn(name, 20, 9))
    assert task.fault({**sound, key: torch.full_like(sound[key], value)})


def test_targets_tell_their_task() -> None:
    for name in ("classification", "multilabel", "regression", "next_token"):
        assert told_by(drawn(name, 5, 0)[1]) == name


def test_strata_are_classes_tenths_and_first_marks() -> None:
    y = torch.tensor([2, 0, 1])
    assert strata_of(y, TargetFacts(outputs=3))[0].tolist() == [2, 0, 1]
    numbers = torch.randperm(50, generator=torch.Generator().manual_seed(0)).float()[:, None]
    tenths, kinds = strata_of(numbers, TargetFacts(outputs=1))
    assert kinds == 10
    assert torch.bincount(tenths).tolist() == [5] * 10
    assert torch.equal(tenths, (numbers[:, 0] // 5).long())
    marks = torch.tensor([[0, 1], [1, 1], [0, 0]], dtype=torch.uint8)
    assert strata_of(marks, TargetFacts(outputs=2))[0].tolist() == [1, 0, 2]


def test_an_unknown_task_is_named_with_what_there_is() -> None:
    with pytest.raises(ConfigError, match=r'task\.kind = "regresion".*did you mean "regression"'):
        TASKS["regresion"]
    with pytest.raises(ConfigError, match="expected a frozen dataclass"):
        TASKS["math:sqrt"]
