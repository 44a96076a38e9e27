"""What a method among peers refuses before it runs."""

from __future__ import annotations

from typing import Any

from potluck.core.errors import ConfigError
from potluck.core.types import Setup
from potluck.methods.refuse import demand_effect
from potluck.models import posteriors

SPOILING = ("int8", "bfloat16", "topk")
"""Codecs after which the rows of a posterior no longer add up to one."""


def demand_peers(method: Any, setup: Setup, classes: int) -> None:
    """Raises ConfigError for an exchange of posteriors on seeds that cannot work, or is not built yet."""
    if method.seeds != "public":
        raise ConfigError(
            f'method.seeds = "{method.seeds}": not built yet; this version has "public", the set of [data] public'
        )
    if method.weighting != "mean":
        raise ConfigError(f'method.weighting = "{method.weighting}": not built yet; this version has "mean"')
    if not setup.public_samples:
        raise ConfigError("fedh2l needs a shared seed set: set [data] public, e.g. 0.05")
    if len(setup.devices) < 2:
        raise ConfigError('fedh2l needs two participants at least; for one device choose method.name = "local"')
    _demand_exchange(method, setup)
    if classes > posteriors.MOST_CLASSES[method.posts]:
        most = posteriors.MOST_CLASSES[method.posts]
        raise ConfigError(f'method.posts = "{method.posts}": too coarse for {classes} classes, at most {most}')
    for direction, codecs in (("up", setup.up_codecs), ("down", setup.down_codecs)):
        spoiling = [name for name in codecs if name in SPOILING]
        if spoiling:
            raise ConfigError(
                f"wire.{direction} holds {spoiling[0]}, and posteriors are rounded by method.posts already: "
                'choose posts = "fixed8" for smaller ones, or zstd'
            )
        if direction == "down" and "float16" in codecs and method.posts == "float32":
            raise ConfigError("wire.down holds float16: a relay would change what peers said; put it into wire.up")


def _demand_exchange(method: Any, setup: Setup) -> None:
    """The options that say what is exchanged when."""
    if method.schedule == "batch" and ("mutual_epochs" in setup.given or method.mutual_epochs != 1):
        raise ConfigError("method.mutual_epochs has no meaning with schedule = batch: a round is one mutual step")
    if method.seed_batch_exchange > setup.public_samples:
        raise ConfigError(
            f"method.seed_batch_exchange = {method.seed_batch_exchange}: expected 0 (all) or 1 to "
            f"{setup.public_samples}, the number of seeds"
        )
    if method.stale_rounds and (method.seed_batch_exchange or method.schedule == "batch"):
        raise ConfigError(
            f"method.stale_rounds = {method.stale_rounds}: a post of another round is about other seeds; it needs "
            'schedule = "round" and seed_batch_exchange = 0'
        )
    idle = {"margin": "protect = none"} if method.protect == "none" else {}
    demand_effect(setup.given, idle)
