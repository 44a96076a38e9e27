"""FedMD: means of scores in closed form, digests, and what it comes down to at the edges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.methods.peer_world import CLASSES, device, fit, nets, rows
from torch import Tensor

from potluck.core import meter, tree
from potluck.core.contexts import DeviceContext, Reply, ServerContext
from potluck.core.errors import ConfigError
from potluck.core.types import Shard, TargetFacts
from potluck.experiment import run
from potluck.experiment.config import Experiment
from potluck.experiment.prepare import prepare
from potluck.methods.fedmd import LOSSES, FedMD
from potluck.methods.local import Local
from potluck.tasks.classification import Classification

MakeExperiment = Callable[..., Experiment]
PUBLIC = rows(20, seed=2)
TASK = Classification(facts=TargetFacts(outputs=CLASSES))


def fedmd(**options: Any) -> FedMD:
    settings = options.pop("fit", None) or fit()
    return FedMD(net=nets(), fit=settings, **options)


def server_context(round: int, count: int = 2) -> ServerContext:
    return ServerContext(round=round, devices=[device(k) for k in range(count)], held=None, public=PUBLIC, seed=0)


def task_of(round: int, number: int, data: Shard) -> DeviceContext:
    return DeviceContext(round=round, device=device(number), data=data, public=PUBLIC, seed=0)


def play(found: FedMD, data: Sequence[Shard], rounds: int, numbers: Sequence[int] | None = None) -> list[Any]:
    """(states, own states, ups) after some rounds in which everybody takes part; ``numbers`` seed the devices."""
    numbers = range(len(data)) if numbers is None else numbers
    state, owns, ups = found.initial_state(server_context(0)), [None] * len(data), []
    for round in range(1, rounds + 1):
        table, replies = server_context(round, len(data)), []
        for k, shard in enumerate(data):
            broadcast = found.broadcast(state, device(k), table)
            owns[k], update = found.train(owns[k], broadcast, task_of(round, numbers[k], shard))  # type: ignore[call-overload]
            replies.append(Reply(device=device(k), round=round, update=update))
        state, ups = found.aggregate(state, replies, table), [reply.update for reply in replies]
    return [state, owns, ups]


def test_identical_devices_stay_identical() -> None:
    _, owns, ups = play(fedmd(), [rows(16), rows(16)], rounds=3, numbers=[4, 4])
    assert tree.equal(owns[0], owns[1])
    assert torch.equal(ups[0]["scores"], ups[1]["scores"])


@pytest.mark.parametrize("loss", ["mae", "mse", "kl"])
def test_one_device_has_nothing_to_digest_of_its_own_scores(loss: Any) -> None:
    found = fedmd(fit=fit(batch_size=20), digest_loss=loss, public_batch=0)
    state, owns, _ = play(found, [rows(16)], rounds=1)
    net = nets().with_weights("phone", owns[0]["weights"])
    with torch.no_grad():
        assert float(LOSSES[loss](net(PUBLIC.x), state["scores"], TASK, True)) < 1e-6
    with meter.metering() as costs:
        found.train(owns[0], found.broadcast(state, device(0), server_context(2)), task_of(2, 0, rows(16)))
    assert abs(costs.notes["digest_loss"]) < 1e-6


@pytest.mark.parametrize(("weighting", "shares"), [("uniform", (0.5, 0.5)), ("samples", (0.25, 0.75))])
def test_the_mean_of_scores_in_closed_form(weighting: Any, shares: tuple[float, float]) -> None:
    state, _, ups = play(fedmd(weighting=weighting), [rows(8), rows(24, seed=3)], rounds=2)
    expected = sum(share * update["scores"].double() for share, update in zip(shares, ups, strict=True))
    assert torch.allclose(state["scores"].double(), expected, atol=1e-6)
    assert torch.equal(state["ids"], state["ids"].sort().values)


def test_sharpened_posteriors_are_the_softmax_of_their_mean() -> None:
    state, _, ups = play(fedmd(weighting="sharpen", scores="posteriors"), [rows(8), rows(24, seed=3)], rounds=1)
    mean = torch.stack([update["scores"] for update in ups]).mean(dim=0)
    assert torch.allclose(state["scores"], (mean / 0.1).softmax(dim=1), atol=1e-5)
    assert torch.allclose(ups[0]["scores"].sum(dim=1), torch.ones(20), atol=1e-5)


def test_missing_devices_leave_the_mean_to_the_rest() -> None:
    found, table = fedmd(), server_context(1)
    start = found.initial_state(server_context(0))
    _, update = found.train(None, found.broadcast(start, device(0), table), task_of(1, 0, rows(16)))
    state = found.aggregate(start, [Reply(device=device(0), round=1, update=update)], table)
    assert torch.equal(state["scores"], update["scores"])
    assert found.aggregate(state, [], server_context(2)) is state


def test_without_digests_it_is_local_training_after_the_warm_start() -> None:
    _, owns, _ = play(fedmd(digest_epochs=0), [rows(16)], rounds=2)
    net = nets().with_weights("phone", nets()("phone").state_dict())
    fit().train(net, task_of(1, 0, rows(16)), data=PUBLIC, purpose="warm start")
    local, local_state = Local(net=nets(), fit=fit()), {"weights": dict(net.state_dict())}
    for round in (1, 2):
        local_state, _ = local.train(local_state, {}, task_of(round, 0, rows(16)))  # type: ignore[arg-type,assignment]
    assert tree.equal(owns[0], local_state)


def test_a_digest_brings_nets_towards_the_mean() -> None:
    apart = [spread(play(fedmd(digest_epochs=epochs), [rows(16), rows(16, seed=7)], rounds=4)[2]) for epochs in (0, 5)]
    assert apart[1] < apart[0]


def spread(ups: Sequence[Any]) -> float:
    return float((ups[0]["scores"] - ups[1]["scores"]).abs().mean())


def test_a_divergence_is_summed_over_classes() -> None:
    z, target = torch.randn(7, CLASSES), torch.randn(7, CLASSES)
    p, logq = target.softmax(dim=1), z.log_softmax(dim=1)
    expected: Tensor = (p * (p.log() - logq)).sum(dim=1).mean()
    assert torch.allclose(LOSSES["kl"](z, target, TASK, True), expected, atol=1e-6)
    assert torch.allclose(LOSSES["kl"](z, p, TASK, False), expected, atol=1e-6)
    assert torch.allclose(LOSSES["mae"](z, p, TASK, False), F.l1_loss(z.softmax(dim=1), p))


@pytest.mark.parametrize("batch", [0, 7])
def test_bytes_are_four_per_score_and_per_id(small: MakeExperiment, tmp_path: Path, batch: int) -> None:
    found = run.run(small("fedmd", f"method.public_batch={batch}", "rounds=3"), tmp_path / "run")
    size = batch or 26
    for row in found.ledger:
        if row["verb"] == "train":
            first = row["round"] == 1
            broadcast = 4 * size if first else 4 * size * 10 + 8 * size
            assert row["tensor_bytes"] == (broadcast if row["direction"] == "down" else 4 * size * 10)
    assert "server" in found.rounds[1]["notes"]


def test_what_cannot_work_is_refused(small: MakeExperiment) -> None:
    with pytest.raises(ConfigError, match=r"set \[data\] public"):
        prepare(small("fedmd", "data.public=0.0"))
    with pytest.raises(ConfigError, match="works on posteriors"):
        prepare(small("fedmd", "method.weighting=sharpen"))
    for wrong in ("public_batch=-1", "digest_epochs=-1", "digest_loss=ce", "scores=votes", "weighting=median"):
        with pytest.raises(ConfigError, match=f"method.{wrong.partition('=')[0]}"):
            prepare(small("fedmd", f"method.{wrong}"))
