"""From a resolved experiment to what runs: the data, the method, the fleet, the messages, a device's runtime.

A worker process, a real device and the server all build from the same value.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from potluck.core.errors import ConfigError, ModelError
from potluck.core.plugins import OBJECT, own_object
from potluck.core.types import Device
from potluck.data.dataset import retargeted
from potluck.data.partition.rules import column_of
from potluck.data.shares import Shares, share_out
from potluck.data.source import Reading
from potluck.data.sources import load
from potluck.engines.device import DeviceRuntime
from potluck.engines.evaluation import score_spec
from potluck.engines.federation import Federation
from potluck.engines.local_state import LocalStateStore
from potluck.engines.relay import Relay
from potluck.experiment.config import Experiment
from potluck.experiment.problem import Problem, problem_of
from potluck.experiment.resolve import Resolved
from potluck.fleet.cohort import Fleet
from potluck.fleet.devices import make_devices
from potluck.nets import zoo
from potluck.nets.tier_nets import TierNets
from potluck.nets.weights import Weights
from potluck.training.evaluate import Metric, nothing
from potluck.training.fit import Fit, Loss
from potluck.wire.channel import make_channel
from potluck.wire.messages import Messages

TASKS_OWN = ("task", "cross_entropy")
"""What ``[train] loss`` says where the loss is the task's; the second is how version 0.1 said it."""


def make_shares(resolved: Resolved) -> Shares:
    """Everybody's data. Raises DataError or ConfigError."""
    data = resolved.experiment.data
    task = str(resolved.experiment.task.get("kind", ""))
    kind = "" if data.kind == "auto" else data.kind
    built_in = "" if OBJECT.fullmatch(task) else task
    dataset = load(
        data.source, Reading(column=column_of(data.partition), kind=kind, task=built_in, columns=data.columns)
    )
    if built_in and dataset.task != built_in:
        dataset = retargeted(dataset, built_in)
    return share_out(
        dataset,
        data.partition,
        devices=resolved.devices,
        seed=resolved.experiment.seed,
        public=data.public,
        server_samples=data.server_samples,
        normalise=data.normalise,
        limit=data.limit,
        own_test=own_share(resolved.experiment),
    )


def own_share(experiment: Experiment) -> float:
    """The share of its data that a device holds out for its own test; 0: none."""
    return 0.0 if experiment.evaluate.on == "common" else experiment.evaluate.own_test


def make_fleet(resolved: Resolved) -> Fleet:
    """All devices, and who takes part."""
    fleet = resolved.experiment.fleet
    return Fleet(
        devices=make_devices([tier.plain() for tier in fleet.tier]),
        availability={tier.name: tier.availability for tier in fleet.tier},
        participation=fleet.participation,
        deadline_s=fleet.deadline_s,
        seed=resolved.experiment.seed,
    )


def compute_device(experiment: Experiment) -> str:
    """``cpu`` or ``cuda``, as ``[engine] device`` says."""
    wanted = experiment.engine.device
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError('engine.device = "cuda": torch sees no GPU here; choose "cpu" or "auto"')
    return wanted


def make_fit(resolved: Resolved, problem: Problem) -> Fit:
    """Local training as ``[train]`` says."""
    train = resolved.experiment.train
    return Fit(
        optimiser=train.optimiser,
        lr=train.lr,
        momentum=train.momentum,
        weight_decay=train.weight_decay,
        epochs=resolved.epochs,
        batch_size=train.batch_size,
        schedule=train.schedule,
        milestones=tuple(train.milestones),
        gamma=train.gamma,
        schedule_rounds=train.schedule_rounds,
        clip_norm=train.clip_norm,
        channels_last=train.channels_last,
        bf16=train.bf16,
        augment=resolved.experiment.data.augment,
        task=problem.task,
        own_loss=make_loss(resolved, problem),
        device=compute_device(resolved.experiment),
    )


def make_loss(resolved: Resolved, problem: Problem) -> Loss | None:
    """The loss of one's own that ``[train]`` names; None: the task's."""
    name = resolved.experiment.train.loss
    if name == "cross_entropy" and problem.kind != "classification":
        raise ConfigError(
            f'train.loss = "{name}": the task is "{problem.kind}", which has a loss of its own; remove it'
        )
    return None if name in TASKS_OWN else _own("train.loss", name, '"task"')


def make_metric(resolved: Resolved, problem: Problem) -> Metric | None:
    """The metric of one's own that ``[evaluate]`` names, a number per sample; None: one of the task's."""
    name = resolved.experiment.evaluate.metric
    if name == "task" or ":" in name:
        return None if name == "task" else _own("evaluate.metric", name, "")
    known = metric_names(problem)
    if name not in known:
        expected = f'one of {", ".join(known)}, or "package.module:function"'
        raise ConfigError(f'evaluate.metric = "{name}": the task is "{problem.kind}"; expected "task", {expected}')
    return None


def metric_names(problem: Problem) -> list[str]:
    """The metrics of the task."""
    targets = torch.zeros(0, dtype=torch.int64)
    shape: tuple[int, ...] = (0, problem.task.outputs)
    if problem.task.per_step:
        targets, shape = torch.zeros((0, 1), dtype=torch.int64), (0, 1, problem.task.outputs)
    elif problem.kind in ("multilabel", "regression"):
        targets = torch.zeros((0, problem.task.outputs))
    return list(problem.task.metrics(problem.task.totals(torch.zeros(shape), targets)))


