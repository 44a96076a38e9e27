"""Which layers may become low-rank, and which stay full, decided from the structure of the net alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from torch import nn

from potluck.core.errors import ModelError
from potluck.lowrank.matrix import Flatten, break_even, matrix_shape
from potluck.nets.resnet import ResNet

Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Embedding


def factorisable(net: nn.Module, keep_full: Sequence[str] | None = None) -> dict[str, tuple[int, ...]]:
    """The layers that may become low-rank: name -> shape of the weight, in the order of the net.

    Linear, Conv1d, Conv2d and Embedding layers are candidates (those of a net's ``Gru`` and attention are linear). Of
    these stay full, by the general rule: the first layer, unless it is an embedding, and the last, the first of several
    blocks, and 1×1 convolutions; beside them what a ResNet's own ``keep_full`` names (FedHM's hybrid
    rule). ``keep_full``, a list of layers or of modules that hold them, replaces all of that. Raises ModelError if a
    name is not in the net, or if nothing is left. Grouped convolutions always stay full.
    """
    able = candidates(net)
    if keep_full is None:
        kept = _general_rule(net)
    else:
        kept = set(keep_full)
        known = {name for name, _ in net.named_modules() if name}
        for name in keep_full:
            if name not in known:
                raise ModelError(
                    f'method.keep_full: the net has no layer "{name}"; it has: {", ".join(_weighted(net))}'
                )
    found = {
        name: tuple(layer.weight.shape)
        for name, layer in able.items()
        if not any(name == one or name.startswith(f"{one}.") for one in kept)
    }
    if not found:
        layers = ", ".join(_weighted(net)) or "none"
        raise ModelError(
            f"{type(net).__name__} has no layer to factorise (its layers: {layers}, all stay full): "
            "name fewer in method.keep_full, or choose another model"
        )
    return found


def _weighted(net: nn.Module) -> dict[str, Layer]:
    return {name: layer for name, layer in net.named_modules() if isinstance(layer, Layer)}


def candidates(net: nn.Module) -> dict[str, Layer]:
    """Layers that two smaller ones can stand for: not grouped, zero-padded, unshared, and of the exact classes.

    A subclass may use its weight in its own way (so does attention's output projection), hence the exact classes.
    """
    holders = Counter(id(weight) for _, weight in net.named_parameters(remove_duplicate=False))
    return {n: layer for n, layer in _weighted(net).items() if holders[id(layer.weight)] == 1 and _plain(layer)}


def grouped(net: nn.Module) -> list[str]:
    """The names of grouped and depthwise convolutions."""
    return [n for n, layer in _weighted(net).items() if isinstance(layer, nn.Conv1d | nn.Conv2d) and layer.groups > 1]


def _plain(layer: Layer) -> bool:
    if type(layer) in (nn.Conv1d, nn.Conv2d):
        assert isinstance(layer, nn.Conv1d | nn.Conv2d)
        return layer.padding_mode == "zeros" and layer.groups == 1
    if type(layer) is nn.Embedding:
        return layer.max_norm is None and not layer.sparse and not layer.scale_grad_by_freq
    return type(layer) is nn.Linear


def _general_rule(net: nn.Module) -> set[str]:
    layers = _weighted(net)
    kept = {name for name, layer in layers.items() if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1)}
    first = [name for name, layer in [*layers.items()][:1] if not isinstance(layer, nn.Embedding)]
    kept.update(first, [*layers][-1:], _first_block(net))
    if isinstance(net, ResNet):
        kept.update(net.keep_full)
    return kept


def _first_block(net: nn.Module) -> list[str]:
    """The name of the first of several modules of one class of its own that hold two or more layers directly."""
    blocks: dict[str, type[nn.Module]] = {}
    for name, module in net.named_modules():
        direct = [child for child in module.children() if isinstance(child, Layer)]
        if name and len(direct) > 1 and not type(module).__module__.startswith("torch.nn"):
            blocks[name] = type(module)
    counts = Counter(blocks.values())
    return [name for name, kind in blocks.items() if counts[kind] > 1][:1]


def ranks_by_factor(layers: Mapping[str, Sequence[int]], factor: float, flatten: Flatten = "ok_ik") -> dict[str, int]:
    """FedHM's ranks r = max(round(O / f), 1) of those layers where they pay; empty at f = 1, the full net.

    O is taken to be no more than the columns of the matrix, above which no rank lies (ours: an embedding has thousands
    of rows, a recurrent layer three times as many as it has units).
    """
    if factor == 1:
        return {}
    widths = {name: min(shape[0], matrix_shape(shape, flatten)[1]) for name, shape in layers.items()}
    wanted = {name: max(round(width / factor), 1) for name, width in widths.items()}
    return {name: rank for name, rank in wanted.items() if rank <= break_even(*matrix_shape(layers[name], flatten))}


def full_layers(net: nn.Module) -> list[str]:
    """A warning if the net has grouped convolutions."""
    found = grouped(net)
    return [f"grouped convolutions stay full: {', '.join(found)}"] if found else []


def dense_layers(factors: Mapping[str, float], net: nn.Module, keep_full: Sequence[str] | None) -> list[str]:
    """Warnings of layers that stay full whatever is asked: grouped ones, and by tier those whose rank would not pay."""
    told, layers = full_layers(net), factorisable(net, keep_full)
    for tier, factor in factors.items():
        dense = sorted(set(layers) - set(ranks_by_factor(layers, factor))) if factor > 1 else []
        if dense:
            told.append(f'tier "{tier}", rank factor {factor:g}: no gain, hence dense: {", ".join(dense)}')
    return told
