"""Local training against hand-written loops; what it draws, counts and refuses; and evaluation."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potluck.core import meter, seeds, tree
from potluck.core.contexts import DeviceContext
from potluck.core.errors import TrainingError
from potluck.core.types import Device, Shard, TargetFacts
from potluck.nets.weights import weights_of
from potluck.tasks.classification import Classification
from potluck.training.evaluate import Metric, evaluate, metrics_of, nothing
from potluck.training.fit import Fit, Objective, Sgd

PHONE = Device(
    id=4, tier="phone", memory_bytes=1, flops_per_s=1.0, uplink_bytes_per_s=1.0, downlink_bytes_per_s=1.0, latency_s=0.0
)
FEATURES, CLASSES = 5, 3


def fit(**changed: Any) -> Fit:
    plain: dict[str, Any] = {
        "optimiser": "sgd",
        "lr": 0.1,
        "momentum": 0.9,
        "weight_decay": 0.0,
        "epochs": {"phone": 2},
        "batch_size": 8,
        "schedule": "none",
        "milestones": (),
        "gamma": 0.1,
        "schedule_rounds": 10,
        "clip_norm": 0.0,
        "channels_last": False,
        "bf16": False,
        "augment": "none",
        "task": Classification(facts=TargetFacts(outputs=CLASSES)),
    }
    return Fit(**{**plain, **changed})


def shard(count: int = 20, shape: tuple[int, ...] = (FEATURES,), domains: Tensor | None = None) -> Shard:
    rng = torch.Generator().manual_seed(1)
    return Shard(
        samples=torch.randn(count + 3, *shape, generator=rng),
        targets=torch.randint(0, CLASSES, (count + 3,), generator=rng),
        index=torch.randperm(count + 3, generator=rng)[:count],
        mean=torch.zeros(1),
        deviation=torch.ones(1),
        facts=TargetFacts(outputs=CLASSES),
        domains=domains,
    )


def context(data: Shard | None = None, round: int = 1, device: Device = PHONE, seed: int = 0) -> DeviceContext:
    return DeviceContext(round=round, device=device, data=shard() if data is None else data, public=None, seed=seed)


def net(seed: int = 0, *middle: nn.Module) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(FEATURES, 7), nn.Tanh(), *middle, nn.Linear(7, CLASSES))


def trained(settings: Fit, given: DeviceContext, start: nn.Module | None = None, **more: Any) -> dict[str, Tensor]:
    made = net() if start is None else start
    settings.train(made, given, **more)
    return weights_of(made)


def by_hand(given: DeviceContext, *, epochs: int, batch: int, lr: float, momentum: float = 0.0, decay: float = 0.0,
            clip: float = 0.0) -> dict[str, Tensor]:  # fmt: skip
    """SGD with momentum, weight decay and clipping, written out."""
    made = net()
    velocity = [torch.zeros_like(w) for w in made.parameters()]
    rng = seeds.generator(given.seed, given.round, given.device.id, "train")
    x, y, steps = given.data.x, given.data.y, 0
    for _ in range(epochs):
        order = torch.randperm(len(y), generator=rng)
        for start in range(0, len(y), batch):
            rows = order[start : start + batch]
            grads = torch.autograd.grad(F.cross_entropy(made(x[rows]), y[rows]), list(made.parameters()))
            norm = math.sqrt(sum(float(g.double().square().sum()) for g in grads))
            factor = min(1.0, clip / norm) if clip else 1.0
            with torch.no_grad():
                for w, v, g in zip(made.parameters(), velocity, grads, strict=True):
                    v.copy_(g * factor + decay * w + (momentum * v if steps else 0))
                    w.sub_(lr * v)
            steps += 1
    return weights_of(made)


def close(a: dict[str, Tensor], b: dict[str, Tensor], atol: float = 1e-6) -> bool:
    return a.keys() == b.keys() and all(torch.allclose(a[name], b[name], atol=atol, rtol=0) for name in a)


@pytest.mark.parametrize(
    ("settings", "hand"),
    [
        ({"momentum": 0.0}, {}),
        ({"momentum": 0.9}, {"momentum": 0.9}),
        ({"momentum": 0.5, "weight_decay": 0.1}, {"momentum": 0.5, "decay": 0.1}),
        ({"momentum": 0.0, "clip_norm": 0.05}, {"clip": 0.05}),
        ({"momentum": 0.9, "clip_norm": 1e6}, {"momentum": 0.9, "clip": 1e6}),
    ],
)
def test_training_is_the_loop_written_out(settings: dict[str, float], hand: dict[str, float]) -> None:
    given = context()
    wanted = by_hand(given, epochs=2, batch=8, lr=0.1, **hand)
    assert close(trained(fit(**settings), given), wanted)
    assert not close(trained(fit(**settings), context(round=2)), wanted, atol=1e-4), "another round, another order"


def test_what_training_did_is_reported() -> None:
    losses: list[float] = []

    def objective(made: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        loss = F.cross_entropy(made(x), y)
        losses.append(float(loss.detach()))
        return loss

    found = fit(epochs={"phone": 3, "laptop": 9}).train(net(), context(), objective=objective)
    assert (found.samples, found.steps, len(losses)) == (20, 9, 9)
    assert found.loss == pytest.approx(sum(losses[-3:]) / 3, rel=1e-6)


@pytest.mark.parametrize("count", [1, 8, 9, 16])
def test_every_sample_is_seen_once_an_epoch(count: int) -> None:
    data, seen = shard(count), []
    for x, y, last in fit().batches(data, torch.Generator().manual_seed(0), 2):
        assert x.shape[0] == y.shape[0] <= 8
        seen.append((x, last))
    for last in (False, True):
        rows = torch.cat([x for x, of_last in seen if of_last == last])
        assert sorted(map(tuple, rows.tolist())) == sorted(map(tuple, data.x.tolist()))


def test_data_and_epochs_may_be_given() -> None:
    other = shard(6)
    assert close(trained(fit(), context(), data=other, epochs=1), trained(fit(epochs={"phone": 1}), context(other)))
    assert tree.equal(trained(fit(), context(), epochs=0), weights_of(net()))


def test_the_optimiser_is_new_each_round() -> None:
    """Momentum that survived would make the second round differ from a first one with the same order."""
    settings, given = fit(epochs={"phone": 1}), context()
    after = net()
    settings.train(after, given)
    fresh = net()
    fresh.load_state_dict(after.state_dict())
    settings.train(after, given)
    fit(epochs={"phone": 1}).train(fresh, given)
    assert tree.equal(weights_of(after), weights_of(fresh))


def test_adam_is_adam() -> None:
    given, settings = context(), fit(optimiser="adam", lr=0.01, epochs={"phone": 1}, batch_size=100, momentum=0.9)
    made = net()
    grads = torch.autograd.grad(F.cross_entropy(made(given.data.x), given.data.y), list(made.parameters()))
    wanted = {
        name: (w - 0.01 * g / (g.abs() + 1e-8)).detach()
        for (name, w), g in zip(made.named_parameters(), grads, strict=True)
    }
    assert close(trained(settings, given), wanted, atol=2e-5)
    decayed = trained(fit(optimiser="adam", lr=0.01, weight_decay=0.5), given)
    assert not close(decayed, trained(fit(optimiser="adam", lr=0.01), given), atol=1e-4)


# Schedules


def test_schedules_in_closed_form() -> None:
    assert [fit().lr_at(round) for round in (1, 5, 99)] == [0.1, 0.1, 0.1]
    cosine = fit(schedule="cosine", schedule_rounds=4)
    assert [cosine.lr_at(round) for round in range(1, 8)] == pytest.approx(
        [0.1, 0.1 * (2 + math.sqrt(2)) / 4, 0.05, 0.1 * (2 - math.sqrt(2)) / 4, 0.0, 0.0, 0.0]
    )
    step = fit(schedule="step", milestones=(2, 4), gamma=0.5)
    assert [step.lr_at(round) for round in range(1, 7)] == pytest.approx([0.1, 0.1, 0.05, 0.05, 0.025, 0.025])


@pytest.mark.parametrize(("momentum", "decay"), [(0.0, 0.0), (0.9, 0.0), (0.9, 0.01)])
def test_the_steps_are_those_of_torchs_own_class(momentum: float, decay: float) -> None:
    """Also where a weight has no gradient at first, or ever."""
    ours, theirs = ([nn.Parameter(torch.arange(float(size)) + 1) for size in (3, 70, 2)] for _ in range(2))
    made = Sgd.of(ours, lr=0.1, momentum=momentum, weight_decay=decay)
    reference = torch.optim.SGD(theirs, lr=0.1, momentum=momentum, weight_decay=decay, foreach=False)
    for step in range(4):
        for weights in (ours, theirs):
            for at, weight in enumerate(weights[:2]):
                weight.grad = torch.sin(torch.arange(float(len(weight))) + step) if at <= step else None
        made.step()
        reference.step()
    for weight, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(weight, expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(ours[2], torch.tensor([1.0, 2.0]))


def test_the_schedule_reaches_the_optimiser() -> None:
    settings = fit(schedule="step", milestones=(1,), gamma=0.25)
    for optimiser in ("sgd", "adam"):
        made = fit(schedule="step", milestones=(1,), gamma=0.25, optimiser=optimiser).make_optimiser(
            net().parameters(), 2
        )
        found = made.lr if isinstance(made, Sgd) else made.param_groups[0]["lr"]
        assert found == 0.025
    assert close(
        trained(settings, context(round=2)), by_hand(context(round=2), epochs=2, batch=8, lr=0.025, momentum=0.9)
    )


def test_frozen_parameters_stay() -> None:
    made = net()
    made.get_parameter("0.weight").requires_grad_(requires_grad=False)
    before = weights_of(made)
    after = trained(fit(weight_decay=0.5), context(), made)
    assert torch.equal(after["0.weight"], before["0.weight"])
    assert not torch.equal(after["0.bias"], before["0.bias"])


def test_clipping_bounds_the_global_norm() -> None:
    steep: Objective = lambda made, x, y: 1e3 * F.cross_entropy(made(x), y)  # noqa: E731
    start = net()
    before = weights_of(start)
    after = trained(
        fit(clip_norm=0.5, momentum=0.0, lr=1.0, epochs={"phone": 1}, batch_size=20), context(), start, objective=steep
    )
    moved = tree.norm(tree.subtract(after, before))
    assert moved == pytest.approx(0.5, rel=1e-4)


def test_gradients_can_be_adjusted_before_they_are_clipped_and_applied() -> None:
    def nothing(made: nn.Module) -> None:
        for w in made.parameters():
            assert w.grad is not None
            w.grad.zero_()

    assert tree.equal(trained(fit(clip_norm=1.0), context(), adjust=nothing), weights_of(net()))


# Randomness


def test_dropout_is_drawn_by_the_task() -> None:
    def run(given: DeviceContext, disturb: int, **more: Any) -> dict[str, Tensor]:
        start = net(0, nn.Dropout(0.5))
        torch.manual_seed(disturb)
        return trained(fit(), given, start, **more)

    first = run(context(), 1)
    assert tree.equal(run(context(), 2), first)
    assert not tree.equal(run(context(seed=1), 1), first)
    one_batch = fit(batch_size=100, epochs={"phone": 1})

    def whole(given: DeviceContext, purpose: str) -> dict[str, Tensor]:
        start = net(0, nn.Dropout(0.5))
        one_batch.train(start, given, purpose=purpose)
        return weights_of(start)

    assert close(whole(context(), "train"), whole(context(), "train"), atol=0.0)
    assert not close(whole(context(), "train"), whole(context(), "other"), atol=1e-5), (
        "the masks differ, the batch does not"
    )


def test_the_global_generator_is_as_before() -> None:
    start = net(0, nn.Dropout(0.5))
    torch.manual_seed(3)
    before = torch.get_rng_state()
    fit().train(start, context())
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(TrainingError):
        fit(lr=1e38).train(start, context())
    assert torch.equal(torch.get_rng_state(), before)


def conv() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, CLASSES))


def test_augmentation_changes_what_is_seen_and_repeats() -> None:
    data = shard(12, (2, 8, 8))
    plain = trained(fit(), context(data), conv())
    moved = trained(fit(augment="crop-flip"), context(data), conv())
    assert not close(plain, moved, atol=1e-4)
    assert tree.equal(moved, trained(fit(augment="crop-flip"), context(data), conv()))


def test_channels_last_trains_alike() -> None:
    data = shard(12, (2, 8, 8))
    last = conv().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert close(
        trained(fit(channels_last=True), context(data), last), trained(fit(), context(data), conv()), atol=1e-5
    )
    seen = next(iter(fit(channels_last=True).batches(data, torch.Generator(), 1)))[0]
    assert seen.is_contiguous(memory_format=torch.channels_last)


def test_bfloat16_trains_nearly_alike_with_float32_weights() -> None:
    full, half = trained(fit(), context()), trained(fit(bf16=True), context())
    assert all(value.dtype == torch.float32 for value in half.values())
    assert not close(full, half, atol=1e-7)
    assert close(full, half, atol=0.05)


# Errors and costs


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_names_round_tier_and_device(loss: float) -> None:
    def odd(logits: Tensor, y: Tensor) -> Tensor:
        return logits.sum() * 0 + loss

    with pytest.raises(TrainingError) as caught:
        fit(own_loss=odd).train(net(), context(round=7))
    assert str(caught.value).startswith(f"round 7, tier 'phone', device 4: the loss became {loss}; lower train.lr")


def test_a_training_that_explodes_is_an_error() -> None:
    with pytest.raises(TrainingError, match="round 1, tier 'phone', device 4: the loss became nan"):
        fit(lr=1e38).train(net(), context())


def test_flops_are_counted_forwards_and_backwards() -> None:
    settings = fit(epochs={"phone": 3})
    with meter.metering() as costs:
        settings.train(net(), context())
    one = 2 * (2 * FEATURES * 7 + 3 * 7 * CLASSES)  # no gradient of the input
    assert costs.flops == one * 20 * 3
    with meter.metering() as again:
        settings.train(net(), context(shard(5)), epochs=1)
    assert again.flops == one * 5


def test_counting_does_not_touch_the_net() -> None:
    start = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, CLASSES))
    fit(epochs={"phone": 1}, batch_size=6).train(start, context(shard(12, (2, 8, 8))))
    assert int(start.get_buffer("1.num_batches_tracked")) == 2


def test_an_empty_share_trains_nothing() -> None:
    start = net()
    before = weights_of(start)
    found = fit().train(start, context(shard().take(torch.zeros(0, dtype=torch.int64))))
    assert (found.samples, found.steps, found.loss) == (0, 0, 0.0)
    assert tree.equal(weights_of(start), before)


# Evaluation


class Fixed(nn.Module):
    """Says the class that the first feature names."""

    def forward(self, x: Tensor) -> Tensor:
        return F.one_hot(x[:, 0].long(), CLASSES).float()


def scored(said: list[int], true: list[int], domains: list[int] | None = None) -> Shard:
    return Shard(
        samples=torch.tensor(said, dtype=torch.float32).reshape(-1, 1),
        targets=torch.tensor(true),
        index=torch.arange(len(said)),
        mean=torch.zeros(1),
        deviation=torch.ones(1),
        facts=TargetFacts(outputs=CLASSES),
        domains=None if domains is None else torch.tensor(domains),
    )


TASK = Classification(facts=TargetFacts(outputs=CLASSES))


def test_right_answers_by_class_and_domain() -> None:
    answers = scored([0, 1, 1, 2, 0], [0, 1, 0, 2, 2], [0, 0, 1, 3, 3])
    found = evaluate(Fixed(), answers, TASK, domains=4, batch_size=2)
    assert found["all"]["right"].tolist() == [1, 1, 1]
    assert found["all"]["total"].tolist() == [2, 1, 2]
    assert [int(totals["right"].sum()) for totals in found["domains"].values()] == [2, 0, 0, 1]
    assert [int(totals["total"].sum()) for totals in found["domains"].values()] == [2, 1, 0, 2]
    assert {value.dtype for value in found["all"].values()} == {torch.int64}


def test_without_domains_there_are_none() -> None:
    assert evaluate(Fixed(), scored([0, 1], [0, 0]), TASK)["domains"] == {}


def test_a_part_of_the_test_data_has_the_shape_of_the_whole() -> None:
    whole = scored([0, 1, 2], [0, 1, 2], [0, 1, 2])
    for rows in ([0], []):
        found = evaluate(Fixed(), whole.take(torch.tensor(rows, dtype=torch.int64)), TASK, domains=3)
        assert found["all"]["total"].tolist() == [len(rows), 0, 0]
        assert found["domains"]["2"]["total"].tolist() == [0, 0, 0]
        assert {name: value.shape for name, value in found["all"].items()} == {
            name: value.shape for name, value in nothing(TASK, whole).items()
        }


def test_evaluation_is_in_eval_mode_and_any_metric_may_be_given() -> None:
    made = nn.Sequential(nn.Dropout(0.9), Fixed()).train()
    answers = scored([0, 1, 2] * 10, [0, 1, 2] * 10)
    assert metrics_of(TASK, evaluate(made, answers, TASK)["all"])["accuracy"] == 1.0
    half: Metric = lambda logits, y: logits.max(dim=1).values * 0.5  # noqa: E731
    found = metrics_of(TASK, evaluate(Fixed(), answers, TASK, metric=half)["all"], "half")
    assert next(iter(found)) == "half"
    assert found["half"] == 0.5
