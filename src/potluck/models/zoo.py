"""The nets that an experiment can name, and the door for a net of one's own.

``model.name`` is a key of ``MODELS`` or ``"package.module:function"``; such a function takes (shape, classes) and
returns an ``nn.Module``. Every net of the zoo takes any image of at least 8x8 with any number of channels and classes.
"""

from __future__ import annotations

import difflib
import importlib
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import nn

from potluck.core.errors import ModelError
from potluck.models.norms import NORMS
from potluck.models.plain import make_plain
from potluck.models.resnet import make_resnet

Shape = tuple[int, ...]
Maker = Callable[[str, Shape, int, str], nn.Module]
SMALLEST_SIDE = 8
LATER = ("dsodenet-like", "odenet-50-like")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A net of the zoo: one line about it, what kind it is, and its maker (name, shape, classes, norm) -> net."""

    line: str
    make: Maker
    kind: Literal["any", "ode", "deq"] = "any"
    rows: bool = False
    """Whether the net also takes feature rows, of shape (features,)."""


def _cifar(depth: int, parameters: str) -> Entry:
    return Entry(line=f"residual net of depth {depth}, widths 16/32/64; {parameters} parameters", make=make_resnet)


def _make_odenet(name: str, shape: Shape, classes: int, norm: str) -> nn.Module:
    from potluck.models.ode import make_odenet  # noqa: PLC0415 - the solvers are loaded by those who use them

    return make_odenet(name, shape, classes, norm)


def _make_deq(name: str, shape: Shape, classes: int, norm: str) -> nn.Module:
    from potluck.models.deq import make_deq  # noqa: PLC0415 - the solvers are loaded by those who use them

    return make_deq(name, shape, classes, norm)


def _deq(rest: str) -> Entry:
    return Entry(line=f"one equilibrium layer, width {rest} parameters", make=_make_deq, kind="deq")


MODELS: dict[str, Entry] = {
    "mlp": Entry(line="two hidden layers of 200; images or feature rows; no norms", make=make_plain, rows=True),
    "lenet": Entry(line="LeNet-5; 44,426 parameters on 1x28x28; no norms", make=make_plain),
    "cnn": Entry(line="two 5x5 convolutions, dense 512; 1,663,370 parameters on 1x28x28; no norms", make=make_plain),
    "cnn-2m": Entry(
        line="four 3x3 convolutions, dense 512; 2,168,362 parameters on 3x32x32; no norms", make=make_plain
    ),
    "resnet8": _cifar(8, "75,290"),
    "resnet20": _cifar(20, "269,722"),
    "resnet32": _cifar(32, "464,154"),
    "resnet44": _cifar(44, "658,586"),
    "resnet56": _cifar(56, "853,018"),
    "resnet110": _cifar(110, "1,727,962"),
    "resnet18": Entry(line="residual net, widths 64 to 512, 3x3 stem; 11,173,962 parameters", make=make_resnet),
    "resnet34": Entry(line="residual net, widths 64 to 512, 3x3 stem; 21,282,122 parameters", make=make_resnet),
    "odenet-cifar-like": Entry(
        line="three ODE stages, widths 16/32/64; 167,834 parameters", make=_make_odenet, kind="ode"
    ),
    "odenet-34-lite-like": Entry(
        line="three ODE stages, widths 64/128/256; 1,596,234 parameters", make=_make_odenet, kind="ode"
    ),
    "deq-xs-like": _deq("16, 32 inside its cell; 12,426"),
    "deq-s-like": _deq("48, 64 inside its cell; 64,842"),
    "deq-m-like": _deq("64, 128 inside its cell; 160,266"),
    "deq-l-like": _deq("128, 256 inside its cell; 615,434"),
}


def describe() -> list[tuple[str, str]]:
    """(name, line) of every net, in the order of the zoo; parameter counts are for 10 classes."""
    return [(name, entry.line) for name, entry in MODELS.items()]


def make(name: str, shape: Shape, classes: int, norm: str) -> nn.Module:
    """A fresh net for samples of ``shape`` (C, H, W) or (features,), drawn from torch's global generator.

    ModelError if there is no such net, the norm is unknown, or the shape does not suit the net. A net of one's own
    chooses its own norms.
    """
    if ":" in name:
        return _import(name, shape, classes)
    if name in LATER:
        raise ModelError(f'model.name = "{name}": not built yet; expected one of {", ".join(MODELS)}')
    if name not in MODELS:
        close = difflib.get_close_matches(name, MODELS, n=1)
        hint = f'; did you mean "{close[0]}"?' if close else ', or "package.module:function"'
        raise ModelError(f'model.name = "{name}": expected one of {", ".join(MODELS)}{hint}')
    if norm not in NORMS:
        raise ModelError(f'model.norm = "{norm}": expected one of {", ".join(NORMS)}')
    entry = MODELS[name]
    _demand_fit(name, entry, shape, classes)
    return entry.make(name, shape, classes, norm)


def make_at_depth(name: str, shape: Shape, classes: int, norm: str, steps: int) -> nn.Module:
    """``make``, with ``steps`` steps of an ODE net or evaluations of an equilibrium net; 0: the net's own."""
    net = make(name, shape, classes, norm)
    if steps:
        kind = MODELS[name].kind if name in MODELS else ""
        if kind not in DEPTHS:
            raise ModelError(
                f'model.steps = {steps}: "{name}" has no depth to set; leave it out, or choose an ODE or DEQ net'
            )
        DEPTHS[kind](net, steps)
    return net


