"""FedDLR: the stall toy, error feedback, its reductions, the compact model, bytes, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from potluck.core import tree
from potluck.core.contexts import DeviceContext, Reply, ServerContext
from potluck.core.errors import ConfigError, ModelError, TrainingError
from potluck.core.types import Device, Inputs
from potluck.engines.contract import Request, Response
from potluck.engines.local.inprocess import InProcess
from potluck.engines.local_state import LocalStateStore
from potluck.engines.round import initial_checkpoint, run_rounds
from potluck.experiment import build, run
from potluck.experiment.config import Experiment
from potluck.experiment.prepare import Prepared, prepare
from potluck.lowrank.factorise import low_rank_layers
from potluck.lowrank.matrix import Flatten
from potluck.lowrank.svd import decompose, decompose_product
from potluck.methods.feddlr import reference
from potluck.methods.feddlr.method import FedDLR
from potluck.methods.feddlr.packing import PackedMean, largest_rank, pack, unpack
from potluck.nets.tier_nets import TierNets
from potluck.nets.weights import load
from potluck.nets.zoo import make
from potluck.training.fit import Trained
from potluck.wire import frame

MakeExperiment = Callable[..., Experiment]
DEVICE = Device(
    id=0,
    tier="one",
    memory_bytes=1,
    flops_per_s=1.0,
    uplink_bytes_per_s=1.0,
    downlink_bytes_per_s=1.0,
    latency_s=0.0,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Towards:
    """Local training that moves the one weight a tenth of the way to a target."""

    def __init__(self, target_MN: Tensor, step: float = 0.1) -> None:
        self.target_MN = target_MN
        self.step = step

    def train(self, net: nn.Module, device_context: DeviceContext) -> Trained:
        with torch.no_grad():
            net.weight.add_(self.target_MN - net.weight, alpha=self.step)
        return Trained(samples=1, steps=1, loss=0.0)


class Toy:
    """One linear layer, one device."""

    def __init__(self, start_MN: Tensor, fit: Any, **options: Any) -> None:
        rows, columns = start_MN.shape
        nets = TierNets(
            {"one": lambda: nn.Linear(columns, rows, bias=False)}, inputs=Inputs((columns,)), outputs=rows, seed=0
        )
        given = {"error_feedback": False, "dense_rounds": 0, "down": "weight"}
        self.method = FedDLR(net=nets, fit=fit, **{**given, **options})
        self.state: Any = {"weights": pack({"weight": start_MN}, self._share, "squared", "o_ikk")}
        if self.method.down == "update":
            self.state["reference"] = reference.begin({"weight": start_MN})
        self.own: Any = None
        self.round = 0

    @property
    def _share(self) -> float:
        return self.method.p_server if self.method.target == "weight" else 1.0

    def matrix(self) -> Tensor:
        return unpack(self.state["weights"], self.method._shapes("one"), "o_ikk")["weight"]

    def play(self) -> Tensor:
        self.round += 1
        server_context = ServerContext(round=self.round, devices=[DEVICE], held=None, public=None, seed=0)
        share: Any = None
        device_context = DeviceContext(round=self.round, device=DEVICE, data=share, public=None, seed=0)
        broadcast = self.method.broadcast(self.state, DEVICE, server_context)
        self.own, update = self.method.train(self.own, broadcast, device_context)
        self.state = self.method.aggregate(
            self.state, [Reply(device=DEVICE, round=self.round, update=update)], server_context
        )
        return self.matrix()


# A 2×2 matrix is never cheaper as factors, so the toy stands in the corner of a larger one, with the same spectrum.
SIDE = 8


def corner(*values: float) -> Tensor:
    matrix_MN = torch.zeros(SIDE, SIDE)
    for place, value in enumerate(values):
        matrix_MN[place, place] = value
    return matrix_MN


@pytest.mark.parametrize(
    ("target", "down", "p_server", "low", "high"),
    [
        ("weight", "weight", 0.9, 0.0, 0.0),
        ("weight", "weight", 0.999, 0.0, 0.0),
        ("update", "weight", 0.9, 3.10, 3.44),
        ("update", "weight", 0.999, 1.0, 1.0),
        ("update", "update", 0.5, 1.0, 1.0),
    ],
)
def test_the_stall_toy(target: str, down: str, p_server: float, low: float, high: float) -> None:
    options = {"target": target, "down": down, "p_server": p_server, "p_client": 0.9}
    toy = Toy(corner(10, 0), Towards(corner(10, 1)), **options)
    seconds = [float(torch.linalg.svdvals(toy.play())[1]) for _ in range(200)][149:]
    within = 0.01 if high > 2 else 1e-6
    assert min(seconds) == pytest.approx(low, abs=within)
    assert max(seconds) == pytest.approx(high, abs=within)


def test_what_is_cut_off_is_sent_later() -> None:
    """Σ sent + e = Σ raw updates, over rounds of which every reply was merged."""
    start_MN = normal(12, 20)

    class Noisy:
        raw = torch.zeros(12, 20, dtype=torch.float64)

        def train(self, net: nn.Module, device_context: DeviceContext) -> Trained:
            change = normal(12, 20, seed=device_context.round)
            before = net.weight.detach().clone()
            with torch.no_grad():
                net.weight.add_(change)
            Noisy.raw += (net.weight.detach() - before).double()
            return Trained(samples=1, steps=1, loss=0.0)

    toy = Toy(start_MN, Noisy(), target="update", error_feedback=True, p_server=1.0, p_client=0.5)
    for _ in range(10):
        toy.play()
    assert float(toy.own["residual"]["weight"].norm()) > 1
    total = toy.matrix().double() - start_MN.double() + toy.own["residual"]["weight"].double()
    assert torch.allclose(total, Noisy.raw, atol=1e-5)


def test_an_old_residual_is_dropped() -> None:
    method = Toy(normal(12, 20), Towards(normal(12, 20)), error_feedback=True, p_client=0.5, residual_max_age=3).method
    broadcast = {"weights": {"weight": {"dense": normal(12, 20)}}}
    local_state: Any = {"residual": {"weight": 100 * normal(12, 20, seed=3)}, "round": 4}
    data: Any = None
    norms = {}
    for round in (7, 8):
        device_context = DeviceContext(round=round, device=DEVICE, data=data, public=None, seed=0)
        kept, update = method.train(local_state, broadcast, device_context)
        norms[round] = float(unpack(update["weights"], method._shapes("one"), "o_ikk")["weight"].norm())
        assert kept is not None
        assert kept["round"] == round
    assert norms[7] > 50 > norms[8]


@pytest.mark.parametrize("counts", [(3, 4, 5), (2, 2, 2)])
def test_the_sum_of_replies_needs_no_large_svd(counts: tuple[int, ...]) -> None:
    pairs = [(normal(30, r, seed=r + i), normal(r, 40, seed=9 + r + i)) for i, r in enumerate(counts)]
    weights = [1.0, 2.0, 5.0]
    total = sum(w * (a @ b) for w, (a, b) in zip(weights, pairs, strict=True)) / sum(weights)
    stacked = torch.cat([a * w / 8 for w, (a, _) in zip(weights, pairs, strict=True)], dim=1)
    by_parts = decompose_product(stacked, torch.cat([b for _, b in pairs]), "layer")
    direct = decompose(total, "layer")
    rank = sum(counts)
    assert torch.allclose(by_parts.s, direct.s[:rank], atol=1e-5)
    assert torch.allclose(by_parts.truncated(4), direct.truncated(4), atol=1e-5)
    mean = PackedMean({"w": (30, 40)}, "o_ikk")
    for weight, (a, b) in zip(weights, pairs, strict=True):
        mean.add({"w": {"a": a, "b": b}}, weight)
    found = mean.result(0.9, "squared")
    assert torch.allclose(found["w"]["a"] @ found["w"]["b"], direct.truncated(direct.rank(0.9)), atol=1e-5)
    assert torch.allclose(mean.result(1.0, "squared")["w"]["dense"], total, atol=1e-5)


def test_different_ranks_and_dense_replies_merge_whatever_their_order() -> None:
    shapes = {"w": (16, 9, 3, 3)}
    flatten: Flatten = "ok_ik"
    full = [normal(16, 9, 3, 3, seed=seed) for seed in range(4)]
    packed = [pack({"w": w}, share, "squared", flatten) for w, share in zip(full, (0.3, 0.6, 1.0, 0.5), strict=True)]
    assert ["a" in one["w"] for one in packed] == [True, True, False, True]
    wanted = sum(unpack(one, shapes, flatten)["w"].double() for one in packed) / 4
    for order in ([0, 1, 2, 3], [2, 0, 1, 3], [0, 1, 3, 2]):
        mean = PackedMean(shapes, flatten)
        for number in order:
            mean.add(packed[number], 7.0)
        assert torch.allclose(mean.result(1.0, "squared")["w"]["dense"], wanted.float(), atol=1e-6)


def test_products_are_averaged_never_factors() -> None:
    node = pack({"w": normal(20, 30)}, 0.5, "squared", "o_ikk")["w"]
    found = []
    for c in (1.0, 8.0):
        mean = PackedMean({"w": (20, 30)}, "o_ikk")
        mean.add({"w": {"a": node["a"] * c, "b": node["b"] / c}}, 3.0)
        mean.add({"w": node}, 1.0)
        found.append(mean.result(0.99, "squared")["w"])
    assert torch.allclose(found[0]["a"] @ found[0]["b"], found[1]["a"] @ found[1]["b"], atol=1e-5)


def test_an_all_zero_matrix_has_rank_one_and_no_nan() -> None:
    for shape in ((8, 40), (50, 60)):
        node = pack({"w": torch.zeros(shape)}, 0.95, "squared", "o_ikk")["w"]
        assert node["a"].shape[1] == 1
        assert not (node["a"] @ node["b"]).any()


def test_weights_that_are_not_finite_are_named() -> None:
    with pytest.raises(TrainingError, match="conv9"):
        pack({"conv9": torch.full((8, 40), float("inf"))}, 0.95, "squared", "o_ikk")


@pytest.mark.parametrize(
    ("shape", "flatten", "rank"),
    [
        ((32, 1, 5, 5), "o_ikk", 14),
        ((64, 32, 5, 5), "o_ikk", 59),
        ((512, 3136), "o_ikk", 440),
        ((10, 512), "o_ikk", 9),
        ((64, 64, 3, 3), "o_ikk", 57),
        ((512, 512, 3, 3), "o_ikk", 460),
        ((64, 64, 3, 3), "ok_ik", 95),
        ((512, 512, 3, 3), "ok_ik", 767),
        ((2, 2), "o_ikk", 0),
        ((10,), "o_ikk", 0),
        ((), "o_ikk", 0),
    ],
)
def test_break_even(shape: tuple[int, ...], flatten: Flatten, rank: int) -> None:
    assert largest_rank(shape, flatten) == rank


def test_a_fresh_weight_is_sent_dense() -> None:
    assert "dense" in pack({"w": normal(512, 3136)}, 0.95, "squared", "o_ikk")["w"]


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


def states_of(ready: Prepared, rounds: int, place: Path) -> tuple[dict[str, Tensor], str]:
    """(the server's weights, the state's digest) after some rounds."""
    engine = InProcess(runtime=build.make_runtime(ready.resolved, ready.shares, place))
    *_, last = run_rounds(ready.federation, engine, initial_checkpoint(ready.federation), rounds)
    weights = {k: v["dense"] if isinstance(v, dict) else v for k, v in last.checkpoint.state["weights"].items()}
    return weights, tree.digest(weights)


@pytest.mark.parametrize("target", ["weight", "update"])
def test_all_dense_is_fedavg(small: MakeExperiment, tmp_path: Path, target: str) -> None:
    plain, plain_digest = states_of(prepare(small("fedavg")), 2, tmp_path / "fedavg")
    options = (
        f"method.target={target}",
        f"method.down={target}",
        "method.p_server=1",
        "method.p_client=1",
        "method.error_feedback=false",
    )
    found, digest = states_of(prepare(small("feddlr", *options)), 2, tmp_path / "feddlr")
    if target == "weight":
        assert digest == plain_digest
    for name, value in found.items():
        assert torch.allclose(value, plain[name], atol=1e-6), name


class Idle:
    """Local training that does nothing."""

    def train(self, net: nn.Module, device_context: DeviceContext) -> Trained:
        return Trained(samples=1, steps=0, loss=0.0)


def test_weights_of_exact_rank_survive_a_round() -> None:
    start_MN = normal(20, 3) @ normal(3, 30, seed=1)
    toy = Toy(start_MN, Idle(), target="weight", p_server=0.99999, p_client=0.99999)
    assert torch.allclose(toy.play(), start_MN, atol=1e-4)
    assert toy.state["weights"]["weight"]["a"].shape == (20, 3)


COMPRESSED = ("method.dense_rounds=0", "method.p_client=0.5", "method.p_server=0.6")


@pytest.mark.parametrize("target", ["weight", "update"])
def test_bytes_are_those_of_the_formula_and_never_more_than_dense(small: MakeExperiment, target: str) -> None:
    plain = (f"method.target={target}", "method.down=weight", "method.error_feedback=false")
    ready = prepare(small("feddlr", *COMPRESSED, *plain))
    method, at, one = ready.federation.method, desk_of(ready), ready.federation.fleet.devices[1]
    state = method.initial_state(desk_of(ready, 0))
    broadcast = method.broadcast(state, one, at)
    device_context = DeviceContext(round=1, device=one, data=ready.shares.train[1], public=None, seed=0)
    _, update = method.train(None, broadcast, device_context)
    shapes = method._shapes("small")
    factored = 0
    for message in (broadcast, update):
        total = 0
        for name, shape in shapes.items():
            node, dense = message["weights"][name], torch.Size(shape).numel()
            rank = node["a"].shape[1] if "a" in node else None
            cost = dense if rank is None else rank * (shape[0] + dense // shape[0])
            assert cost <= dense
            factored += rank is not None
            total += cost
        assert frame.read_header(frame.encode(message)).tensor_bytes == 4 * total
    assert factored > 6
    assert frame.encode(method.broadcast(state, one, desk_of(ready))) == frame.encode(broadcast)
    for node in broadcast["weights"].values():
        if "a" in node:
            assert bool((node["a"].gather(0, node["a"].abs().argmax(0, keepdim=True)) >= 0).all())


def test_the_first_rounds_are_dense(small: MakeExperiment, tmp_path: Path) -> None:
    found = run.run(small("feddlr", "method.dense_rounds=2", "method.p_client=0.5", "rounds=3"), tmp_path / "run")
    per_reply = [line["bytes"]["up"] / len(line["cohort"]) for line in found.rounds]
    assert per_reply[0] == pytest.approx(per_reply[1], rel=0.01)
    assert per_reply[2] < 0.8 * per_reply[1]
    assert "device svd" in found.rounds[2]["parts"]
    assert "device svd" not in found.rounds[1]["parts"]
    assert found.rounds[2]["parts"]["server svd"] > 0


@pytest.mark.parametrize("flatten", ["o_ikk", "ok_ik"])
@pytest.mark.parametrize("target", ["weight", "update"])
def test_the_compact_model_computes_the_same(small: MakeExperiment, flatten: str, target: str) -> None:
    options = (*COMPRESSED, f"method.flatten={flatten}", f"method.target={target}", "method.down=weight")
    options = (*options, "method.error_feedback=false", *(["method.p_model=0.6"] if target == "update" else []))
    ready = prepare(small("feddlr", *options))
    method, one = ready.federation.method, ready.federation.fleet.devices[0]
    state = method.initial_state(desk_of(ready, 0))
    compact = method.model(state, None, one).eval()
    whole = make("resnet8", Inputs((1, 8, 8)), 10, "group").eval()
    load(whole, unpack(method.broadcast(state, one, desk_of(ready))["weights"], method._shapes("small"), flatten))
    assert len(low_rank_layers(compact)) >= 3
    x_BCHW = normal(4, 1, 8, 8)
    assert torch.allclose(compact(x_BCHW), whole(x_BCHW), atol=1e-5)
    full = prepare(small("feddlr", *options, "method.compact=false")).federation.method.model(state, None, one).eval()
    assert not low_rank_layers(full)
    assert torch.allclose(full(x_BCHW), whole(x_BCHW), atol=1e-5)


class Loses:
    """Carries everything, but the reply of one device in one round is lost on the way back."""

    def __init__(self, inner: InProcess, device: int, round: int) -> None:
        self.inner, self.device, self.round = inner, device, round

    def exchange(self, requests: Iterable[Request], deadline_s: float | None) -> Iterator[Response]:
        for response in self.inner.exchange(requests, deadline_s):
            request = response.request
            lost = (request.device.id, request.round, request.verb) == (self.device, self.round, "train")
            yield Response(request=request, status="lost") if lost else response


def test_a_lost_reply_never_touched_the_residual(small: MakeExperiment, tmp_path: Path) -> None:
    ready = prepare(small("feddlr", *COMPRESSED, "fleet.participation=1.0", "data.partition.kind=iid"))
    store = LocalStateStore(tmp_path)
    engine = InProcess(runtime=build.make_runtime(ready.resolved, ready.shares, tmp_path))
    _, second = run_rounds(ready.federation, Loses(engine, 2, 2), initial_checkpoint(ready.federation), 2)
    checkpoint = second.checkpoint
    assert checkpoint.acks[2] == 1
    assert checkpoint.acks[3] == 2
    kept = store.load(2, 1)["own"]
    assert kept["round"] == 1
    assert tree.digest(kept) == checkpoint.local_states[2]
    (third,) = run_rounds(ready.federation, engine, checkpoint, 3)
    device_context = DeviceContext(
        round=3, device=ready.federation.fleet.devices[2], data=ready.shares.train[2], public=None, seed=0
    )
    broadcast = ready.federation.method.broadcast(checkpoint.state, device_context.device, desk_of(ready, 3))
    local_state, _ = ready.federation.method.train(kept, broadcast, device_context)
    assert tree.digest(local_state) == third.checkpoint.local_states[2]


# --- what it refuses, and what it warns of ---------------------------------------------------------------------------

REFUSED = {
    ("method.p_client=95",): r"method.p_client = 95: expected a share of energy, 0 < p <= 1. Did you mean 0.95\?",
    ("method.p_server=0",): "method.p_server = 0: expected a share of energy, 0 < p <= 1.$",
    ("method.p_server=nan",): "method.p_server = nan: expected a share of energy",
    ("method.p_client=-0.5",): "method.p_client = -0.5: expected a share of energy",
    ("method.target=weight",): 'method.error_feedback = true needs target = "update"',
    (
        "method.error_feedback=false",
        "method.residual_max_age=20",
    ): "residual_max_age has no effect without error_feedback",
    ("method.residual_max_age=0",): "method.residual_max_age = 0: expected greater than or equal to 1",
    ("method.dense_rounds=-1",): "method.dense_rounds = -1",
    ("method.p_model=1", "method.compact=true"): "method.compact has no effect with p_model = 1",
    ("method.target=weight", "method.error_feedback=false"): 'method.down = "update" needs target = "update"',
    ("method.profile=faithful", "method.p_model=0.9"): 'method.p_model has no effect with target = "weight"',
    ('wire.down=["int8"]',): 'is lossy and down = "update" recomputes what was sent',
    ("method.p_server=1", "method.p_client=1", "method.energy=plain"): "method.energy has no effect",
    ("method.energy=cubed",): "method.energy",
    ('wire.up=["topk"]',): "feddlr forbids it",
    ("method.rank=3",): "method.rank: unknown",
}


@pytest.mark.parametrize("overrides", REFUSED, ids=" ".join)
def test_what_cannot_work_is_refused(small: MakeExperiment, overrides: tuple[str, ...]) -> None:
    with pytest.raises((ConfigError, ModelError), match=REFUSED[overrides]):
        prepare(small("feddlr", *overrides))


def vector(shape: tuple[int, ...], classes: int) -> nn.Module:
    """A net without a matrix: a bias alone."""

    class Bias(nn.Module):
        def __init__(self) -> None:
            nn.Module.__init__(self)
            self.bias = nn.Parameter(torch.zeros(classes))

        def forward(self, x_BCHW: Tensor) -> Tensor:
            return self.bias.expand(len(x_BCHW), -1)

    return Bias()


def test_a_net_without_a_matrix_is_refused(small: MakeExperiment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("potluck.core.plugins.own_object", lambda told, name, error: vector)
    with pytest.raises(ModelError, match="feddlr: the net has no matrix that factors make smaller"):
        prepare(small("feddlr", "model.name=anything:vector"))


def test_warnings(small: MakeExperiment) -> None:
    short = prepare(small("feddlr", "method.dense_rounds=5")).warnings
    assert short == ["dense_rounds = 5 of 2 rounds: nothing is ever compressed"]
    long = ("rounds=10",)
    assert prepare(small("feddlr", *long)).warnings == []
    (cycle,) = prepare(small("feddlr", *long, "method.down=weight", "method.p_server=0.9")).warnings
    assert "cycle" in cycle
    (stall,) = prepare(small("feddlr", *long, "method.profile=faithful")).warnings
    assert "stalls" in stall


def test_codecs_chain_with_factors(small: MakeExperiment, tmp_path: Path) -> None:
    options = (*COMPRESSED, 'wire.up=["int8","zstd"]', "method.down=weight", 'wire.down=["float16"]')
    assert run.run(small("feddlr", *options), tmp_path / "run").summary["rounds"] == 2
