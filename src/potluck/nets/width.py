"""Width slices: a narrower net that holds the first channels of every hidden layer of a full one.

Diao, Ding, Tarokh, *HeteroFL*, 2021, arXiv 2010.01264. At rate p a layer keeps its first ⌈p·O⌉ outputs; the last layer
keeps all, and the first reads the whole image. In a net with GroupNorm a width is rounded up to a multiple of 4 (at
most O), so that no group is cut; else it is exact.

Nothing is known of the net beforehand. It runs once, and each layer is cut just before it runs, its inputs to what
arrives. So a flattened image, a shortcut without parameters or a weight-tied block needs no rule of its own: a slice is
always "the first so many" along each axis. Whether that is right is then proved on a sample: the narrow net must see
what the full net sees with everything outside the slice set to zero. A net that fails, for instance because it
concatenates channels, is an error that names the layer and the rate.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from potluck.core import meter
from potluck.core.errors import ModelError
from potluck.core.mean import IndexMap
from potluck.core.types import Inputs
from potluck.nets.norms import GROUP_CHANNELS, ROW_CHANNELS
from potluck.nets.recurrent import GATES, Gru

Sliced = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Embedding
"""Layers that have a slice; a ``Gru`` is two linear ones."""
Normalising = nn.GroupNorm | _BatchNorm
See = Callable[[str, nn.Module, Tensor], None]
TOLERANCE = 1e-3


def index_map(full: Mapping[str, Tensor], part: Mapping[str, Tensor]) -> IndexMap:
    """Which block of each full tensor the narrow net holds, from the shapes. ModelError unless the names agree."""
    if full.keys() != part.keys():
        odd = ", ".join(sorted(full.keys() ^ part.keys())[:4])
        raise ModelError(f"the narrow and the full net differ in their tensors: {odd}")
    for name, value in part.items():
        wide = full[name].shape
        if value.dim() != len(wide) or any(here > there for here, there in zip(value.shape, wide, strict=True)):
            raise ModelError(f"{name}: {tuple(value.shape)} is no slice of {tuple(wide)}")
    return {name: tuple(slice(0, size) for size in value.shape) for name, value in part.items()}


def slice_weights(full: Mapping[str, Tensor], index: IndexMap) -> dict[str, Tensor]:
    """The held blocks of the full tensors, copied."""
    return {name: full[name][held].clone(memory_format=torch.contiguous_format) for name, held in index.items()}


def embed(part: Mapping[str, Tensor], full: Mapping[str, Tensor], index: IndexMap) -> dict[str, Tensor]:
    """A copy of ``full`` with the held blocks replaced by those of ``part``."""
    whole = {name: value.clone() for name, value in full.items()}
    for name, held in index.items():
        whole[name][held] = part[name]
    return whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaler:
    """A forward hook that divides a layer's output by the rate, in training only, so that widths agree in scale."""

    rate: float

    def __call__(self, layer: nn.Module, _inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        return output / self.rate if layer.training else output


def narrow(net: nn.Module, rate: float, inputs: Inputs, *, scaler: bool = False) -> nn.Module:
    """A copy of ``net`` at width ``rate``, 0 < rate <= 1, holding the first channels of every hidden layer.

    ``inputs`` are what it is given. With ``scaler``, every convolution and linear layer but the last has a ``Scaler``.
    ModelError, naming layer and rate, if the net cannot be sliced.
    """
    if not 0 < rate <= 1:
        raise ModelError(f"method.width = {rate}: expected 0 < width <= 1")
    made, whole = copy.deepcopy(net), copy.deepcopy(net)
    if rate == 1:
        return made
    x_B = _sample(net, inputs)
    weighted: dict[str, nn.Module] = {}

    def order(name: str, layer: nn.Module, _: Tensor) -> None:
        if isinstance(layer, Sliced):
            weighted.setdefault(name, layer)

    _run(whole, x_B, order, rate)
    if not weighted:
        raise ModelError(f"method.width = {rate}: {type(net).__name__} has no convolution or linear layer to slice")
    _require_known(net, rate)
    last = [*weighted][-1]
    seen, output_B = _slice(made, x_B, rate, last)
    if _size(made) == _size(net):
        raise ModelError(
            f"method.width = {rate}: nothing of {type(net).__name__} can be made narrower "
            f"({', '.join(weighted)}): choose "
            "another net or method"
        )
    _prove(whole, made, x_B, rate, seen=seen, output_B=output_B)
    if scaler:
        for name, layer in weighted.items():
            if name != last and not isinstance(layer, nn.Embedding):
                made.get_submodule(name).register_forward_hook(Scaler(rate=rate))
    return made


def _require_known(net: nn.Module, rate: float) -> None:
    """Raises ModelError for a layer of torch that holds weights and has no slice: it would stay whole."""
    for name, layer in net.named_modules():
        whole = bool(layer._parameters) and not isinstance(layer, Sliced | Normalising)
        if whole and type(layer).__module__.startswith("torch.nn."):
            raise ModelError(f"{_where(net, name, rate)}: there is no slice of a {type(layer).__name__}")


def _size(net: nn.Module) -> int:
    return sum(weight.numel() for weight in net.parameters())


def _sample(net: nn.Module, inputs: Inputs) -> Tensor:
    """Two samples, because a norm without running statistics refuses one of a single pixel."""
    x_B = inputs.example(2)
    like = next(net.parameters(), x_B)
    return x_B.to(like.device, like.dtype if x_B.is_floating_point() else None)


def _run(net: nn.Module, x_B: Tensor, see: See, rate: float) -> Tensor:
    """``net(x)`` in eval mode, with ``see(name, layer, input)`` called before each layer that holds tensors itself."""
    now = [""]

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def before(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
            now[0] = name
            see(name, layer, inputs[0])

        return before

    layers = {name: layer for name, layer in net.named_modules() if layer._parameters or layer._buffers}
    handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in layers.items()]
    modes = {module: module.training for module in net.modules()}
    try:
        with torch.no_grad(), meter.metering():
            return cast(Tensor, net.eval()(x_B))
    except ModelError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f'{_where(net, now[0], rate)}: after it the widths no longer fit ("{reason}")') from error
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode


