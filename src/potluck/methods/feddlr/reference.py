"""What the devices of a fleet hold, kept in step with the server's weights by small messages.

    S_t = T_p(W_t - X_{t-1});    X_t = X_{t-1} + S_t        T_p: the least rank that holds a share p of the energy

W are the server's weights, X those that devices hold and train from. What S_t left out is still in W - X and is sent
later: error feedback on the way down, with no memory but X. A device is sent the steps that it missed, as long as they
are together smaller than X; else X. It applies them by the arithmetic of the server, so both hold the same X.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NotRequired, TypedDict

from torch import Tensor

from potluck.core import tree
from potluck.core.errors import ModelError
from potluck.lowrank.matrix import Flatten
from potluck.lowrank.svd import Energy
from potluck.methods.feddlr.packing import Packed, Shapes, pack, unpack

Weights = dict[str, Tensor]


class Reference(TypedDict):
    """X and its version; the latest steps by the version they lead to; the version that each device trained from."""

    weights: Weights
    version: int
    steps: dict[str, Packed]
    held: dict[str, int]


class Message(TypedDict):
    """X itself, each tensor dense, or the steps to it."""

    weights: NotRequired[Packed]
    steps: NotRequired[dict[str, Packed]]


def begin(weights: Mapping[str, Tensor]) -> Reference:
    """The reference of a fleet that holds nothing yet."""
    return {"weights": dict(weights), "version": 1, "steps": {}, "held": {}}


def advance(
    before: Reference,
    weights: Mapping[str, Tensor],
    answered: Collection[int],
    share: float,
    energy: Energy,
    flatten: Flatten,
) -> Reference:
    """The next version, nearer to ``weights``; ``answered`` names the devices that trained from the former one."""
    x = before["weights"]
    step = pack(tree.subtract(weights, x), share, energy, flatten)
    version = before["version"] + 1
    steps = {**before["steps"], f"{version:08d}": step}
    while sum(tree.nbytes(one) for one in steps.values()) >= tree.nbytes(x):
        del steps[min(steps)]
        if not steps:
            break
    return {
        "weights": _apply(x, step, flatten),
        "version": version,
        "steps": steps,
        "held": {**before["held"], **{str(device): before["version"] for device in answered}},
    }


def message(reference: Reference, device: int) -> Message:
    """What brings this device to the present version."""
    held = reference["held"].get(str(device), 0)
    missed = {key: step for key, step in reference["steps"].items() if int(key) > held}
    if held and len(missed) == reference["version"] - held:
        return {"steps": missed}
    return {"weights": {name: {"dense": value} for name, value in reference["weights"].items()}}


def follow(held: Mapping[str, Tensor] | None, told: Message, flatten: Flatten) -> Weights:
    """X, on a device that held ``held``. ModelError for a message that does not fit it."""
    if "weights" not in told and held is None:
        raise ModelError("steps to a model that this device does not hold")
    try:
        if "weights" in told:
            return {name: node["dense"] for name, node in told["weights"].items()}
        x = dict(held or {})
        for key in sorted(told["steps"]):
            x = _apply(x, told["steps"][key], flatten)
    except (KeyError, ValueError, RuntimeError) as error:
        raise ModelError(f"a step that does not fit the model: {error}") from None
    return x


def _apply(x: Mapping[str, Tensor], step: Packed, flatten: Flatten) -> Weights:
    """x + step; counters, which are no numbers to add, are those of the step."""
    shapes: Shapes = {name: tuple(value.shape) for name, value in x.items()}
    change = unpack(step, shapes, flatten)
    moved = tree.add(x, change)
    return {name: value if value.is_floating_point() else change[name] for name, value in moved.items()}
