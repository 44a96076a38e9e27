"""FedHM: the collapse toy, its reductions, what a merge must not depend on, bytes, and what it refuses."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from potluck.core import meter, tree
from potluck.core.contexts import DeviceContext, Reply, ServerContext
from potluck.core.errors import ConfigError, ModelError, TrainingError
from potluck.core.types import Device, Inputs
from potluck.experiment import run
from potluck.experiment.config import Experiment
from potluck.experiment.prepare import Prepared, prepare
from potluck.lowrank import spectra
from potluck.lowrank.matrix import to_matrix
from potluck.methods.fedhm import FedHM
from potluck.nets.tier_nets import TierNets
from potluck.wire import frame

MakeExperiment = Callable[..., Experiment]
SMALL_NET = ("stages.stage2.0.conv1", "stages.stage2.0.conv2", "stages.stage3.0.conv1", "stages.stage3.0.conv2")
AGGREGATIONS = ("replace", "delta", "rank_partitioned")


def device(number: int, tier: str) -> Device:
    return Device(
        id=number,
        tier=tier,
        memory_bytes=1,
        flops_per_s=1.0,
        uplink_bytes_per_s=1.0,
        downlink_bytes_per_s=1.0,
        latency_s=0.0,
    )


def server_context(devices: list[Device], round: int = 1) -> ServerContext:
    return ServerContext(round=round, devices=devices, held=None, public=None, seed=0)


def by_hand(ranks: Mapping[float, int]) -> Callable[..., dict[str, int]]:
    """Ranks by factor for every layer, whether they pay or not; a factor that is not named is dense."""

    def found(layers: Mapping[str, Any], factor: float, flatten: str = "ok_ik") -> dict[str, int]:
        return dict.fromkeys(layers, ranks[factor]) if factor in ranks else {}

    return found


class Toy:
    """One matrix, one device a tier; nobody trains unless told how."""

    def __init__(self, matrix_MN: Tensor, factors: list[float], **options: Any) -> None:
        rows, columns = matrix_MN.shape
        tiers = [f"tier{number}" for number in range(len(factors))]
        nets = TierNets(
            dict.fromkeys(tiers, lambda: nn.Sequential(nn.Linear(columns, rows, bias=False))),
            inputs=Inputs((columns,)),
            outputs=-1,
            seed=0,
        )
        given = {"weighting": "uniform", "keep_full": [], "rank_factor": dict(zip(tiers, factors, strict=True))}
        given["retention"] = 1.0
        self.method = FedHM(net=nets, fit=None, **{**given, **options})  # type: ignore[arg-type]
        self.devices = [device(number, tier) for number, tier in enumerate(tiers)]
        self.state: Any = {"weights": {"0.weight": matrix_MN}}

    @property
    def matrix(self) -> Tensor:
        found: Tensor = self.state["weights"]["0.weight"]
        return found

    def answers(
        self, at: ServerContext, change: Callable[[Any], Any] = lambda broadcast: broadcast
    ) -> list[Reply[Any]]:
        replies = []
        for one in self.devices:
            broadcast = self.method.broadcast(self.state, one, at)
            update = {**change(broadcast), "rank_factor": 1.0, "samples": 3}
            replies.append(Reply(device=one, round=at.round, update=update))
        return replies

    def play(self, rounds: int, change: Callable[[Any], Any] = lambda broadcast: broadcast) -> Tensor:
        for round in range(1, rounds + 1):
            at = server_context(self.devices, round)
            self.state = self.method.aggregate(self.state, self.answers(at, change), at)
        return self.matrix


def outside_top(matrix_MN: Tensor, rank: int) -> float:
    s_K = torch.linalg.svdvals(matrix_MN.double()).square()
    return float(s_K[rank:].sum() / s_K.sum())


HARMONIC = torch.diag(1.0 / torch.arange(1, 65))


@pytest.fixture
def toy_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spectra, "ranks_by_factor", by_hand({2.0: 32, 4.0: 16, 8.0: 8}))


@pytest.mark.usefixtures("toy_ranks")
def test_replace_collapses_to_the_smallest_rank() -> None:
    toy = Toy(HARMONIC, [1.0, 2.0, 4.0, 8.0], aggregation="replace", classifier_rows="all")
    wanted = {0: 0.06260, 1: 0.02579, 5: 0.002113, 10: 1.182e-4, 20: 3.75e-7}
    result = 0
    for rounds, share in wanted.items():
        toy.play(rounds - result)
        result = rounds
        assert outside_top(toy.matrix, 8) == pytest.approx(share, rel=1e-3), rounds
    s_K = torch.linalg.svdvals(toy.matrix)
    shrunk = [1.0, 0.75**20, 0.5**20, 0.25**20]
    for place, factor in zip((7, 15, 31, 63), shrunk, strict=True):
        assert float(s_K[place]) == pytest.approx(factor / (place + 1), rel=1e-2, abs=1e-9)


@pytest.mark.usefixtures("toy_ranks")
@pytest.mark.parametrize("aggregation", ["delta", "rank_partitioned"])
def test_the_others_do_not(aggregation: str) -> None:
    toy = Toy(HARMONIC, [1.0, 2.0, 4.0, 8.0], aggregation=aggregation, classifier_rows="all")
    before = outside_top(HARMONIC, 8)
    assert before == pytest.approx(0.06260, rel=1e-3)
    for _ in range(20):
        assert outside_top(toy.play(1), 8) == pytest.approx(before, rel=1e-5)


@pytest.mark.usefixtures("toy_ranks")
@pytest.mark.parametrize("retention", [0.9, 0.5])
def test_what_was_not_sent_fades_by_the_retention(retention: float) -> None:
    factors, rows = [1.0, 2.0, 4.0, 8.0], "all"
    found = Toy(HARMONIC, factors, retention=retention, classifier_rows=rows).play(3)
    s_K = torch.linalg.svdvals(found)
    for place, absent in zip((7, 15, 31, 63), (0, 1, 2, 3), strict=True):
        kept = (1 - (1 - retention) * absent / 4) ** 3
        assert float(s_K[place]) == pytest.approx(kept / (place + 1), rel=1e-4)
    nothing = Toy(HARMONIC, factors, retention=0.0, classifier_rows=rows).play(3)
    replaced = Toy(HARMONIC, factors, aggregation="replace", classifier_rows=rows).play(3)
    assert torch.allclose(nothing, replaced, atol=1e-6)


@pytest.mark.usefixtures("toy_ranks")
def test_the_record_tells_what_nobody_was_sent() -> None:
    toy = Toy(HARMONIC, [2.0, 8.0], classifier_rows="all")
    s_K = torch.diagonal(HARMONIC).double().square()
    with meter.metering() as costs:
        toy.play(1)
    assert costs.notes["unsent energy"] == pytest.approx(float(s_K[32:].sum() / s_K.sum()), rel=1e-4)
    assert costs.notes["largest rank absent"] == 0.0
    assert costs.seconds["svd"] > 0
    with meter.metering() as costs:
        at = server_context(toy.devices)
        toy.method.aggregate(toy.state, toy.answers(at)[1:], at)
    assert costs.notes["unsent energy"] == pytest.approx(float(s_K[8:].sum() / s_K.sum()), rel=1e-4)
    assert costs.notes["largest rank absent"] == 1.0


def test_size_softmax() -> None:
    for temperature, wanted in ((1.0, [0.704931, 0.259330, 0.035096, 0.000643]), (1e9, [0.25] * 4)):
        factors = [1.0, 2.0, 4.0, 8.0]
        method = Toy(torch.eye(4), factors, weighting="size_softmax", temperature=temperature).method
        weights = [method._weight(factor, 7) for factor in factors]
        assert [w / sum(weights) for w in weights] == pytest.approx(wanted, abs=1e-6)
    samples = Toy(torch.eye(4), factors, weighting="samples_size", temperature=2.0).method
    assert samples._weight(8.0, 30) / samples._weight(4.0, 10) == pytest.approx(3 * math.exp(-2))
    assert Toy(torch.eye(4), [1.0, 64.0], weighting="size_softmax", temperature=0.01).method._weight(64.0, 1) > 0


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_no_training_at_full_rank_keeps_the_weights(monkeypatch: pytest.MonkeyPatch, aggregation: str) -> None:
    monkeypatch.setattr(spectra, "ranks_by_factor", by_hand({2.0: 48, 4.0: 48}))
    matrix_MN = torch.randn((48, 64), generator=torch.Generator().manual_seed(0))
    found = Toy(matrix_MN, [1.0, 2.0, 4.0], aggregation=aggregation, classifier_rows="all").play(1)
    assert torch.allclose(found, matrix_MN, atol=1e-5)


def test_equal_factors_replace_agrees_with_the_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spectra, "ranks_by_factor", by_hand({4.0: 6}))
    matrix_MN = torch.randn((20, 24), generator=torch.Generator().manual_seed(1))
    rng = torch.Generator().manual_seed(2)

    def trained(broadcast: Any) -> Any:
        u = {layer: value + 0.1 * torch.randn(value.shape, generator=rng) for layer, value in broadcast["u"].items()}
        return {**broadcast, "u": u}

    found = {}
    for aggregation in ("replace", "rank_partitioned"):
        rng.manual_seed(2)
        toy = Toy(matrix_MN, [4.0, 4.0, 4.0], aggregation=aggregation, classifier_rows="all")
        found[aggregation] = toy.play(1, trained)
    own_part = matrix_MN - spectra.decompose(matrix_MN, "", rank=6).truncated(6)
    assert torch.allclose(found["rank_partitioned"] - own_part, found["replace"], atol=1e-5)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_products_are_averaged_never_factors(monkeypatch: pytest.MonkeyPatch, aggregation: str) -> None:
    monkeypatch.setattr(spectra, "ranks_by_factor", by_hand({2.0: 8, 8.0: 4}))
    matrix_MN = torch.randn((20, 24), generator=torch.Generator().manual_seed(1))
    rotation_RR = {
        rank: torch.linalg.qr(torch.randn((rank, rank), generator=torch.Generator().manual_seed(rank)))[0]
        for rank in (4, 8)
    }

    def same(broadcast: Any) -> Any:
        return broadcast

    def scaled(broadcast: Any) -> Any:
        return {
            **broadcast,
            "u": {n: 7 * u for n, u in broadcast["u"].items()},
            "v": {n: v / 7 for n, v in broadcast["v"].items()},
        }

    def rotated(broadcast: Any) -> Any:
        u = {name: value @ rotation_RR[value.shape[1]] for name, value in broadcast["u"].items()}
        v = {name: rotation_RR[value.shape[0]].T @ value for name, value in broadcast["v"].items()}
        return {**broadcast, "u": u, "v": v}

    options = {"aggregation": aggregation, "classifier_rows": "all"}
    found = [Toy(matrix_MN, [2.0, 8.0], **options).play(1, change) for change in (same, scaled, rotated)]
    assert torch.allclose(found[0], found[1], atol=1e-5)
    assert torch.allclose(found[0], found[2], atol=1e-5)


@pytest.mark.usefixtures("toy_ranks")
def test_history_joins_as_one_more_full_client() -> None:
    options = {"aggregation": "replace", "keep_history": True, "classifier_rows": "all"}
    toy = Toy(HARMONIC, [1.0, 8.0], weighting="size_softmax", temperature=2.0, **options)
    at = server_context(toy.devices)
    _, small = toy.answers(at)
    found = toy.method.aggregate(toy.state, [small], at)["weights"]["0.weight"]
    share = math.exp(-1 / 2) / (math.exp(-1 / 2) + math.exp(-8 / 2))
    assert float(found[10, 10]) == pytest.approx(share / 11, rel=1e-5)
    assert float(found[3, 3]) == pytest.approx(1 / 4, rel=1e-5)
    both = toy.method.aggregate(toy.state, toy.answers(at), at)["weights"]["0.weight"]
    assert float(both[10, 10]) == pytest.approx(share / 11, rel=1e-5)  # the largest device answered: it is no history


# --- the whole method on a small net ---------------------------------------------------------------------------------


def desk_of(ready: Prepared, round: int = 1) -> ServerContext:
    federation = ready.federation
    return ServerContext(
        round=round,
        devices=federation.fleet.devices,
        held=federation.held,
        public=federation.public,
        seed=federation.seed,
    )


def task_of(ready: Prepared, number: int, round: int = 1) -> DeviceContext:
    found = ready.federation.fleet.devices[number]
    return DeviceContext(
        round=round, device=found, data=ready.shares.train[number], public=None, seed=ready.federation.seed
    )


def untrained(ready: Prepared, state: Any, at: ServerContext) -> list[Reply[Any]]:
    method = ready.federation.method
    replies = []
    for one in ready.federation.fleet.devices:
        broadcast = method.broadcast(state, one, at)
        update = {**broadcast, "rank_factor": method._factor(one.tier), "samples": 10 + one.id}
        if method._counts_rows(one.tier):
            update["labels"] = [0, 1, 2]
        replies.append(Reply(device=one, round=at.round, update=update))
    return replies


@pytest.mark.parametrize("aggregation", ["replace", "delta"])
def test_factor_one_everywhere_is_fedavg(small: MakeExperiment, tmp_path: Path, aggregation: str) -> None:
    plain = run.run(small("fedavg"), tmp_path / "fedavg")
    same = ("method.rank_factor={small=1,large=1}", "method.weighting=samples", f"method.aggregation={aggregation}")
    found = run.run(small("fedhm", *same), tmp_path / "fedhm")
    if aggregation == "replace":
        assert found.summary["state_sha256"] == plain.summary["state_sha256"]
    one, other = (ran.model("small").state_dict() for ran in (found, plain))
    for name, value in one.items():
        assert torch.allclose(value, other[name], atol=1e-6), name


def test_without_training_delta_changes_no_bit(small: MakeExperiment) -> None:
    ready = prepare(small("fedhm", "method.retention=1"))
    state, at = ready.federation.method.initial_state(desk_of(ready, 0)), desk_of(ready)
    assert tree.equal(ready.federation.method.aggregate(state, untrained(ready, state, at), at), state)


def test_bytes_are_those_of_the_formula(small: MakeExperiment) -> None:
    ready = prepare(small("fedhm", "method.rank_factor={small=4,large=2}"))
    method, at = ready.federation.method, desk_of(ready)
    state = method.initial_state(desk_of(ready, 0))
    for number, factor in ((0, 4), (2, 2)):
        broadcast = method.broadcast(state, ready.federation.fleet.devices[number], at)
        weights = dict(state["weights"])
        total = 0
        for layer in SMALL_NET:
            outputs, inputs, k, _ = weights.pop(f"{layer}.weight").shape
            total += max(round(outputs / factor), 1) * k * (outputs + inputs)
        total += sum(value.numel() for value in weights.values())
        assert frame.read_header(frame.encode(broadcast)).tensor_bytes == 4 * total
        _, update = method.train(None, broadcast, task_of(ready, number))
        assert frame.read_header(frame.encode(update)).tensor_bytes == 4 * total


def test_cast_is_pure_and_signs_are_fixed(small: MakeExperiment) -> None:
    ready = prepare(small("fedhm"))
    method, one = ready.federation.method, ready.federation.fleet.devices[0]
    state = method.initial_state(desk_of(ready, 0))
    first, again = (frame.encode(method.broadcast(state, one, desk_of(ready))) for _ in range(2))
    assert first == again
    for u_MR in method.broadcast(state, one, desk_of(ready))["u"].values():
        top_R = u_MR.gather(0, u_MR.abs().argmax(0, keepdim=True))
        assert bool((top_R > 0).all())


def test_weights_that_are_not_finite_are_named(small: MakeExperiment) -> None:
    ready = prepare(small("fedhm"))
    method = ready.federation.method
    state = method.initial_state(desk_of(ready, 0))
    broken = {"weights": {**state["weights"], f"{SMALL_NET[1]}.weight": torch.full((32, 32, 3, 3), float("nan"))}}
    with pytest.raises(TrainingError, match=SMALL_NET[1]):
        method.broadcast(broken, ready.federation.fleet.devices[0], desk_of(ready))


@pytest.mark.parametrize(("rows", "kept"), [("renormalised", 1.0), ("paper", None), ("all", 1.0)])
def test_a_class_that_no_small_device_has(small: MakeExperiment, rows: str, kept: float | None) -> None:
    ready = prepare(small("fedhm", f"method.classifier_rows={rows}"))
    method, at = ready.federation.method, desk_of(ready)
    state = method.initial_state(desk_of(ready, 0))
    replies = untrained(ready, state, at)
    merged = method.aggregate(state, replies, at)["weights"]["classifier.weight"]
    before = state["weights"]["classifier.weight"]
    weights = [method._weight(method._factor(reply.device.tier), reply.update["samples"]) for reply in replies]
    large = [weight for weight, reply in zip(weights, replies, strict=True) if reply.device.tier == "large"]
    share = sum(large) / sum(weights) if kept is None else kept
    assert torch.allclose(merged[5], share * before[5], rtol=1e-5)
    assert torch.allclose(merged[1], before[1], rtol=1e-5)
    small_only = [reply for reply in replies if reply.device.tier == "small"]
    alone = method.aggregate(state, small_only, at)["weights"]["classifier.weight"]
    assert torch.allclose(alone[5], before[5] * (0.0 if kept is None else 1.0))


def test_fresh_weights_start_at_the_rank_of_the_weakest_tier(small: MakeExperiment, tmp_path: Path) -> None:
    ready = prepare(small("fedhm", "method.rank_factor={small=8,large=2}"))
    found = ready.federation.method.initial_state(desk_of(ready, 0))["weights"]
    full = prepare(small("fedhm", "method.initial=full")).federation.method.initial_state(desk_of(ready, 0))["weights"]
    for name, value in found.items():
        layer, ranks = name.removesuffix(".weight"), {16: 2, 32: 4, 64: 8}
        if layer not in SMALL_NET:
            assert torch.equal(value, full[name]), name
            continue
        matrix_MN, rank = to_matrix(value, "ok_ik"), ranks[value.shape[0]]
        assert torch.linalg.svdvals(matrix_MN)[rank] < 1e-5
        whole_MN = to_matrix(full[name], "ok_ik")
        best = spectra.decompose(whole_MN, name, rank=rank).truncated(rank)
        assert float(matrix_MN.norm()) == pytest.approx(float(whole_MN.norm()), rel=1e-5)
        alike = (matrix_MN * best).sum() / (matrix_MN.norm() * best.norm())
        assert float(alike) > 0.98  # the randomised SVD is near the best
    path = tmp_path / "trained.safetensors"
    path.write_bytes(frame.encode(full))
    trained = prepare(small("fedhm", f'model.init="{path}"')).federation.method.initial_state(desk_of(ready, 0))[
        "weights"
    ]
    assert tree.equal(trained, full)


def test_masked_logits_do_not_learn(small: MakeExperiment) -> None:
    ready = prepare(small("fedhm", "method.mask_labels=true"))
    method, at = ready.federation.method, desk_of(ready)
    state = method.initial_state(desk_of(ready, 0))
    device_context = task_of(ready, 0)
    two = device_context.data.take((device_context.data.y < 2).nonzero().reshape(-1))
    device_context = DeviceContext(round=1, device=device_context.device, data=two, public=None, seed=0)
    broadcast = method.broadcast(state, device_context.device, at)
    _, update = method.train(None, broadcast, device_context)
    assert update["labels"] == [0, 1]
    moved = (update["full"]["classifier.weight"] - broadcast["full"]["classifier.weight"]).abs().amax(1)
    assert bool((moved[:2] > 0).all())
    assert float(moved[2:].max()) == 0.0


def test_decay_of_factors_and_of_full_tensors_stand_apart(small: MakeExperiment) -> None:
    ready = prepare(small("fedhm", "train.weight_decay=0.5", "method.frobenius=0.25", "method.l2_on_factors=0.125"))
    method = ready.federation.method
    broadcast = method.broadcast(
        method.initial_state(desk_of(ready, 0)), ready.federation.fleet.devices[0], desk_of(ready)
    )
    net = spectra_net(method, broadcast)
    for weight in net.parameters():
        weight.grad = torch.zeros_like(weight)
    method._decay(net)
    layer = net.get_submodule(SMALL_NET[0])
    u, v = layer.u.detach(), layer.v.detach()
    seen = layer.u.grad + 0.5 * u  # what SGD makes of it with its weight decay
    assert torch.allclose(seen, 0.25 * u @ v @ v.T + 0.125 * u, atol=1e-6)
    assert float(net.get_parameter("classifier.weight").grad.abs().max()) == 0.0


def spectra_net(method: FedHM, broadcast: Any) -> nn.Module:
    from potluck.lowrank.factorise import low_rank, with_factors  # noqa: PLC0415 - for this test alone
    from potluck.nets.weights import load  # noqa: PLC0415

    net = low_rank(method.net("small"), {layer: u.shape[1] for layer, u in broadcast["u"].items()})
    load(net, with_factors(broadcast["full"], broadcast["u"], broadcast["v"]))
    return net


def test_the_model_is_that_of_the_tier(small: MakeExperiment) -> None:
    ready = prepare(small("fedhm"))
    method = ready.federation.method
    state = method.initial_state(desk_of(ready, 0))
    weak, strong = (method.model(state, None, ready.federation.fleet.devices[number]) for number in (0, 2))
    server = method.model(state, None, device(99, "server"))
    assert sum(w.numel() for w in weak.parameters()) == 12_602
    for net in (strong, server):
        assert tree.equal(dict(net.state_dict()), state["weights"])


def test_faithful_is_the_authors_code(small: MakeExperiment) -> None:
    ready = prepare(small("fedhm", "method.profile=faithful", "data.partition.kind=iid"))
    method, experiment = ready.federation.method, ready.experiment
    assert (method.aggregation, method.weighting, method.keep_history) == ("replace", "uniform", True)
    assert (method.mask_labels, method.classifier_rows, method.l2_on_factors) == (True, "paper", 1e-4)
    assert (experiment.train.lr, experiment.train.epochs["small"], experiment.train.weight_decay) == (0.1, 10, 1e-4)
    assert experiment.train.batch_size == 16  # the file wins over the profile
    assert experiment.model.norm == "batch_stat"


# --- what it refuses, and what it warns of ---------------------------------------------------------------------------

REFUSED = {
    (
        "method.rank_factor={small=0.5,large=1}",
    ): "method.rank_factor.small = 0.5: expected a number from 1 .full. to 64",
    ("method.rank_factor={small=65,large=1}",): "method.rank_factor.small = 65: expected a number from 1 .full. to 64",
    ("method.rank_factor={small=8}",): 'fleet has tier "large" but no entry',
    ("method.rank_factor={small=8,large=1,tiny=2}",): "method.rank_factor.tiny",
    ('method.keep_full=["stage9"]',): 'method.keep_full: the net has no layer "stage9"; it has: stem',
    ("method.temperature=0",): "method.temperature = 0: expected greater than 0",
    ("method.temperature=2.0", "method.weighting=uniform"): 'temperature has no effect with weighting = "uniform"',
    ("method.temperature=8.0", "method.weighting=samples"): 'temperature has no effect with weighting = "samples"',
    ("method.keep_history=true",): 'method.keep_history has no effect with aggregation = "delta"; remove it.',
    ("method.retention=0.5", "method.aggregation=replace"): 'retention has no effect with aggregation = "replace"',
    ("method.retention=1.5",): "method.retention = 1.5: expected less than or equal to 1",
    ("method.initial=low",): "method.initial",
    ("method.initial=full", "method.rank_factor={small=1,large=1}"): "initial has no effect with rank factor 1",
    ("method.frobenius=0.1", "method.rank_factor={small=1,large=1}"): "frobenius has no effect with rank factor 1",
    ('wire.down=["int8"]',): "is lossy and aggregation = .delta. recomputes what was sent: drop the codec",
    ('wire.up=["topk"]',): "fedhm forbids it",
    ("method.mu=0.1",): "method.mu: an option of fedprox, not of fedhm",
    ("method.aggregation=mean",): "method.aggregation",
    ("method.profile=best",): "method.profile",
    ("model.name=mlp", 'method.keep_full=["dense1","dense2","classifier"]'): "no layer to factorise",
}


@pytest.mark.parametrize("overrides", REFUSED, ids=" ".join)
def test_what_cannot_work_is_refused(small: MakeExperiment, overrides: tuple[str, ...]) -> None:
    with pytest.raises((ConfigError, ModelError), match=REFUSED[overrides]):
        prepare(small("fedhm", *overrides))


def test_a_lossless_codec_goes_with_delta_and_a_lossy_one_with_the_others(small: MakeExperiment) -> None:
    prepare(small("fedhm", 'wire.down=["zstd"]', 'wire.up=["int8","zstd"]'))
    prepare(small("fedhm", 'wire.down=["int8"]', "method.aggregation=rank_partitioned"))


def test_warnings(small: MakeExperiment) -> None:
    assert prepare(small("fedhm")).warnings == []
    (collapse,) = prepare(small("fedhm", "method.aggregation=replace")).warnings
    assert '"delta" does not' in collapse
    assert prepare(small("fedhm", "method.aggregation=replace", "method.rank_factor={small=4,large=4}")).warnings == []
    (dense,) = prepare(small("fedhm", "model.name=mlp", "method.rank_factor={small=1.1,large=1}")).warnings
    assert dense == 'tier "small", rank factor 1.1: no gain, hence dense: dense2'


def depthwise(shape: tuple[int, ...], classes: int) -> nn.Module:
    """A net of one's own: one of its layers is depthwise."""
    middle = [nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU()]
    return nn.Sequential(nn.Conv2d(shape[0], 8, 3, padding=1), *middle, nn.Flatten(), nn.Linear(16 * 64, classes))


@pytest.mark.parametrize("method", ["fedhm", "feddlr"])
def test_a_depthwise_layer_is_kept_full_and_said_once(
    small: MakeExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr("potluck.core.plugins.own_object", lambda told, name, error: depthwise)
    experiment = small(method, "model.name=anything:depthwise")
    assert prepare(experiment).warnings == ["grouped convolutions stay full: 1"]
    found = run.run(experiment, tmp_path / "run")  # a warning of any other kind would be an error
    assert found.model("small").get_submodule("1").weight.shape == (8, 1, 3, 3)


def test_a_resumed_file_is_not_taken_for_what_a_person_set(small: MakeExperiment, tmp_path: Path) -> None:
    run.run(small("fedhm", "method.weighting=uniform", "rounds=1"), tmp_path / "run")
    assert run.resume(tmp_path / "run", more_rounds=1).summary["rounds"] == 2
