"""FedH2L against closed forms, loops written out, and posts that are not what they should be."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.methods.peer_world import CLASSES, device_context, fedh2l, fit, nets, rows, shard
from torch import Tensor, nn

from potluck.core import meter, tree
from potluck.core.errors import ConfigError, WireError
from potluck.core.types import Shard
from potluck.experiment import run
from potluck.experiment.config import Experiment
from potluck.experiment.prepare import prepare
from potluck.methods.fedh2l import posteriors, projection, seed_set
from potluck.methods.local import Local
from potluck.nets.weights import weights_of
from potluck.wire.channel import Channel

MakeExperiment = Callable[..., Experiment]


class Table(nn.Module):
    """A logit of its own for each sample, found by the sample's number."""

    def __init__(self) -> None:
        super().__init__()
        self.z_SC = nn.Parameter(torch.randn(6, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.z_SC[x[:, 0].long()]


def softmax_posts(count: int, tau: float, seed: int = 5) -> list[Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return [(torch.randn(6, CLASSES, generator=rng) / tau).softmax(dim=1) for _ in range(count)]


@pytest.mark.parametrize("others", [1, 4])
@pytest.mark.parametrize("tau", [1.0, 3.0])
def test_the_gradient_of_the_mutual_term_in_closed_form(others: int, tau: float) -> None:
    numbers = shard(torch.arange(6.0).reshape(6, 1).repeat(1, 5), torch.tensor([0, 1, 2, 0, 1, 2]))
    settings = fit(lr=1.0, momentum=0.0, batch_size=6)
    found = fedh2l(settings, Table, posts="float32", weight=0.7, temperature=tau, seed_ce=False, protect="none")
    here = device_context(data=numbers, public=numbers)
    local_state, posts = found.initial_state(here), softmax_posts(others, tau)
    inbox: Any = {peer: {"posteriors": p} for peer, p in enumerate(posts, start=1)}
    z = local_state["weights"]["z_SC"]
    gradient = z - found.receive(local_state, inbox, here)["weights"]["z_SC"]
    p, mean = (z / tau).softmax(dim=1), torch.stack(posts).mean(dim=0)
    assert torch.allclose(gradient, 0.7 * tau * (p - mean) / 6, atol=1e-6)
    free = z.clone().requires_grad_()
    logq = (free / tau).log_softmax(dim=1)
    loss = sum(F.kl_div(logq, post, reduction="batchmean") for post in posts) * 0.7 * tau**2 / others
    (by_autograd,) = torch.autograd.grad(loss, [free])  # type: ignore[list-item]
    assert torch.allclose(gradient, by_autograd, atol=1e-6)


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_the_projection_solves_its_problem(size: int) -> None:
    rng = torch.Generator().manual_seed(size)
    for _ in range(50):
        g, r = torch.randn(size, generator=rng), torch.randn(size, generator=rng)
        z = projection.project(g, r)
        assert float(z @ r) >= -1e-6 * float(r @ r)
        assert float(z.norm()) <= float(g.norm()) * (1 + 1e-6)
        if float(g @ r) >= 0:
            assert z is g
        steps = torch.linspace(0, 4 * float(g.norm() / r.norm()), 20_001)  # the dual variable, by brute force
        tried = g + steps[:, None] * r
        allowed = tried[(tried @ r) >= -1e-4 * float(r @ r)]
        best = allowed[(allowed - g).square().sum(dim=1).argmin()]
        assert torch.allclose(z, best, atol=1e-3 * float(g.norm() + 1))


def test_the_edges_of_the_projection() -> None:
    r = torch.tensor([3.0, -4.0])
    assert torch.allclose(projection.project(-r, r), torch.zeros(2), atol=1e-6)
    assert torch.equal(projection.project(-r, torch.zeros(2)), -r)
    with_margin = projection.project(-r, r, margin=0.5)
    assert float(with_margin @ r) == pytest.approx(0.5 * float(r @ r))


@pytest.mark.parametrize(("form", "bound"), [("fixed16", 7.7e-6), ("fixed8", 2.0e-3), ("float32", 0.0)])
def test_what_rounding_costs(form: Any, bound: float) -> None:
    p = (3 * torch.randn(200, 7, generator=torch.Generator().manual_seed(0))).softmax(dim=1)
    sent = posteriors.encode(p, form)
    assert float((sent.double() / posteriors.SCALE[form] - p.double()).abs().max()) <= bound
    total = posteriors.total([sent], form, 7)
    assert total is not None
    assert torch.allclose(posteriors.mean(total).sum(dim=1), torch.ones(200), atol=1e-6)
    assert (sent.dtype, sent.element_size()) == (
        posteriors.DTYPE[form],
        {"fixed16": 2, "fixed8": 1, "float32": 4}[form],
    )


def test_one_other_peer_is_its_own_mean() -> None:
    p = softmax_posts(1, 1.0)[0]
    total = posteriors.total([posteriors.encode(p, "fixed16")], "fixed16", CLASSES)
    assert total is not None
    assert torch.allclose(posteriors.mean(total), p, atol=2e-5)
    votes = posteriors.total([posteriors.encode(p, "onehot")] * 3, "onehot", CLASSES)
    assert votes is not None
    assert torch.equal(posteriors.mean(votes).argmax(dim=1), p.argmax(dim=1))


def test_a_pool_less_ones_own_post_is_the_sum_of_the_others() -> None:
    posts = [posteriors.encode(p, "fixed16") for p in softmax_posts(5, 1.0)]
    pool = posteriors.pooled(posts, "fixed16", CLASSES)
    others = posteriors.without(pool, posts[2], "fixed16", CLASSES)
    expected = posteriors.total([p for k, p in enumerate(posts) if k != 2], "fixed16", CLASSES)
    assert others is not None
    assert expected is not None
    assert torch.equal(others, expected)
    small = posteriors.pooled([posteriors.encode(p, "fixed8") for p in softmax_posts(5, 1.0)], "fixed8", CLASSES)
    assert (pool["sum"].dtype, small["sum"].dtype) == (torch.uint32, torch.uint16)  # type: ignore[union-attr]
    assert posteriors.without(posteriors.pooled(posts[:1], "fixed16", CLASSES), posts[0], "fixed16", CLASSES) is None


def post_of(found: Any, number: int, round: int = 1, **where: Any) -> Any:
    here = device_context(round, number, **where)
    return found.publish(found.initial_state(here), here)


def test_without_the_peers_opinion_it_is_local_training_and_steps_on_the_seeds() -> None:
    found, here = fedh2l(weight=0.0, protect="none"), device_context()
    local_state, _ = found.publish(found.initial_state(here), here)
    after = found.receive(local_state, {1: post_of(found, 1)[1]}, here)
    net = nets().with_weights("phone", local_state["weights"])
    fit().train(net, here, data=here.public, epochs=1, purpose="mutual")
    assert tree.equal(after["weights"], weights_of(net))


def test_without_anything_to_learn_it_is_local_training() -> None:
    found, here = fedh2l(weight=0.0, seed_ce=False), device_context()
    local_state, _ = found.publish(found.initial_state(here), here)
    after = found.receive(local_state, {1: post_of(found, 1)[1]}, here)
    alone, _ = Local(net=nets(), fit=fit()).train(None, {}, here)
    assert tree.equal(after["weights"], alone["weights"])


def test_equal_peers_stay_equal() -> None:
    found, owns = fedh2l(), [fedh2l().initial_state(device_context())] * 2
    for round in (1, 2, 3):
        here = device_context(round)
        posted = [found.publish(local_state, here) for local_state in owns]
        owns = [found.receive(posted[k][0], {7: posted[1 - k][1]}, here) for k in (0, 1)]
        assert tree.equal(owns[0], owns[1])


def test_an_empty_inbox_leaves_the_seeds() -> None:
    found, here = fedh2l(), device_context()
    local_state, _ = found.publish(found.initial_state(here), here)
    with meter.metering() as costs:
        after = found.receive(local_state, {}, here)
    assert costs.notes["peers"] == 0
    assert "kl" not in costs.notes
    assert all(bool(value.isfinite().all()) for value in after["weights"].values())
    assert not tree.equal(after["weights"], local_state["weights"])
    assert tree.equal(fedh2l(weight=0.0).receive(local_state, {}, here), after)
    assert tree.equal(fedh2l(seed_ce=False).receive(local_state, {}, here), local_state)


@pytest.mark.parametrize("protect", ["private", "seed", "both", "none"])
def test_what_is_noted_of_a_mutual_phase(protect: Any) -> None:
    found, here = fedh2l(protect=protect), device_context()
    local_state, _ = found.publish(found.initial_state(here), here)
    other = post_of(found, 1, data=rows(24, seed=9))[1]
    with meter.metering() as costs:
        found.receive(local_state, {1: other}, here)
    assert costs.notes["kl"] > 0
    guarded = {"conflict_rate", "removed_norm", "cosine"}
    assert guarded & costs.notes.keys() == (set() if protect == "none" else guarded)
    assert 0 <= costs.notes.get("conflict_rate", 0) <= 1
    assert -1 <= costs.notes.get("cosine", 0) <= 1


def test_protecting_the_private_fit_costs_it_less() -> None:
    """Seeds with wrong labels: the projected step raises the private loss by less than the plain one."""
    data = rows(24)
    wrong = shard(data.samples, (data.targets + 1) % CLASSES)
    losses = []
    for protect in ("private", "none"):
        found = fedh2l(fit(batch_size=24, epochs={"phone": 60}), protect=protect)  # type: ignore[arg-type]
        here = device_context(data=data, public=wrong)
        local_state = found.receive(found.publish(found.initial_state(here), here)[0], {}, here)
        net = nets().with_weights("phone", local_state["weights"])
        losses.append(float(F.cross_entropy(net(data.x), data.y).detach()))
    assert losses[0] < losses[1]


def test_running_statistics_follow_private_batches_only() -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, CLASSES))

    found, here = fedh2l(make=make), device_context()
    local_state, _ = found.publish(found.initial_state(here), here)
    after = found.receive(local_state, {1: post_of(found, 1)[1]}, here)
    for name in ("1.running_mean", "1.running_var", "1.num_batches_tracked"):
        assert torch.equal(local_state["weights"][name], after["weights"][name])
    assert not torch.equal(local_state["weights"]["1.weight"], after["weights"]["1.weight"])


def test_a_batch_is_one_local_step_and_one_mutual_step() -> None:
    found, here = fedh2l(fit(momentum=0.0), schedule="batch"), device_context()
    start = found.initial_state(here)
    local_state, update = found.publish(start, here)
    assert update["posteriors"].shape == (8, CLASSES)
    net = nets().with_weights("phone", start["weights"])
    picked = here.data.take(torch.randperm(24, generator=here.rng("step"))[:8])
    loss = F.cross_entropy(net(picked.x), picked.y)
    loss.backward()  # type: ignore[no-untyped-call]
    for name, value in net.named_parameters():
        assert value.grad is not None
        assert torch.allclose(local_state["weights"][name], start["weights"][name] - 0.1 * value.grad, atol=1e-6)
    with meter.metering() as costs:
        found.receive(local_state, {1: post_of(found, 1)[1]}, here)
    assert costs.notes["conflict_rate"] in (0.0, 1.0)


def test_seeds_of_a_round_are_equal_everywhere_and_cover_the_set_evenly() -> None:
    counts = torch.zeros(20, dtype=torch.int64)
    for round in range(1, 101):
        drawn = seed_set.rows_of_round(20, 6, "a" * 64, round)
        assert torch.equal(drawn, seed_set.rows_of_round(20, 6, "a" * 64, round))
        counts += torch.bincount(drawn, minlength=20)
    assert set(counts.tolist()) == {25}
    assert not torch.equal(seed_set.rows_of_round(20, 6, "a" * 64, 1), seed_set.rows_of_round(20, 6, "b" * 64, 1))
    assert torch.equal(seed_set.rows_of_round(20, 20, "a" * 64, 3), torch.arange(20))


def test_the_seed_digest_is_of_samples_labels_and_order() -> None:
    seeds = rows(5)
    other = shard(seeds.samples.clone(), seeds.targets.clone())
    other.samples[0, 0] += 1
    relabelled = shard(seeds.samples, (seeds.targets + 1) % CLASSES)
    turned: Shard = seeds.take(torch.tensor([1, 0, 2, 3, 4]))
    assert len({seed_set.digest(found) for found in (seeds, other, relabelled, turned)}) == 4
    assert seed_set.digest(seeds) == seed_set.digest(shard(seeds.samples, seeds.targets))
    assert seed_set.manifest(seeds)[3] | {"sha256": ""} == {
        "contributor": -1,
        "index": 3,
        "label": int(seeds.targets[3]),
        "sha256": "",
    }


def test_a_stale_post_stands_in_and_expires() -> None:
    found, other = fedh2l(stale_rounds=1), post_of(fedh2l(), 1)[1]
    local_state = found.initial_state(device_context())
    local_state = found.receive(local_state, {1: other}, device_context(1))
    for round, expected in ((2, 1.0), (3, 0.0)):
        with meter.metering() as costs:
            found.receive(local_state, {}, device_context(round))
        assert costs.notes["peers"] == expected
    assert found.combine([other]) is None


WRONG: dict[str, tuple[Callable[[Any], Any], str]] = {
    "another seed digest": (lambda update: {**update, "seed_digest": "f" * 64}, "seed_digest"),
    "another batch": (lambda update: {**update, "batch": 2}, "batch"),
    "another temperature": (lambda update: {**update, "temperature": 2.0}, "temperature"),
    "another form": (lambda update: {**update, "posts": "fixed8"}, "posts"),
    "another number of classes": (
        lambda update: {**update, "posteriors": update["posteriors"][:, :2].contiguous()},
        "posteriors",
    ),
    "rows beyond one": (
        lambda update: {**update, "posteriors": torch.full_like(update["posteriors"], 60000)},
        "rows that add up",
    ),
    "rows of nothing": (
        lambda update: {**update, "posteriors": torch.zeros_like(update["posteriors"])},
        "rows that add up",
    ),
}


def received(found: Any, update: Any) -> None:
    expected = found.update_spec(found.initial_state(device_context()), device_context())
    channel = Channel()
    channel.decode(channel.pack(update, {}), facts={}, spec=expected, limit=channel.limit(expected))


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_post_is_refused(case: str) -> None:
    change, named = WRONG[case]
    found = fedh2l()
    _, update = post_of(found, 1)
    received(found, update)
    with pytest.raises(WireError, match=named):
        received(found, change(copy.copy(update)))


@pytest.mark.parametrize("value", [-0.5, float("nan"), float("inf")])
def test_a_post_of_floats_that_are_no_posteriors_is_refused(value: float) -> None:
    found = fedh2l(posts="float32")
    _, update = post_of(found, 1)
    received(found, update)
    update["posteriors"][0, 0] = value
    with pytest.raises(WireError, match="posteriors"):
        received(found, update)


def test_a_vote_for_no_class_is_refused() -> None:
    found = fedh2l(posts="onehot")
    _, update = post_of(found, 1)
    received(found, update)
    update["posteriors"][0] = CLASSES
    with pytest.raises(WireError, match="posteriors"):
        received(found, update)


REFUSED = {
    "method.seeds=contributed": 'seeds = "contributed": not built yet',
    "method.weighting=correct": 'weighting = "correct": not built yet',
    "data.public=0.0": "needs a shared seed set: set \\[data\\] public",
    "method.seed_batch_exchange=1000": "expected 0 \\(all\\) or 1 to 26",
    "method.weight=101": "method.weight = 101",
    "method.temperature=0": "method.temperature = 0",
    "method.mutual_epochs=0": "method.mutual_epochs = 0",
    "method.stale_rounds=21": "method.stale_rounds = 21",
    "method.protect=all": "method.protect",
    "method.posts=int4": "method.posts",
    "method.schedule=epoch": "method.schedule",
    'wire.up=["int8"]': "wire.up holds int8",
    'wire.down=["int8"]': "wire.down holds int8",
    "method.models={small='resnet8'}": 'the fleet has tier "large"',
    "method.models={small='resnet8',large='resnet9'}": "resnet9",
}


@pytest.mark.parametrize("setting", REFUSED)
def test_what_cannot_work_is_refused(small: MakeExperiment, setting: str) -> None:
    with pytest.raises((ConfigError, ValueError), match=REFUSED[setting]):
        prepare(small("fedh2l", setting))


def test_options_that_exclude_one_another(small: MakeExperiment) -> None:
    with pytest.raises(ConfigError, match="mutual_epochs has no meaning with schedule = batch"):
        prepare(small("fedh2l", "method.schedule=batch", "method.mutual_epochs=1"))
    with pytest.raises(ConfigError, match="stale_rounds = 2: an update of another round is about other seeds"):
        prepare(small("fedh2l", "method.stale_rounds=2", "method.seed_batch_exchange=5"))
    with pytest.raises(ConfigError, match="for one device choose"):
        prepare(small("fedh2l", 'fleet.tier=[{name="one",devices=1}]'))
    with pytest.raises(ConfigError, match="a relay is for methods among peers"):
        prepare(small("fedavg", "engine.relay=true"))


def test_nets_of_different_architecture_teach_each_other(small: MakeExperiment, tmp_path: Path) -> None:
    found = run.run(small("fedh2l", "method.models={small='mlp',large='resnet8'}"), tmp_path / "run")
    assert found.summary["parameters"]["small"] != found.summary["parameters"]["large"]
    assert found.summary["bytes"]["setup"] == 0
    accuracy = found.rounds[-1]["accuracy"]
    assert accuracy["ad"]["devices"].keys() == accuracy["al"]["devices"].keys() == accuracy["devices"].keys()
    assert found.summary["accuracy"]["ad"] == pytest.approx(accuracy["mean"])
