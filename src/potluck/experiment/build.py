"""From a resolved experiment to what runs: the data, the method, the fleet, the messages, a device's runtime.

A worker process, a real device and the server all build from the same value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from potluck.core.errors import ConfigError, ModelError
from potluck.core.plugins import own_object
from potluck.core.types import Device
from potluck.data.partition.rules import column_of
from potluck.data.shares import Shares, share_out
from potluck.data.sources import load
from potluck.engines.device import DeviceRuntime
from potluck.engines.federation import Federation
from potluck.engines.local_state import LocalStateStore
from potluck.engines.relay import Relay
from potluck.experiment.config import Experiment
from potluck.experiment.resolve import Resolved
from potluck.fleet.cohort import Fleet
from potluck.fleet.devices import make_devices
from potluck.nets import zoo
from potluck.nets.tier_nets import TierNets
from potluck.nets.weights import Weights
from potluck.training.evaluate import Metric, accuracy
from potluck.training.fit import Fit, cross_entropy
from potluck.wire.channel import make_channel
from potluck.wire.messages import Messages

BUILT_IN: Mapping[str, Callable[..., Any]] = {"cross_entropy": cross_entropy, "accuracy": accuracy}


def make_shares(resolved: Resolved) -> Shares:
    """Everybody's data. Raises DataError or ConfigError."""
    data = resolved.experiment.data
    dataset = load(data.source, column=column_of(data.partition))
    return share_out(
        dataset,
        data.partition,
        devices=resolved.devices,
        seed=resolved.experiment.seed,
        public=data.public,
        server_samples=data.server_samples,
        normalise=data.normalise,
        limit=data.limit,
    )


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


def make_fit(resolved: Resolved) -> Fit:
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
        loss=_function("train.loss", train.loss),
        device=compute_device(resolved.experiment),
    )


def make_metric(resolved: Resolved) -> Metric:
    """The metric of ``[evaluate]``: (logits, labels) -> a number per sample; its mean is reported."""
    return _function("evaluate.metric", resolved.experiment.evaluate.metric)


def _function(key: str, name: str) -> Callable[..., Any]:
    """A built-in function by name, or one's own by ``package.module:function``."""
    if name in BUILT_IN:
        return BUILT_IN[name]
    if ":" not in name:
        raise ConfigError(f'{key} = "{name}": expected {" or ".join(BUILT_IN)}, or "package.module:function"')
    found = own_object(f'{key} = "{name}"', name)
    if not callable(found):
        raise ConfigError(f'{key} = "{name}": a {type(found).__name__}, expected a function')
    return found  # type: ignore[no-any-return]


def make_tier_nets(resolved: Resolved, shape: tuple[int, ...], classes: int) -> TierNets:
    """The net of each tier. Raises ConfigError for initial weights that cannot be read."""
    experiment = resolved.experiment
    model = experiment.model
    makers: dict[str, Callable[[], nn.Module]] = {
        tier: partial(zoo.make_at_depth, name, shape, classes, model.norm, resolved.depths[tier])
        for tier, name in resolved.nets.items()
    }
    return TierNets(
        makers,
        shape=shape,
        classes=classes,
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


def require_nets_fit(nets: TierNets, resolved: Resolved) -> None:
    """Raises ModelError unless each tier's net takes the samples and gives a logit per class."""
    shape, classes = nets.shape, nets.classes
    for tier in resolved.tiers:
        net = nets(tier).eval()
        with torch.no_grad():
            try:
                out = net(torch.zeros((2, *shape), device=compute_device(resolved.experiment)))
            except (RuntimeError, ValueError, TypeError, IndexError) as error:
                raise ModelError(f"the net of tier {tier!r} does not take samples of shape {shape}: {error}") from None
        if not isinstance(out, torch.Tensor) or tuple(out.shape) != (2, classes):
            got = tuple(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__
            raise ModelError(f"the net of tier {tier!r} gives {got} for 2 samples, expected (2, {classes}) logits")


def make_method(resolved: Resolved, nets: TierNets) -> Any:
    """The method with its options, its nets and its local training; among peers perhaps behind a relay."""
    relayed = resolved.experiment.engine.relay
    if relayed and not resolved.traits.peers:
        raise ConfigError(
            f"engine.relay = true: {resolved.method_name} has a server of its own; a relay is for methods among peers"
        )
    method = resolved.method(net=nets, fit=make_fit(resolved), **resolved.options)
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
    nets = make_tier_nets(resolved, shares.test.shape, shares.test.classes)
    tests = shares.tests

    def test(device: Device) -> Any:
        return shares.test if tests is None else tests[device.id]

    return DeviceRuntime(
        method=make_method(resolved, nets),
        messages=make_messages(resolved),
        shard=lambda device: shares.train[device.id],
        public=shares.public,
        test=test,
        store=LocalStateStore(folder),
        seed=resolved.experiment.seed,
        metric=make_metric(resolved),
        compute=compute_device(resolved.experiment),
    )


def make_federation(resolved: Resolved, shares: Shares, method: Any) -> Federation:
    """What the round loop is given."""
    test, evaluate = shares.test, resolved.experiment.evaluate
    return Federation(
        method=method,
        fleet=make_fleet(resolved),
        messages=make_messages(resolved),
        held=shares.held,
        public=shares.public,
        seed=resolved.experiment.seed,
        classes=test.classes,
        domains=0 if test.domains is None else int(test.domains.max()) + 1,
        test_samples=len(test),
        shares=evaluate.metric in BUILT_IN,
        depths=resolved.depths,
        evaluate_every=evaluate.every,
        evaluate_samples=evaluate.samples,
    )
