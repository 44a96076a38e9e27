"""Nets whose stages are ODE blocks: one block z' = f(z, t), applied for as many steps as a device can afford.

    odenet-cifar-like    conv3×3 16 → ODE 16 → residual 16→32 s2 → ODE 32 → residual 32→64 s2 → ODE 64 → pool → fc
    odenet-34-lite-like  conv3×3 64 → ODE 64 → conv1×1 s2 → ODE 128 → conv1×1 s2 → ODE 256 → pool → fc
    odenet-xs-like       conv3×3 32 s2 → ODE 32 → pool → fc

For a series a convolution goes along its steps; of rows, which have no place to go along, it is a linear layer.

The number of steps, the method and the kind of step are set on an existing net and are no part of its state dict, so
that the weights of every device are mergeable. Only learned step lengths are parameters: one vector a stage.
``-like``: the layouts follow the earlier ODENets of the same laboratory (arXiv 2012.15465); the paper's own are not
known to us.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from potluck.core.errors import ModelError
from potluck.nets.net import Net, by_shape
from potluck.nets.norms import make_norm
from potluck.solvers.ode import EVALUATIONS, METHODS, Number, odeint
from potluck.solvers.options import MOST_STEPS

WIDTHS = {
    "odenet-cifar-like": (16, 32, 64),
    "odenet-34-lite-like": (64, 128, 256),
    "odenet-xs-like": (32,),
}
ODENETS = tuple(WIDTHS)
ODE_NORMS = ("group", "batch", "none")
STEPS = ("unit_time", "unit_step", "learned")
LEAST_SIDE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class OdeDepth:
    """How a stage is integrated: ``steps`` steps of ``method``; ``step`` is the kind of step.

    ``unit_time``: h = 1/steps, so that all step counts discretise one equation; ``unit_step``: h = 1, a weight-tied
    residual net; ``learned``: a length for each step. ``checkpoint`` recomputes each step in the backward pass.
    """

    steps: int = 1
    method: str = "euler"
    step: str = "unit_time"
    checkpoint: bool = False


class OdeBlock(nn.Module):
    """f(z, t): conv–norm–relu–conv–norm, without a shortcut of its own; z and f are (B, C, H, W).

    ``dims`` are those behind the channels: two of images, one of series (B, C, S), none of rows (B, C). With
    ``time_channel`` both convolutions see t as one more, constant, input channel.
    """

    def __init__(self, channels: int, norm: str, *, time_channel: bool, dims: int = 2) -> None:
        super().__init__()
        self.time_channel = time_channel
        self.dims = dims
        self.conv1 = _conv(channels + time_channel, channels, dims=dims)
        self.norm1 = make_norm(norm, channels, dims)
        self.conv2 = _conv(channels + time_channel, channels, dims=dims)
        self.norm2 = make_norm(norm, channels, dims)

    def forward(self, z_BCHW: Tensor, t: Number) -> Tensor:
        inner_BCHW = F.relu(self.norm1(self.conv1(self._with_time(z_BCHW, t))), inplace=True)
        out_BCHW: Tensor = self.norm2(self.conv2(self._with_time(inner_BCHW, t)))
        return out_BCHW

    def _with_time(self, z_BCHW: Tensor, t: Number) -> Tensor:
        if not self.time_channel:
            return z_BCHW
        # A learned t is a tensor and keeps its gradient.
        return torch.cat([z_BCHW, torch.ones_like(z_BCHW[:, :1]) * t], dim=1)


class OdeStage(nn.Module):
    """The block, integrated from t = 0 by its ``depth``. The shape stays."""

    h: nn.Parameter | None

    def __init__(self, channels: int, norm: str, *, time_channel: bool, dims: int = 2) -> None:
        super().__init__()
        self.block = OdeBlock(channels, norm, time_channel=time_channel, dims=dims)
        self.depth = OdeDepth()
        self.register_parameter("h", None)

    def forward(self, z_BCHW: Tensor) -> Tensor:
        depth = self.depth
        h: Number = 1.0 if depth.step == "unit_step" else 1.0 / depth.steps
        return odeint(
            self.block,
            z_BCHW,
            steps=depth.steps,
            method=depth.method,
            h=h if self.h is None else self.h,
            checkpoint=depth.checkpoint,
        )


class Downsampling(nn.Module):
    """A residual block of stride 2 to ``wider`` channels; its shortcut drops pixels and appends channels of zeros."""

    def __init__(self, channels: int, wider: int, norm: str, dims: int = 2) -> None:
        super().__init__()
        self.wider, self.dims = wider, dims
        self.conv1 = _conv(channels, wider, stride=2, dims=dims)
        self.norm1 = make_norm(norm, wider, dims)
        self.conv2 = _conv(wider, wider, dims=dims)
        self.norm2 = make_norm(norm, wider, dims)

    def forward(self, z_BCHW: Tensor) -> Tensor:
        inner_BCHW = F.relu(self.norm1(self.conv1(z_BCHW)), inplace=True)
        every_other = z_BCHW[(slice(None), slice(None), *[slice(None, None, 2)] * self.dims)]
        short_BCHW = F.pad(every_other, (*[0, 0] * self.dims, 0, inner_BCHW.shape[1] - z_BCHW.shape[1]))
        return F.relu(short_BCHW + self.norm2(self.conv2(inner_BCHW)), inplace=True)


class OdeNet(nn.Module):
    """Logits (B, classes) of images (B, C, H, W), series (B, S, C) or rows (B, C)."""

    def __init__(self, name: str, trunk: OrderedDict[str, nn.Module], channels: int, classes: int) -> None:
        super().__init__()
        self.name = name
        self.trunk = nn.Sequential(trunk)
        self.head = nn.Linear(channels, classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        z_BCHW = self.trunk(channels_first(x_BCHW))
        if z_BCHW.dim() == 4:
            z_BCHW = F.adaptive_avg_pool2d(z_BCHW, 1).flatten(1)
        elif z_BCHW.dim() == 3:
            z_BCHW = z_BCHW.mean(dim=2)
        logits_BN: Tensor = self.head(z_BCHW)
        return logits_BN


def channels_first(x: Tensor) -> Tensor:
    """Series (B, S, C) as (B, C, S); images and rows as they are."""
    return x.transpose(1, 2) if x.dim() == 3 else x


def make_odenet(
    name: str, shape: Sequence[int], classes: int, norm: str = "group", *, time_channel: bool = False
) -> OdeNet:
    """The preset ``name`` for images of ``shape`` = (channels, height, width), 8×8 or larger, series or rows.

    One Euler step a stage.

    Raises ModelError for an unknown preset or norm, or a shape that does not fit.
    """
    _require_preset(name, shape, norm)
    widths, dims = WIDTHS[name], len(shape) - 1
    channels, stride = shape[1] if dims == 1 else shape[0], 2 if name == "odenet-xs-like" else 1
    trunk: OrderedDict[str, nn.Module] = OrderedDict()
    first = _conv(channels, widths[0], stride, dims=dims)
    trunk["stem"] = nn.Sequential(first, make_norm(norm, widths[0], dims), nn.ReLU(inplace=True))
    for i, width in enumerate(widths):
        if i:
            trunk[f"down{i}"] = _transition(name, widths[i - 1], width, norm, dims)
        trunk[f"ode{i + 1}"] = OdeStage(width, norm, time_channel=time_channel, dims=dims)
    return OdeNet(name, trunk, widths[-1], classes)


def _require_preset(name: str, shape: Sequence[int], norm: str) -> None:
    if name not in ODENETS:
        raise ModelError(f'model.name = "{name}": expected one of {", ".join(ODENETS)}.')
    require_room(name, shape)
    if norm not in ODE_NORMS:
        raise ModelError(f'model.norm = "{norm}": {name} expects one of {", ".join(ODE_NORMS)}.')


def require_room(name: str, shape: Sequence[int]) -> None:
    """Raises ModelError for images below 8x8, or series of less than 8 steps."""
    if len(shape) == 3 and min(shape[1:]) < LEAST_SIDE:
        raise ModelError(
            f"{name}: input of shape {tuple(shape)}: expected (channels, height, width) of at least 8x8; "
            "enlarge or pad the images."
        )
    if len(shape) == 2 and shape[0] < LEAST_SIDE:
        raise ModelError(f"{name}: series of {shape[0]} steps: expected at least {LEAST_SIDE}; pad them.")


def _transition(name: str, channels: int, wider: int, norm: str, dims: int) -> nn.Module:
    if name == "odenet-cifar-like":
        return Downsampling(channels, wider, norm, dims)
    pointwise = _conv(channels, wider, 2, kernel=1, dims=dims)
    return nn.Sequential(pointwise, make_norm(norm, wider, dims), nn.ReLU(inplace=True))


def _conv(channels: int, out: int, stride: int = 1, *, kernel: int = 3, dims: int = 2) -> nn.Module:
    """A convolution along so many dimensions, without bias; along none, a linear layer."""
    if dims == 0:
        return nn.Linear(channels, out, bias=False)
    kind = nn.Conv2d if dims == 2 else nn.Conv1d
    return kind(channels, out, kernel, stride=stride, padding=kernel // 2, bias=False)


def set_depth(
    net: nn.Module,
    steps: int | Sequence[int],
    *,
    method: str = "euler",
    step: str = "unit_time",
    checkpoint: bool = False,
    key: str = "steps",
) -> None:
    """Sets how every ODE stage of ``net`` is integrated, in place; ``steps`` may be a list with one entry a stage.

    With ``step="learned"`` each stage gets a fresh parameter ``h`` of 1/steps each; otherwise it has none. Raises
    ModelError for values out of range (naming ``key``), and for ``checkpoint`` with BatchNorm.
    """
    stages = _stages(net)
    counts = [steps] * len(stages) if isinstance(steps, int) else list(steps)
    _require_depth(net, counts, len(stages), method, step, key)
    if checkpoint and any(isinstance(module, _BatchNorm) for stage in stages for module in stage.modules()):
        raise ModelError(
            'checkpoint = true with model.norm = "batch": evaluating a block again would count its batch statistics '
            'twice; use norm = "group", or leave out checkpoint.'
        )
    for stage, count in zip(stages, counts, strict=True):
        stage.depth = OdeDepth(steps=count, method=method, step=step, checkpoint=checkpoint)
        weight = next(stage.block.parameters())
        stage.h = nn.Parameter(weight.new_full((count,), 1.0 / count)) if step == "learned" else None


def _require_depth(net: nn.Module, counts: Sequence[int], stages: int, method: str, step: str, key: str) -> None:
    if not stages:
        raise ModelError(
            f"a net of kind {type(net).__name__} has no ODE stage: expected one of {', '.join(ODENETS)}, "
            "or a net of your own whose stages are potluck.nets.odenet.OdeStage."
        )
    if len(counts) != stages:
        name = net.name if isinstance(net, OdeNet) else type(net).__name__
        raise ModelError(f'{key} has {len(counts)} entries, model "{name}" has {stages} ODE stages.')
    for count in counts:
        if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MOST_STEPS:
            raise ModelError(f"{key} = {count!r}: expected an integer from 1 to {MOST_STEPS}.")
    if method not in METHODS:
        raise ModelError(f'solver = "{method}": expected one of {", ".join(METHODS)}.')
    if step not in STEPS:
        raise ModelError(f'step = "{step}": expected one of {", ".join(STEPS)}.')


def add_time_channel(net: nn.Module) -> None:
    """Makes both convolutions of every ODE block see t as one more input channel, in place; they are drawn anew."""
    for block in (stage.block for stage in _stages(net)):
        if not block.time_channel:
            weight = block.conv1.get_parameter("weight")
            out, inputs = weight.shape[:2]
            block.conv1, block.conv2 = (_conv(inputs + 1, out, dims=block.dims) for _ in range(2))
            block.time_channel = True


def evaluations(net: nn.Module) -> int:
    """How many evaluations of ODE blocks one forward pass makes."""
    return sum(stage.depth.steps * EVALUATIONS[stage.depth.method] for stage in _stages(net))


def has_batch_norm(net: nn.Module) -> bool:
    """Whether a layer of the net normalises by batch statistics."""
    return any(isinstance(module, _BatchNorm) for module in net.modules())


def _stages(net: nn.Module) -> list[OdeStage]:
    return [module for module in net.modules() if isinstance(module, OdeStage)]


def ode_stages(net: nn.Module) -> int:
    """How many ODE stages the net has."""
    return len(_stages(net))


def norm_names(net: nn.Module) -> frozenset[str]:
    """The names in ``net.state_dict()`` that belong to normalisation layers, running statistics included."""
    return frozenset(
        f"{prefix}.{name}"
        for prefix, module in net.named_modules()
        if isinstance(module, nn.GroupNorm | _BatchNorm)
        for name in module.state_dict()
    )


def step_names(net: nn.Module) -> frozenset[str]:
    """The names in ``net.state_dict()`` of learned step lengths: one a stage, none unless ``step="learned"``."""
    return frozenset(
        f"{prefix}.h" for prefix, stage in net.named_modules() if isinstance(stage, OdeStage) and stage.h is not None
    )


def group_names(net: nn.Module) -> frozenset[str]:
    """The names in ``net.state_dict()`` that suit one step count only: those of norms and of learned step lengths."""
    return norm_names(net) | step_names(net)


def _set_steps(net: nn.Module, steps: int) -> None:
    set_depth(net, steps, key="model.steps")


NETS = {
    name: Net(
        line=line,
        make=by_shape(partial(make_odenet, name)),
        kind="ode",
        inputs=("images", "series", "rows"),
        set_depth=_set_steps,
    )
    for name, line in {
        "odenet-cifar-like": "three ODE stages, widths 16/32/64; 167,834 parameters",
        "odenet-34-lite-like": "three ODE stages, widths 64/128/256; 1,596,234 parameters",
        "odenet-xs-like": "one ODE stage, width 32; 19,818 parameters",
    }.items()
}
