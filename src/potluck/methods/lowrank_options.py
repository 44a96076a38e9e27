"""Values, ranges and warnings of the low-rank methods' options: the faithful profiles of FedHM and FedDLR, and what
FedDLR refuses.

FedHM's are the authors' code (its schedule that for CIFAR-10), FedDLR's our reading of the paper.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from potluck.core.errors import ConfigError
from potluck.core.types import Setup
from potluck.methods.refuse import demand_effect, full_layers

FEDHM: Mapping[str, Any] = {
    "aggregation": "replace",
    "initial": "full",
    "weighting": "uniform",
    "temperature": 1.0,
    "l2_on_factors": 1e-4,
    "keep_history": True,
    "mask_labels": True,
    "classifier_rows": "paper",
    "train": {"lr": 0.1, "batch_size": 64, "epochs": 10, "weight_decay": 1e-4}
    | {"schedule": "step", "milestones": [100, 150]},
    "model": {"norm": "batch_stat"},
}
COLLAPSE = (
    'aggregation = "replace" with unequal rank factors: the model collapses to the smallest rank, because each round '
    'shrinks what small devices were not sent; "delta" does not'
)
FEDDLR: Mapping[str, Any] = {
    "target": "weight",
    "down": "weight",
    "p_server": 0.95,
    "p_client": 0.95,
    "error_feedback": False,
    "dense_rounds": 0,
    "train": {"lr": 0.05, "momentum": 0.9, "epochs": 1, "batch_size": 64},
}
STALL = (
    'target = "weight" with p_client < 1: once updates are small beside the weights, truncation erases them and '
    'training stalls; "update" does not'
)
CYCLE = (
    'target = "update" and down = "weight" with p_server < 0.99: the server adds along directions that devices never '
    'see, and its weights cycle; raise p_server to 0.999, or choose down = "update"'
)


def is_factor(value: float) -> bool:
    if not 1 <= value <= 64:
        raise ValueError("expected a number from 1 (full) to 64.")
    return True


def is_share(value: float) -> bool:
    if not 0 < value <= 1:
        hint = f" Did you mean {value / 100:g}?" if 1 < value <= 100 else ""
        raise ValueError(f"expected a share of energy, 0 < p <= 1.{hint}")
    return True


def idle_in_fedhm(method: Any, factors: Set[float]) -> dict[str, str]:
    """Options of FedHM without effect, and because of what."""
    idle: dict[str, str] = {}
    if method.weighting in ("uniform", "samples"):
        idle["temperature"] = f'weighting = "{method.weighting}"'
    if method.aggregation != "replace":
        idle["keep_history"] = f'aggregation = "{method.aggregation}"'
    if method.aggregation != "delta":
        idle["retention"] = f'aggregation = "{method.aggregation}"'
    if factors == {1.0}:
        without = ("frobenius", "l2_on_factors", "classifier_rows", "retention", "initial")
        idle |= dict.fromkeys(without, "rank factor 1 everywhere")
    return idle


def refuse_feddlr(method: Any, setup: Setup) -> None:
    """Raises ConfigError for options of FedDLR that contradict one another, or that have no effect."""
    idle: dict[str, str] = {}
    if method.p_server == method.p_client == 1:
        idle |= dict.fromkeys(("energy", "flatten", "dense_rounds"), "p_server = p_client = 1")
    if method.target == "weight":
        idle["p_model"] = 'target = "weight", whose model is that of p_server'
    if (method.p_server if method.target == "weight" else method.p_model) == 1:
        idle["compact"] = "p_server = 1" if method.target == "weight" else "p_model = 1"
    if not method.error_feedback and "residual_max_age" in setup.given:
        raise ConfigError("method.residual_max_age has no effect without error_feedback; remove it.")
    demand_effect(setup.given, idle)
    if method.target == "update":
        return
    if method.error_feedback:
        raise ConfigError(
            'method.error_feedback = true needs target = "update": with weights the stored residual makes the '
            "server jump. Set error_feedback = false."
        )
    if method.down == "update":
        raise ConfigError(
            'method.down = "update" needs target = "update": the server sends what its full weights have moved, and '
            'with target = "weight" it has none. Set down = "weight".'
        )


def doubts_of_feddlr(method: Any, setup: Setup) -> list[str]:
    """Warnings about a legal but doubtful choice of FedDLR's options."""
    told = full_layers(method.net(setup.tiers[0])) if method.compact else []
    if method.target == "weight" and method.p_client < 1:
        told.append(STALL)
    if method.target == "update" and method.down == "weight" and method.p_server < 0.99:
        told.append(CYCLE)
    if 0 < setup.rounds <= method.dense_rounds and not method.p_server == method.p_client == 1:
        told.append(f"dense_rounds = {method.dense_rounds} of {setup.rounds} rounds: nothing is ever compressed")
    return told
