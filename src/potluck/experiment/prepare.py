"""An experiment that has been found sound: everything that can be refused before a run is refused here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from potluck.core.errors import ConfigError
from potluck.core.options import Setup
from potluck.data.shares import Shares
from potluck.engines.federation import Federation
from potluck.experiment import build
from potluck.experiment.config import Experiment
from potluck.experiment.measure import Measure
from potluck.experiment.problem import Problem, problem_of
from potluck.experiment.resolve import Resolved, resolve
from potluck.experiment.trackers import TRACKERS
from potluck.wire.channel import codec_names, sparse_codecs


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """An experiment that has been found sound, with its data."""

    resolved: Resolved
    problem: Problem
    shares: Shares
    federation: Federation
    measure: Measure
    warnings: Sequence[str]

    @property
    def experiment(self) -> Experiment:
        """The experiment with every option of its method set."""
        return self.resolved.experiment


def prepare(experiment: Experiment) -> Prepared:
    """Resolves, loads the data and checks everything that can be checked before a run. Writes nothing."""
    resolved = resolve(experiment)
    return found_sound(resolved, build.make_shares(resolved))


def found_sound(resolved: Resolved, shares: Shares) -> Prepared:
    """The same with data at hand. Raises ConfigError or ModelError for what cannot work."""
    experiment, problem = resolved.experiment, problem_of(resolved, shares)
    if experiment.data.augment != "none" and problem.inputs.kind != "images":
        raise ConfigError(f'data.augment = "{experiment.data.augment}": needs images, the samples are {problem.inputs}')
    if experiment.model.steps and resolved.traits.kind != "any":
        raise ConfigError(f"model.steps: {resolved.method_name} sets the depth itself; say method.steps")
    nets = build.make_tier_nets(resolved, problem)
    build.require_nets_fit(nets, resolved, problem)
    federation = build.make_federation(resolved, shares, problem, build.make_method(resolved, problem, nets))
    measure = Measure.of(resolved, problem)
    if experiment.evaluate.on != "common" and experiment.engine.kind not in ("inprocess", "pool"):
        raise ConfigError(
            f'evaluate.on = "{experiment.evaluate.on}": works in a simulation so far; on real devices choose "common"'
        )
    if experiment.stop.accuracy and measure.name != "accuracy":
        raise ConfigError(
            f"stop.accuracy = {experiment.stop.accuracy:g}: this run is judged by {measure.name}; set stop.metric"
        )
    for tracker in experiment.track.kind:
        TRACKERS[tracker]
    setup = _setup(resolved, shares, federation)
    if setup.sparse_codecs and "send" not in resolved.options:
        raise ConfigError(
            f"wire.up holds {setup.sparse_codecs[0]}, and {resolved.method_name} forbids it: it drops most entries, "
            'which only the updates of a method with send = "update" survive; choose float16, bfloat16, int8 or zstd'
        )
    warnings = list(federation.method.check(setup))
    return Prepared(
        resolved=resolved,
        problem=problem,
        shares=shares,
        federation=federation,
        measure=measure,
        warnings=warnings,
    )


def _setup(resolved: Resolved, shares: Shares, federation: Federation) -> Setup:
    wire, messages = resolved.experiment.wire, federation.messages
    return Setup(
        devices=federation.fleet.devices,
        tiers=resolved.tiers,
        inputs=shares.inputs,
        outputs=shares.facts.outputs,
        public_samples=0 if shares.public is None else len(shares.public),
        server_samples=0 if shares.held is None else len(shares.held),
        up_codecs=codec_names(wire.up),
        down_codecs=codec_names(wire.down),
        sparse_codecs=sparse_codecs(messages.up, messages.down),
        rounds=resolved.experiment.rounds,
        given=resolved.given,
    )
