"""Export: every form computes what the net computes, compact layers stay compact, and what is refused."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from potluck.core.errors import ConfigError, MissingExtraError, ModelError, RunFolderError
from potluck.core.types import Inputs
from potluck.deploy import export as exporting
from potluck.deploy.export import export
from potluck.engines.round import initial_checkpoint
from potluck.experiment import run
from potluck.experiment.config import Experiment
from potluck.experiment.prepare import prepare
from potluck.experiment.run_reader import Run
from potluck.methods import METHODS
from potluck.methods.protocol import deployed
from potluck.nets.deqnet import set_depth
from potluck.nets.zoo import make, make_at_depth
from potluck.solvers import IFT, Anderson
from potluck.training.flops import forward_flops

MakeExperiment = Callable[..., Experiment]
SHAPE = (1, 8, 8)
needs_onnx = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in exporting.NEEDED), reason="ONNX is an optional extra"
)


@pytest.fixture
def ran(small: MakeExperiment, tmp_path: Path) -> Run:
    """A run of FedDLR on a small perceptron, whose model is compact."""
    options = ("method.dense_rounds=0", "method.p_model=0.5", "rounds=1", "model.name=mlp")
    return run.run(small("feddlr", *options), tmp_path / "run")


def samples(count: int) -> Tensor:
    return torch.randn((count, *SHAPE), generator=torch.Generator().manual_seed(count))


def test_safetensors_holds_the_weights_with_their_factors(ran: Run, tmp_path: Path) -> None:
    made = export(ran.path, "small", tmp_path / "net.safetensors")
    weights, net = load_file(made.path), ran.model("small")
    assert weights.keys() == net.state_dict().keys()
    assert {"dense1.u", "dense1.v", "dense1.bias"} < weights.keys()
    for name, value in net.state_dict().items():
        assert torch.equal(weights[name], value), name
    assert made.parameters == sum(value.numel() for value in weights.values())
    assert made.bytes == made.path.stat().st_size < 4 * made.parameters + 2000
    assert made.line() == f"{made.path}: {made.parameters:,} parameters, {made.bytes:,} bytes"


def test_pt2_computes_the_same_for_any_batch(ran: Run, tmp_path: Path) -> None:
    made = export(ran.path, "small", tmp_path / "net.pt2")
    loaded, net = torch.export.load(made.path).module(), ran.model("small")
    for count in (1, 2, 9):
        assert torch.allclose(loaded(samples(count)), net(samples(count)), atol=1e-6)
    assert made.difference <= 1e-6
    assert {"dense1.u", "dense1.v"} < set(dict(loaded.named_parameters()))
    assert made.bytes < 4 * made.parameters + 100_000


@needs_onnx
def test_onnx_is_checked_against_the_net(ran: Run, tmp_path: Path) -> None:
    made = export(ran.path, "large", tmp_path / "net.onnx")
    assert 0 <= made.difference < 1e-5
    assert made.bytes < 4 * made.parameters + 100_000  # the compact layers were not multiplied out
    assert sorted(path.name for path in tmp_path.iterdir() if "net" in path.name) == ["net.onnx", "net.onnx.json"]


@needs_onnx
@pytest.mark.timeout(300)
def test_what_a_tier_of_any_method_deploys_has_an_onnx_form(small: MakeExperiment, tmp_path: Path) -> None:
    """Nets of the same modules, shapes and FLOPs, so of the same depth, are one graph: it is written once."""
    written: set[tuple[object, ...]] = set()
    for name, net in deployable(small):
        shapes = tuple((key, value.shape) for key, value in net.state_dict().items())
        graph = (repr(net), shapes, forward_flops(net, Inputs(SHAPE)))
        if graph not in written:
            difference = exporting.WRITERS[".onnx"](net, Inputs(SHAPE), tmp_path / f"{name}.onnx")
            assert difference <= exporting.TOLERANCE, name
            written.add(graph)
    assert len(written) >= 7, "plain, a width, a rank, two depths of each implicit net"


def deployable(small: MakeExperiment) -> Iterator[tuple[str, nn.Module]]:
    """What each method deploys on a device of each tier, and implicit nets at a fixed depth."""
    for method in METHODS:
        federation = prepare(small(method)).federation
        state = None if federation.method.traits.peers else initial_checkpoint(federation).state
        for device in federation.fleet.devices[1:3]:
            net = deployed(federation.method, state, None, device).to(memory_format=torch.contiguous_format).eval()
            yield f"{method}-{device.tier}", net
    torch.manual_seed(0)
    for name in ("odenet-cifar-like", "deq-xs-like"):
        yield name, make_at_depth(name, Inputs(SHAPE), 10, "group", 3).eval()


def test_anderson_can_be_traced(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = make("deq-xs-like", Inputs(SHAPE), 10, "group").eval()
    set_depth(net, 4, solver=Anderson(), gradient=IFT())
    assert exporting.WRITERS[".pt2"](net, Inputs(SHAPE), tmp_path / "net.pt2") < 1e-5


def test_a_missing_package_is_named_with_the_command(ran: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "NEEDED", ("no_such_package",))
    with pytest.raises(MissingExtraError, match=r'ONNX \(no_such_package\).*pip install "potluck\[export\]"'):
        export(ran.path, "small", tmp_path / "net.onnx")


def test_what_cannot_be_written_leaves_nothing(ran: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(ConfigError, match=r"ends in .safetensors, .pt2, .onnx"):
        export(ran.path, "small", out / "net.bin")
    with pytest.raises(ConfigError, match="there is no folder"):
        export(ran.path, "small", out / "deeper" / "net.pt2")
    with pytest.raises(ConfigError, match="the fleet has small, large"):
        export(ran.path, "tablet", out / "net.pt2")
    with pytest.raises(RunFolderError):
        export(tmp_path / "nowhere", "small", out / "net.pt2")
    monkeypatch.setattr(exporting, "TOLERANCE", -1.0)
    with pytest.raises(ModelError, match=r"logits differ from the net's by .*: not written"):
        export(ran.path, "small", out / "net.pt2")
    assert not list(out.iterdir())


def test_a_net_that_branches_on_values_is_refused(tmp_path: Path) -> None:
    class Branches(nn.Module):
        def forward(self, x_BCHW: Tensor) -> Tensor:
            return x_BCHW.flatten(1) if float(x_BCHW.sum()) > 0 else -x_BCHW.flatten(1)

    with pytest.raises(ModelError, match="Branches cannot be traced"):
        exporting.WRITERS[".pt2"](Branches(), Inputs(SHAPE), tmp_path / "net.pt2")