def _set_ode_depth(net: nn.Module, steps: int) -> None:
    from potluck.models.ode import set_depth  # noqa: PLC0415 - the solvers are loaded by those who use them

    set_depth(net, steps, key="model.steps")


def _set_deq_depth(net: nn.Module, steps: int) -> None:
    from potluck.models.deq import set_depth  # noqa: PLC0415 - the solvers are loaded by those who use them
    from potluck.solvers import FixedPoint, Phantom  # noqa: PLC0415 - the same

    set_depth(net, steps, solver=FixedPoint(), gradient=Phantom(), key="model.steps")


DEPTHS: dict[str, Callable[[nn.Module, int], None]] = {"ode": _set_ode_depth, "deq": _set_deq_depth}


def _demand_fit(name: str, entry: Entry, shape: Shape, classes: int) -> None:
    if classes < 1:
        raise ModelError(f'model.name = "{name}": {classes} classes; expected at least one')
    if min(shape, default=0) < 1 or len(shape) not in (1, 3):
        raise ModelError(f"samples of shape {shape}: expected (channels, height, width) or (features,)")
    if len(shape) == 1 and not entry.rows:
        takers = ", ".join(other for other, found in MODELS.items() if found.rows)
        raise ModelError(f'model.name = "{name}" takes images, and the samples are rows of {shape[0]}: choose {takers}')
    if len(shape) == 3 and min(shape[1:]) < SMALLEST_SIDE:
        least = f"{SMALLEST_SIDE}x{SMALLEST_SIDE}"
        raise ModelError(f'model.name = "{name}": images are {shape[1]}x{shape[2]}; expected at least {least}')


def _import(name: str, shape: Shape, classes: int) -> nn.Module:
    """The net of ``package.module:function``. What the user's own code raises is told with its file and line."""
    module_name, _, function_name = name.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), function_name]):
        raise ModelError(f'model.name = "{name}": expected "package.module:function"')
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise _failed(name, f"importing {module_name}", error) from error  # what it imports is not there
        raise ModelError(
            f'model.name = "{name}": no module {error.name!r}; run from the folder that holds it, or install it'
        ) from error
    except Exception as error:
        raise _failed(name, f"importing {module_name}", error) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        found = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        close = difflib.get_close_matches(function_name, found, n=1)
        hint = f'; did you mean "{close[0]}"?' if close else ""
        raise ModelError(f'model.name = "{name}": {module_name} has no function {function_name!r}{hint}')
    try:
        net = function(shape, classes)
    except Exception as error:
        raise _failed(name, f"{function_name}({shape}, {classes})", error) from error
    if not isinstance(net, nn.Module):
        raise ModelError(f'model.name = "{name}" returned {type(net).__name__}: expected a torch.nn.Module')
    return net


def _failed(name: str, what: str, error: Exception) -> ModelError:
    """The user's own code went wrong: where, in one line; the whole story is the cause of what is raised."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    if isinstance(error, SyntaxError):
        place = f" ({error.filename}, line {error.lineno})"
    elif frames and frames[-1].filename.startswith("<frozen"):  # the import system itself: the line that asked it
        asked = [frame for frame in frames if not frame.filename.startswith("<frozen")]
        place = f" ({asked[-1].filename}, line {asked[-1].lineno})" if asked else ""
    return ModelError(f'model.name = "{name}": {what} failed: {type(error).__name__}: {error}{place}')


def count_parameters(net: nn.Module) -> int:
    """How many numbers the parameters hold (buffers not counted)."""
    return sum(weight.numel() for weight in net.parameters())
