"""From a resolved experiment to what runs: the method, the fleet, the letters, the course and a device's side.

A worker process, a real device and the server all build from the same resolved experiment.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from potluck.core.errors import ConfigError, ModelError
from potluck.core.types import Device, NetChoice, Setup
from potluck.data.shard import Shares, share_out
from potluck.data.sources import load
from potluck.data.spec import column_of
from potluck.engines.course import Course
from potluck.engines.device import DeviceSide, OwnStore
from potluck.engines.relay import Relay
from potluck.engines.seam import Letters
from potluck.experiment.config import Experiment
from potluck.experiment.resolve import config_digest, method_name, option_marks, option_values
from potluck.fleet.cohort import Fleet
from potluck.fleet.devices import make_devices
from potluck.methods import METHODS
from potluck.models import zoo
from potluck.models.fit import Fit, Metric, cross_entropy, right
from potluck.models.nets import Nets, Weights
from potluck.wire.channel import codec_names, make_channel

BUILT_IN: Mapping[str, Callable[..., Any]] = {"cross_entropy": cross_entropy, "accuracy": right}


def make_shares(experiment: Experiment) -> Shares:
    """Everybody's data. Raises DataError or ConfigError."""
    data = experiment.data
    dataset = load(data.source, column=column_of(data.partition))
    return share_out(
        dataset,
        data.partition,
        devices=sum(tier.devices for tier in experiment.fleet.tier),
        seed=experiment.seed,
        public=data.public,
        server_samples=data.server_samples,
        normalise=data.normalise,
        limit=data.limit,
    )


def make_fleet(experiment: Experiment) -> Fleet:
    """All devices, and who takes part."""
    tiers = experiment.fleet.tier
    return Fleet(
        devices=make_devices([tier.plain() for tier in tiers]),
        availability={tier.name: tier.availability for tier in tiers},
        participation=experiment.fleet.participation,
        deadline_s=experiment.fleet.deadline_s,
        seed=experiment.seed,
    )


def compute_device(experiment: Experiment) -> str:
    """``cpu`` or ``cuda``, as ``[engine] device`` says."""
    wanted = experiment.engine.device
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError('engine.device = "cuda": torch sees no GPU here; choose "cpu" or "auto"')
    return wanted


def make_fit(experiment: Experiment) -> Fit:
    """Local training as ``[train]`` says."""
    train = experiment.train
    epochs = train.epochs
    assert isinstance(epochs, dict), "the experiment is resolved"
    return Fit(
        optimiser=train.optimiser,
        lr=train.lr,
        momentum=train.momentum,
        weight_decay=train.weight_decay,
        epochs=epochs,
        batch_size=train.batch_size,
        schedule=train.schedule,
        milestones=tuple(train.milestones),
        gamma=train.gamma,
        schedule_rounds=train.schedule_rounds,
        clip_norm=train.clip_norm,
        channels_last=train.channels_last,
        bf16=train.bf16,
        augment=experiment.data.augment,
        loss=named("train.loss", train.loss),
        device=compute_device(experiment),
    )


def named(key: str, name: str) -> Callable[..., Any]:
    """A built-in function by name, or one's own by ``package.module:function``."""
    if name in BUILT_IN:
        return BUILT_IN[name]
    module, colon, function = name.partition(":")
    if not colon:
        raise ConfigError(f'{key} = "{name}": expected {" or ".join(BUILT_IN)}, or "package.module:function"')
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # whatever a module of the user's own raises
        raise ConfigError(
            f'{key} = "{name}": {error}; run from the folder that holds the module, or install it'
        ) from None
    if not callable(found):
        raise ConfigError(f'{key} = "{name}": a {type(found).__name__}, expected a function')
    return found  # type: ignore[no-any-return]


def make_nets(experiment: Experiment, shape: tuple[int, ...], classes: int) -> Nets:
    """The net of each tier, tried once so that a net that does not fit is refused now. Raises ModelError."""
    model, options = experiment.model, option_values(experiment)
    chosen: Mapping[str, str] = {}
    for option, mark in option_marks(method_name(experiment)).items():
        if isinstance(mark, NetChoice) and options[option] is not None:
            chosen = options[option]
    makers: dict[str, Callable[[], nn.Module]] = {}
    for tier in experiment.fleet.tier:
        name, steps = chosen.get(tier.name, model.name), depth(experiment, tier.name)
        makers[tier.name] = partial(zoo.make_at_depth, name, shape, classes, model.norm, steps)
    return Nets(
        makers,
        shape=shape,
        classes=classes,
        seed=experiment.seed,
        device=compute_device(experiment),
        channels_last=experiment.train.channels_last,
        initial=_initial(model.init) if model.init else None,
    )


def depth(experiment: Experiment, tier: str) -> int:
    """What ``[model] steps`` says for a tier; 0: the net's own depth."""
    steps = experiment.model.steps
    return steps[tier] if isinstance(steps, dict) else steps


