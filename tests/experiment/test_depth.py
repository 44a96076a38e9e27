"""``[model] steps``: the depth of an implicit net under a method that does not set it."""

from pathlib import Path
from typing import Any

import pytest

from potluck.core import tree
from potluck.core.errors import ConfigError, ModelError
from potluck.experiment import run, store
from potluck.experiment.config import Experiment
from potluck.experiment.run_reader import Run

TIERS = [{"name": name, "devices": 1, "gflops": speed} for name, speed in (("small", 1.0), ("large", 9.0))]


def result(folder: Path, **changes: Any) -> Run:
    table: dict[str, Any] = {
        "rounds": 1,
        "data": {"source": "synthetic:240,1,8,8", "partition": {"kind": "iid"}},
        "fleet": {"tier": TIERS},
        "engine": {"kind": "inprocess"},
    }
    return run.run(Experiment.of({**table, **changes}), folder)


def test_fedavg_at_a_depth_is_fedode_at_that_depth(tmp_path: Path) -> None:
    net = {"name": "odenet-cifar-like"}
    plain = result(tmp_path / "a", model={**net, "steps": 3}, method={"name": "fedavg"})
    steps = {"small": 3, "large": 3}
    own = result(tmp_path / "b", model=net, method={"name": "fedode", "steps": steps, "norm_groups": "global"})
    weights = [store.read_checkpoint(one.path).state["weights"] for one in (plain, own)]
    assert tree.digest(weights[0]) == tree.digest(weights[1])
    assert plain.summary["accuracy"] == own.summary["accuracy"]


@pytest.mark.parametrize("method", ["fedavg", "fedhm", "feddlr", "heterofl"])
def test_each_tier_has_its_own_depth_under_other_methods(method: str, tmp_path: Path) -> None:
    model = {"name": "odenet-cifar-like", "steps": {"small": 1, "large": 8}}
    found = result(tmp_path / "run", model=model, method={"name": method})
    nets = {tier: found.model(tier) for tier in ("small", "large")}
    depths = [net.get_submodule("trunk.ode1").depth.steps for net in nets.values()]
    assert depths == [1, 8]
    counts = result(tmp_path / "equal", model={**model, "steps": 8}, method={"name": method}).summary
    if method != "feddlr":  # whose ranks follow what was learned
        assert found.summary["bytes"] == counts["bytes"], "depth does not travel"
    assert found.summary["state_sha256"] != counts["state_sha256"]


def test_equilibrium_nets_take_a_depth(tmp_path: Path) -> None:
    found = result(tmp_path / "run", model={"name": "deq-xs-like", "steps": 2}, method={"name": "fedavg"})
    assert found.model("small").depth.steps == 2


@pytest.mark.parametrize(
    ("model", "method", "error", "said"),
    [
        ({"name": "resnet8", "steps": 4}, "fedavg", ModelError, "no depth to set"),
        ({"name": "odenet-cifar-like", "steps": 4}, "fedode", ConfigError, "say method.steps"),
        ({"name": "odenet-cifar-like", "steps": {"small": 4}}, "fedavg", ConfigError, 'tier "large"'),
        ({"name": "odenet-cifar-like", "steps": {"small": 4, "huge": 4, "large": 4}}, "fedavg", ConfigError, "huge"),
        ({"name": "odenet-cifar-like", "steps": 2000}, "fedavg", ModelError, "from 1 to 1000"),
    ],
)
def test_what_cannot_work_is_refused(
    model: dict[str, Any], method: str, error: type[Exception], said: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=said):
        result(tmp_path / "run", model=model, method={"name": method})
    assert not (tmp_path / "run").exists()
