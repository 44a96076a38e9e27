"""What a method refuses before it runs, in words that several methods share."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from torch import nn

from potluck.core.errors import ConfigError
from potluck.core.types import Setup
from potluck.models.keep_full import factorisable, grouped, ranks_by_factor

LOSSLESS = ("zstd",)


def demand_effect(given: Mapping[str, object], idle: Mapping[str, str]) -> None:
    """Raises ConfigError for an option that a person set and that changes nothing: ``idle`` says because of what."""
    for option, because in idle.items():
        if option in given:
            raise ConfigError(f"method.{option} has no effect with {because}; remove it.")


def demand_no_topk(setup: Setup, method: str, because: str) -> None:
    """Raises ConfigError where ``[wire] up`` holds top-k."""
    if "topk" in setup.up_codecs:
        raise ConfigError(f'wire.up = ["topk"] does not go with {method}: {because}; drop the codec')


def demand_lossless_down(setup: Setup, option: str, others: str) -> None:
    """Raises ConfigError where a codec changes what devices receive, and the server goes by what it sent."""
    lossy = [name for name in setup.down_codecs if name not in LOSSLESS]
    if lossy:
        raise ConfigError(
            f"wire.down = {json.dumps(lossy)} is lossy and {option} recomputes what was sent: drop the codec "
            f"(zstd is lossless), or choose {others}."
        )


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
