"""What a method refuses before it runs, in words that several methods share."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from potluck.core.errors import ConfigError
from potluck.core.options import IfServerData, Setup
from potluck.tasks.task import LearningTask, Soft

LOSSLESS = ("zstd",)


def require_effect(given: Mapping[str, object], idle: Mapping[str, str]) -> None:
    """Raises ConfigError for an option that a person set and that changes nothing: ``idle`` says because of what."""
    for option, because in idle.items():
        if option in given:
            raise ConfigError(f"method.{option} has no effect with {because}; remove it.")


def require_soft(method: str, task: LearningTask) -> Soft:
    """What peers may tell each other of a task's samples. Raises ConfigError where they have nothing to tell."""
    if task.soft is None:
        raise ConfigError(
            f'{method} exchanges what nets say of samples, and of the task "{task.name}" that is too much to send: '
            "choose a method that sends weights, such as fedavg"
        )
    return task.soft


def require_no_sparse(setup: Setup, method: str, because: str) -> None:
    """Raises ConfigError where ``[wire] up`` holds a codec that drops most entries."""
    for name in setup.sparse_codecs:
        raise ConfigError(f'wire.up = ["{name}"] does not go with {method}: {because}; drop the codec')


def require_lossless_down(setup: Setup, option: str, others: str) -> None:
    """Raises ConfigError where a codec changes what devices receive, and the server goes by what it sent."""
    lossy = [name for name in setup.down_codecs if name not in LOSSLESS]
    if lossy:
        raise ConfigError(
            f"wire.down = {json.dumps(lossy)} is lossy and {option} recomputes what was sent: drop the codec "
            f"(zstd is lossless), or choose {others}."
        )


def whole_weights(setup: Setup, method: str) -> list[str]:
    """A warning for lossy codecs. Raises ConfigError for sparse ones, which are for updates."""
    require_no_sparse(setup, method, "it sends whole weights, not updates")
    lossy = [name for name in setup.up_codecs if name not in LOSSLESS]
    return [f"wire.up = {lossy} loses a part of the weights themselves."] if lossy else []


def overrides(setup: Setup, name: str, profile: Mapping[str, Any]) -> list[str]:
    """A line for each option that is set otherwise than in its named profile; none for the recommended one."""
    if name == "recommended":
        return []
    odd = {key: value for key, value in setup.given.items() if key in profile and not _as_in(profile[key], value)}
    return [f'profile = "{name}" is overridden: method.{key} = {value}.' for key, value in odd.items()]


def _as_in(usual: object, value: object) -> bool:
    return value in (usual.yes, usual.no) if isinstance(usual, IfServerData) else value == usual