def _initial(path: str) -> Weights:
    try:
        return load_file(Path(path).expanduser())
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            f'model.init = "{path}": expected a safetensors file of the net\'s weights: {error}'
        ) from None


def demand_nets_fit(nets: Nets, experiment: Experiment, shape: tuple[int, ...], classes: int) -> None:
    """Raises ModelError unless each tier's net takes the samples and gives a logit per class."""
    for tier in experiment.fleet.tier:
        net = nets(tier.name).eval()
        with torch.no_grad():
            try:
                out = net(torch.zeros((2, *shape), device=compute_device(experiment)))
            except (RuntimeError, ValueError, TypeError, IndexError) as error:
                raise ModelError(
                    f"the net of tier {tier.name!r} does not take samples of shape {shape}: {error}"
                ) from None
        if not isinstance(out, torch.Tensor) or tuple(out.shape) != (2, classes):
            got = tuple(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__
            raise ModelError(f"the net of tier {tier.name!r} gives {got} for 2 samples, expected (2, {classes}) logits")


def make_method(experiment: Experiment, nets: Nets) -> Any:
    """The method with its options, its nets and its local training."""
    name = method_name(experiment)
    method = METHODS[name](net=nets, fit=make_fit(experiment), **option_values(experiment))
    if experiment.engine.relay and not method.traits.peers:
        raise ConfigError(f"engine.relay = true: {name} has a server of its own; a relay is for methods among peers")
    return Relay(inner=method) if experiment.engine.relay else method


def make_letters(experiment: Experiment) -> Letters:
    """Trees to frames and back, as ``[wire]`` says."""
    return Letters(
        method=method_name(experiment),
        digest=config_digest(experiment),
        up=make_channel(experiment.wire.up, direction="up"),
        down=make_channel(experiment.wire.down, direction="down"),
        seed=experiment.seed,
    )


def make_side(experiment: Experiment, shares: Shares, own: Path) -> DeviceSide:
    """What answers orders for every device of a simulation."""
    nets = make_nets(experiment, shares.test.shape, shares.test.classes)
    tests = shares.tests

    def test(device: Device) -> Any:
        return shares.test if tests is None else tests[device.id]

    return DeviceSide(
        method=make_method(experiment, nets),
        letters=make_letters(experiment),
        shard=lambda device: shares.train[device.id],
        public=shares.public,
        test=test,
        store=OwnStore(own),
        seed=experiment.seed,
        metric=make_metric(experiment),
        compute=compute_device(experiment),
    )


def make_metric(experiment: Experiment) -> Metric:
    """The metric of ``[evaluate]``: (logits, labels) -> a number per sample; its mean is reported."""
    return named("evaluate.metric", experiment.evaluate.metric)


def make_course(experiment: Experiment, shares: Shares, method: Any) -> Course:
    """What the round loop is given."""
    test = shares.test
    return Course(
        method=method,
        fleet=make_fleet(experiment),
        letters=make_letters(experiment),
        held=shares.held,
        public=shares.public,
        seed=experiment.seed,
        classes=test.classes,
        domains=0 if test.domains is None else int(test.domains.max()) + 1,
        test_samples=len(test),
        shares=experiment.evaluate.metric in BUILT_IN,
        depths={tier.name: depth(experiment, tier.name) for tier in experiment.fleet.tier},
        evaluate_every=experiment.evaluate.every,
        evaluate_samples=experiment.evaluate.samples,
    )


def check(experiment: Experiment, shares: Shares, given: Mapping[str, Any]) -> list[str]:
    """Everything that can be refused before a run, refused; the warnings of what is doubtful.

    ``given``: the options of ``[method]`` that a person set.
    """
    shape, classes = shares.test.shape, shares.test.classes
    if experiment.data.augment != "none" and len(shape) != 3:
        raise ConfigError(
            f'data.augment = "{experiment.data.augment}": needs images, the samples are rows of {shape[0]}'
        )
    name = method_name(experiment)
    if experiment.model.steps and METHODS[name].traits.kind != "any":
        raise ConfigError(f"model.steps: {name} sets the depth itself; say method.steps")
    nets = make_nets(experiment, shape, classes)
    demand_nets_fit(nets, experiment, shape, classes)
    method = make_method(experiment, nets)
    setup = Setup(
        devices=make_fleet(experiment).devices,
        tiers=[tier.name for tier in experiment.fleet.tier],
        shape=shape,
        classes=classes,
        public_samples=0 if shares.public is None else len(shares.public),
        server_samples=0 if shares.held is None else len(shares.held),
        up_codecs=codec_names(experiment.wire.up),
        down_codecs=codec_names(experiment.wire.down),
        rounds=experiment.rounds,
        given=given,
    )
    make_letters(experiment)
    make_metric(experiment)
    if "topk" in setup.up_codecs and "send" not in option_values(experiment):
        raise ConfigError(
            f"wire.up holds topk, and {name} forbids it: it drops most entries, which only the "
            'updates of a method with send = "update" survive; choose float16, bfloat16, int8 or zstd'
        )
    return list(method.check(setup))