def _own(key: str, name: str, expected: str) -> Callable[..., Any]:
    """A function of one's own by ``package.module:function``."""
    if ":" not in name:
        raise ConfigError(f'{key} = "{name}": expected {expected}, or "package.module:function"')
    found = own_object(f'{key} = "{name}"', name)
    if not callable(found):
        raise ConfigError(f'{key} = "{name}": a {type(found).__name__}, expected a function')
    return found  # type: ignore[no-any-return]


def make_tier_nets(resolved: Resolved, problem: Problem) -> TierNets:
    """The net of each tier. Raises ConfigError for initial weights that cannot be read."""
    experiment = resolved.experiment
    model, inputs, outputs = experiment.model, problem.inputs, problem.task.outputs
    makers: dict[str, Callable[[], nn.Module]] = {
        tier: partial(zoo.make_at_depth, name, inputs, outputs, model.norm, resolved.depths[tier])
        for tier, name in resolved.nets.items()
    }
    return TierNets(
        makers,
        inputs=inputs,
        outputs=outputs,
        seed=experiment.seed,
        device=compute_device(experiment),
        channels_last=experiment.train.channels_last,
        initial=_initial(model.init) if model.init else None,
    )


def _initial(path: str) -> Weights:
    try:
        return load_file(Path(path).expanduser())
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            f'model.init = "{path}": expected a safetensors file of the net\'s weights: {error}'
        ) from None


def require_nets_fit(nets: TierNets, resolved: Resolved, problem: Problem) -> None:
    """Raises ModelError unless each tier's net takes the samples and says what the task needs of them."""
    inputs, task = nets.inputs, problem.task
    wanted = (2, inputs.shape[0], nets.outputs) if task.per_step else (2, nets.outputs)
    for tier in resolved.tiers:
        net = nets(tier).eval()
        example = inputs.example(2)
        with torch.no_grad():
            try:
                out = net(example.to(compute_device(resolved.experiment)))
            except (RuntimeError, ValueError, TypeError, IndexError) as error:
                raise ModelError(
                    f"the net of tier {tier!r} does not take samples of shape {inputs.shape}: {error}"
                ) from None
        if not isinstance(out, torch.Tensor) or tuple(out.shape) != wanted:
            got = tuple(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__
            what = (
                "an output for each step"
                if task.per_step
                else "logits"
                if problem.kind == "classification"
                else "outputs"
            )
            raise ModelError(f"the net of tier {tier!r} gives {got} for 2 samples, expected {wanted} {what}")


def make_method(resolved: Resolved, problem: Problem, nets: TierNets) -> Any:
    """The method with its options, its nets and its local training; among peers perhaps behind a relay."""
    relayed = resolved.experiment.engine.relay
    if relayed and not resolved.traits.peers:
        raise ConfigError(
            f"engine.relay = true: {resolved.method_name} has a server of its own; a relay is for methods among peers"
        )
    method = resolved.method(net=nets, fit=make_fit(resolved, problem), **resolved.options)
    return Relay(inner=method) if relayed else method


def make_messages(resolved: Resolved) -> Messages:
    """Trees to frames and back, as ``[wire]`` says."""
    wire = resolved.experiment.wire
    return Messages(
        method=resolved.method_name,
        digest=resolved.digest,
        up=make_channel(wire.up, direction="up"),
        down=make_channel(wire.down, direction="down"),
        seed=resolved.experiment.seed,
    )


def make_runtime(resolved: Resolved, shares: Shares, folder: Path) -> DeviceRuntime:
    """What answers requests for every device of a simulation; local states are kept in ``folder``."""
    problem = problem_of(resolved, shares)
    nets, tests = make_tier_nets(resolved, problem), shares.tests

    def own(device: Device) -> Any:
        held = tests if shares.own is None else shares.own
        assert held is not None, "checked before the run"
        return held[device.id]

    def test(device: Device) -> Any:
        return shares.test if tests is None else tests[device.id]

    return DeviceRuntime(
        method=make_method(resolved, problem, nets),
        messages=make_messages(resolved),
        shard=lambda device: shares.train[device.id],
        public=shares.public,
        test=test,
        own=own,
        store=LocalStateStore(folder),
        seed=resolved.experiment.seed,
        task=problem.task,
        metric=make_metric(resolved, problem),
        domains=_domains(shares),
        compute=compute_device(resolved.experiment),
    )


def _domains(shares: Shares) -> int:
    """How many domains the test data have; 0: they name none."""
    domains = shares.test.domains
    return 0 if domains is None or not domains.numel() else int(domains.max()) + 1


def make_federation(resolved: Resolved, shares: Shares, problem: Problem, method: Any) -> Federation:
    """What the round loop is given."""
    test, evaluate = shares.test, resolved.experiment.evaluate
    empty = nothing(problem.task, test, make_metric(resolved, problem))
    domains = {str(domain): empty for domain in range(_domains(shares))}
    return Federation(
        method=method,
        fleet=make_fleet(resolved),
        messages=make_messages(resolved),
        held=shares.held,
        public=shares.public,
        seed=resolved.experiment.seed,
        task=problem.task,
        score_spec=score_spec({"all": empty, "domains": domains}),
        test_samples=len(test),
        depths=resolved.depths,
        evaluate_every=evaluate.every,
        evaluate_samples=evaluate.samples,
        evaluate_on=("common", "own") if evaluate.on == "both" else (evaluate.on,),
    )
