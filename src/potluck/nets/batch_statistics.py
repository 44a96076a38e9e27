"""The statistics of BatchNorm layers: left out, frozen, or taken after training and averaged over devices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def without_running_statistics(net: nn.Module) -> nn.Module:
    """``net``, in place, with each BatchNorm normalising by its batch alone, in training and in evaluation."""
    for layer in net.modules():
        if isinstance(layer, _BatchNorm):
            layer.track_running_stats = False
            layer.running_mean = layer.running_var = layer.num_batches_tracked = None
    return net


def statistics_of(net: nn.Module, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """Mean and variance, over all samples, of what reaches each BatchNorm of ``net`` in evaluation.

    Named as in a state dict. Meanwhile each layer normalises by its batch: ``net`` is ``without_running_statistics``.
    """
    sums: dict[str, tuple[Tensor, Tensor, int]] = {}

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def before(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            x_CN = inputs[0].detach().transpose(0, 1).flatten(1).double()
            first_C, second_C, count = sums.get(name, (torch.zeros(()), torch.zeros(()), 0))
            sums[name] = first_C + x_CN.sum(1), second_C + x_CN.square().sum(1), count + x_CN.shape[1]

        return before

    layers = {name: layer for name, layer in net.named_modules() if isinstance(layer, _BatchNorm)}
    handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in layers.items()]
    try:
        with torch.no_grad():
            for x_B in batches:
                net.eval()(x_B)
    finally:
        for handle in handles:
            handle.remove()
    made = {}
    for name, (first_C, second_C, count) in sums.items():
        mean_C = first_C / count
        made[f"{name}.running_mean"] = mean_C.float().cpu()
        made[f"{name}.running_var"] = (second_C / count - mean_C.square()).clamp_(min=0).float().cpu()
    return made


def moments(statistics: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Means and second moments of such statistics, float64: what may be averaged over devices."""
    wide = {name: value.double() for name, value in statistics.items()}
    return {n: v if n.endswith("mean") else v + wide[_mean_beside(n)].square() for n, v in wide.items()}


def from_moments(averaged: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The statistics whose ``moments`` these are: the variance within devices and between them."""
    made = {n: v if n.endswith("mean") else v - averaged[_mean_beside(n)].square() for n, v in averaged.items()}
    return {name: (v if name.endswith("mean") else v.clamp(min=0)).float() for name, v in made.items()}


def _mean_beside(name: str) -> str:
    return f"{name.removesuffix('running_var')}running_mean"


def freeze_statistics(net: nn.Module) -> None:
    """Puts each BatchNorm into evaluation mode: what follows leaves its running statistics alone."""
    for layer in net.modules():
        if isinstance(layer, _BatchNorm):
            layer.eval()
