"""The laws that every method obeys (potluck.testing), over every method; and that they can be broken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from potluck.core.contexts import DeviceContext
from potluck.core.errors import PotluckError
from potluck.core.spec import Spec
from potluck.engines.round import initial_checkpoint, run_rounds
from potluck.experiment import run
from potluck.experiment.prepare import prepare
from potluck.methods import METHODS
from potluck.methods.averaging import Averaging, State, Update
from potluck.testing import LAWS, TASKS, Law, NobodyAnswers, check_method, small_experiment


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_every_method_obeys(law: Law, method: str, tmp_path: Path) -> None:
    law(small_experiment(method), tmp_path)


NO_NETS = {("fedode", "text"), ("feddeq", "text"), ("fedode", "next_token"), ("feddeq", "next_token")}
"""No net of these methods' kinds takes texts."""
NOTHING_TO_TELL = {("fedmd", "next_token"), ("fedh2l", "next_token")}
OTHER = [(method, task) for method in METHODS for task in TASKS if task != "classification"]
ALLOWED = [pair for pair in OTHER if pair not in NO_NETS | NOTHING_TO_TELL]
HERE = [law for law in LAWS if law.__name__ not in ("engines_agree", "it_is_a_frozen_value_with_a_line_about_it")]


@pytest.mark.parametrize(("method", "task"), ALLOWED)
def test_every_method_obeys_with_every_task(method: str, task: str, tmp_path: Path) -> None:
    """All laws but that of engines, which does not depend on the task; it is tried with one task each, below."""
    for law in HERE:
        (tmp_path / law.__name__).mkdir()
        law(small_experiment(method, task=task), tmp_path / law.__name__)


@pytest.mark.parametrize(
    ("method", "task"),
    [
        ("fedavg", "next_token"),
        ("fedhm", "text"),
        ("heterofl", "series"),
        ("fedh2l", "regression"),
        ("fedmd", "multilabel"),
    ],
)
def test_engines_agree_on_other_tasks(method: str, task: str, tmp_path: Path) -> None:
    (law,) = [law for law in LAWS if law.__name__ == "engines_agree"]
    law(small_experiment(method, task=task), tmp_path)


@pytest.mark.parametrize(("method", "task"), sorted(NO_NETS | NOTHING_TO_TELL))
def test_what_is_not_allowed_is_refused_in_one_line(method: str, task: str) -> None:
    with pytest.raises(PotluckError) as error:
        prepare(small_experiment(method, task=task))
    assert "\n" not in str(error.value)
    said = "no net of kind" if (method, task) in NO_NETS else "too much to send: choose a method that sends weights"
    assert said in str(error.value)


@pytest.mark.parametrize("task", TASKS)
def test_something_is_learned(task: str, tmp_path: Path) -> None:
    settings = ("rounds=8", "fleet.participation=1.0", "train.epochs=2", "data.public=0.0")
    lines = run.run(small_experiment("fedavg", *settings, task=task), tmp_path / "run").rounds
    first, last = (line["metric"]["mean"] for line in (lines[0], lines[-1]))
    assert last < 0.9 * first if lines[0]["metric"]["better"] == "lower" else last > 1.05 * first


@pytest.mark.parametrize("posts", ["fixed16", "fixed8", "float32", "onehot"])
def test_a_relay_changes_no_round(posts: str, tmp_path: Path) -> None:
    """Combined where posts are fixed, forwarded where not; the metric of every round too."""
    settings = (f"method.posts={posts}", "rounds=3")
    native = run.run(small_experiment("fedh2l", *settings), tmp_path / "native")
    relayed = run.run(small_experiment("fedh2l", *settings, "engine.relay=true"), tmp_path / "relayed")
    assert relayed.summary["state_sha256"] == native.summary["state_sha256"]
    assert [line["accuracy"] for line in relayed.rounds] == [line["accuracy"] for line in native.rounds]


def test_a_relay_on_the_pool_changes_nothing(tmp_path: Path) -> None:
    native = run.run(small_experiment("fedh2l"), tmp_path / "native").summary
    settings = ("engine.kind=pool", "engine.workers=2", "engine.relay=true")
    there = run.run(small_experiment("fedh2l", *settings), tmp_path / "there").summary
    assert there["state_sha256"] == native["state_sha256"]


def test_a_round_lasts_until_a_loss_is_known() -> None:
    federation = prepare(small_experiment("fedavg")).federation
    (result,) = run_rounds(federation, NobodyAnswers(45.0), initial_checkpoint(federation), 1)
    assert result.seconds == 45.0 < federation.fleet.deadline_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutates(Averaging):
    """changes what it was sent"""

    def train(self, local_state: None, broadcast: State, context: DeviceContext) -> tuple[None, Update]:
        net = self.net.with_weights(context.device.tier, broadcast["weights"])
        trained = self.fit.train(net, context)
        answer = self.answer(net, broadcast["weights"], trained)
        next(iter(broadcast["weights"].values())).add_(1.0)
        return None, answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Remembers(Averaging):
    """trains from what the device trained before"""

    def train(self, local_state: None, broadcast: State, context: DeviceContext) -> tuple[None, Update]:
        net = self.net.with_weights(context.device.tier, broadcast["weights"])
        trained = self.fit.train(net, context)
        KEPT.append(self.answer(net, broadcast["weights"], trained))
        return None, KEPT[max(0, len(KEPT) - 2)]


KEPT: list[Update] = []


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawsFromAnywhere(Averaging):
    """noise from the global generator"""

    def train(self, local_state: None, broadcast: State, context: DeviceContext) -> tuple[None, Update]:
        weights = {
            name: value + torch.randn(value.shape) if value.is_floating_point() else value
            for name, value in broadcast["weights"].items()
        }
        return None, {"weights": weights, "samples": len(context.data)}


@dataclass(frozen=True, slots=True, kw_only=True)
class TakesAnything(Averaging):
    """an update of any values"""

    def train(self, local_state: None, broadcast: State, context: DeviceContext) -> tuple[None, Update]:
        net = self.net.with_weights(context.device.tier, broadcast["weights"])
        return None, self.answer(net, broadcast["weights"], self.fit.train(net, context))

    def update_spec(self, state: Any, device: Any, context: Any) -> Spec:
        spec = Averaging.update_spec(self, state, device, context)
        weights: Mapping[str, Any] = spec["weights"]
        return {**spec, "weights": {name: replace(leaf, finite=False) for name, leaf in weights.items()}}


BREAKS = {
    "Mutates": "inputs_are_not_mutated: .* was changed",
    "Remembers": "training_depends_on_its_context_alone",
    "DrawsFromAnywhere": "training_depends_on_its_context_alone",
    "TakesAnything": "damaged_updates_are_refused: .*, not finite",
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_law_that_is_broken_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("potluck.core.plugins.own_object", lambda told, name, error: globals()[name.partition(":")[2]])
    with pytest.raises(AssertionError, match=BREAKS[name]):
        check_method(f"tests.test_laws:{name}", tmp_path)


def test_what_is_no_method_is_no_method(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("potluck.core.plugins.own_object", lambda told, name, error: 3)
    with pytest.raises(ValueError, match="expected a frozen dataclass with traits"):
        check_method("tests.test_laws:THREE", tmp_path)