def _where(net: nn.Module, name: str, rate: float) -> str:
    return f'method.width = {rate}: {type(net).__name__} cannot be sliced at layer "{name}"'


def _slice(made: nn.Module, x_B: Tensor, rate: float, last: str) -> tuple[dict[str, Tensor], Tensor]:
    """Cuts the layers of ``made`` as they run. Returns the first input of each, and the output of the net."""
    groups = [one for one in made.modules() if isinstance(one, nn.GroupNorm)]
    rows = any(one.num_channels // one.num_groups == ROW_CHANNELS for one in groups)
    group = (ROW_CHANNELS if rows else GROUP_CHANNELS) if groups else 1
    gates = {f"{name}.{part}" for name, one in made.named_modules() if isinstance(one, Gru) for part in one._modules}
    seen: dict[str, Tensor] = {}

    def cut(name: str, layer: nn.Module, input_B: Tensor) -> None:
        if name in seen:
            return
        seen[name] = input_B.clone()
        unit = GATES if name in gates else group
        if isinstance(layer, nn.Embedding):
            _cut_embedding(layer, layer.embedding_dim if name == last else _width(layer.embedding_dim, rate, unit))
        elif isinstance(layer, nn.Conv1d | nn.Conv2d):
            if layer.groups > 1:
                raise ModelError(f"{_where(made, name, rate)}: a grouped convolution has no slice")
            outputs = layer.out_channels if name == last else _width(layer.out_channels, rate, unit)
            _cut_conv(layer, input_B.shape[1], outputs)
        elif isinstance(layer, nn.Linear):
            outputs = layer.out_features if name == last else _width(layer.out_features, rate, unit)
            _cut_linear(layer, input_B.shape[-1], outputs)
        elif isinstance(layer, nn.GroupNorm):
            channels, held = input_B.shape[1], layer.num_channels // layer.num_groups
            if channels % held:
                raise ModelError(
                    f"{_where(made, name, rate)}: {channels} channels would cut one of its groups of {held}"
                )
            _cut_group_norm(layer, channels)
        elif isinstance(layer, _BatchNorm):
            _cut_batch_norm(layer, input_B.shape[1])

    output_B = _run(made, x_B, cut, rate)
    for name, layer in made.named_modules():
        if isinstance(layer, Sliced | nn.GroupNorm | _BatchNorm) and name not in seen:
            raise ModelError(f"{_where(made, name, rate)}: the forward pass does not reach it, so its width is unknown")
    return seen, output_B


def _width(outputs: int, rate: float, unit: int) -> int:
    kept = math.ceil(rate * outputs - 1e-9)  # 0.28 * 25 is a little more than 7
    return min(outputs, -(-kept // unit) * unit)


def _cut_embedding(layer: nn.Embedding, wide: int) -> None:
    layer.weight = _first(layer.weight, layer.num_embeddings, wide)
    layer.embedding_dim = wide


def _cut_conv(layer: nn.Conv1d | nn.Conv2d, inputs: int, outputs: int) -> None:
    layer.weight = _first(layer.weight, outputs, inputs)
    layer.bias = None if layer.bias is None else _first(layer.bias, outputs)
    layer.in_channels, layer.out_channels = inputs, outputs


def _cut_linear(layer: nn.Linear, inputs: int, outputs: int) -> None:
    layer.weight = _first(layer.weight, outputs, inputs)
    layer.bias = None if layer.bias is None else _first(layer.bias, outputs)
    layer.in_features, layer.out_features = inputs, outputs


def _cut_group_norm(layer: nn.GroupNorm, channels: int) -> None:
    layer.num_groups = channels * layer.num_groups // layer.num_channels
    layer.num_channels = channels
    if layer.affine:
        layer.weight, layer.bias = _first(layer.weight, channels), _first(layer.bias, channels)


def _cut_batch_norm(layer: _BatchNorm, channels: int) -> None:
    layer.num_features = channels
    if layer.affine:
        layer.weight, layer.bias = _first(layer.weight, channels), _first(layer.bias, channels)
    if layer.running_mean is not None and layer.running_var is not None:
        layer.running_mean = layer.running_mean[:channels].clone()
        layer.running_var = layer.running_var[:channels].clone()


def _first(weight: Tensor, *sizes: int) -> nn.Parameter:
    block = weight.detach()[tuple(slice(0, size) for size in sizes)]
    return nn.Parameter(block.clone(), requires_grad=weight.requires_grad)


def _prove(
    whole: nn.Module, made: nn.Module, x_B: Tensor, rate: float, *, seen: Mapping[str, Tensor], output_B: Tensor
) -> None:
    """ModelError unless ``made`` sees, layer by layer, the first channels of what ``whole`` sees.

    ``whole`` is set to zero outside the slice.
    """
    state = whole.state_dict()
    with torch.no_grad():
        for name, held in index_map(state, made.state_dict()).items():
            block = state[name][held].clone()
            state[name].zero_()[held] = block
    compared: set[str] = set()

    def compare(name: str, _: nn.Module, input_B: Tensor) -> None:
        if name not in compared and not _agree(input_B, seen[name]):
            raise ModelError(f"{_where(whole, name, rate)}: its inputs are not the first ones of the full net's")
        compared.add(name)

    if not _agree(_run(whole, x_B, compare, rate), output_B):
        raise ModelError(f"method.width = {rate}: {type(whole).__name__} mixes channels after its last layer")


def _agree(wide: Tensor, part: Tensor) -> bool:
    """Whether ``part`` equals the leading block of ``wide``, within rounding."""
    block = wide[tuple(slice(0, size) for size in part.shape)]
    scale = float(part.abs().max()) if part.numel() else 0.0
    return block.shape == part.shape and float((block - part).abs().max()) <= TOLERANCE * max(scale, 1.0)
