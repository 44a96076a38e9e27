"""The steps of a small net of dense layers, recorded once for each shape of a batch and replayed.

A step of a tiny net is some fifteen operations of a microsecond or two; Python, ``nn.Module`` and autograd take four
times as long round them. A recording holds those operations, torch's own, in their order, as a TorchScript function:
replaying it gives the same bits. Recorded are nets of torch's own dense layers, which do the same for all batches of a
shape; convolutions and norms have gradients that TorchScript cannot hold.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from potluck.models.watch import Watch

Loss = Callable[[Tensor, Tensor], Tensor]
Step = Callable[[Tensor, Tensor], Sequence[Tensor]]
Call = tuple[Any, tuple[Any, ...], dict[str, Any], Any]
"""(operation, arguments, named arguments, result)."""
MOST_WEIGHTS = 2**17
"""A larger net spends its time in the operations themselves."""
PLAIN_FIRST, MOST_SHAPES = 2, 16
"""So many batches of a shape are not recorded, and no more shapes of a net: what hardly ever comes is not worth it."""
MODULES = (
    *(nn.Sequential, nn.Flatten, nn.Identity, nn.Linear, nn.Dropout),
    *(nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Hardtanh),
)
"""Those that a net may consist of."""
SCRIPT: Any = getattr(torch, "jit", None)
"""TorchScript, which is to leave torch one day: then nothing is recorded."""


def as_recorded() -> AbstractContextManager[None]:
    """For the block, TorchScript runs operations as they were recorded, without optimising them."""
    optimised = getattr(SCRIPT, "optimized_execution", None)
    return nullcontext() if optimised is None else optimised(False)


class Replays:
    """The recorded steps of one net, which is given with each call and not held."""

    def __init__(self, net: nn.Module, loss: Loss) -> None:
        self.any = replayable(net)
        """Whether there will be any."""
        self._loss = loss
        self._weights = [weight for weight in net.parameters() if weight.requires_grad]
        self._memory = _memory(net)
        self._seen: dict[Any, int] = {}
        self._steps: dict[Any, Step] = {}

    def suit(self, net: nn.Module) -> bool:
        """Whether the weights lie where they did when this was made, and the same ones want gradients."""
        return _memory(net) == self._memory

    def __call__(self, net: nn.Module, x: Tensor, y: Tensor) -> Tensor | None:
        """The loss of a batch, whose gradients the weights then have; None where the step has to be done as usual."""
        key = (x.shape, x.stride(), y.shape)
        if key in self._steps:
            loss, *gradients = self._steps[key](x, y)
        else:
            self._seen[key] = self._seen.get(key, 0) + 1
            if self._seen[key] <= PLAIN_FIRST or len(self._steps) == MOST_SHAPES:
                return None
            (loss, *gradients), self._steps[key] = record(net, self._loss, self._weights, x, y)
        for weight, gradient in zip(self._weights, gradients, strict=True):
            weight.grad = gradient
        return loss


def replayable(net: nn.Module) -> bool:
    """Whether the net is small, and of dense layers of torch's own without hooks."""
    if not hasattr(SCRIPT, "trace"):
        return False
    return sum(weight.numel() for weight in net.parameters()) <= MOST_WEIGHTS and all(
        type(module) in MODULES and not (module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)
        for module in net.modules()
    )


def _memory(net: nn.Module) -> list[tuple[int, bool]]:
    return [(value.data_ptr(), value.requires_grad) for value in (*net.parameters(), *net.buffers())]


def record(
    net: nn.Module, loss: Loss, weights: Sequence[nn.Parameter], x: Tensor, y: Tensor
) -> tuple[list[Tensor], Step]:
    """The loss and the gradients of the weights, and a function of (x, y), of these shapes, that gives them anew."""
    with _Recorder() as recorder:
        found = loss(net(x), y)
        gradients = torch.autograd.grad(found, list(weights))  # given a first gradient, torch would import sympy
    return [found.detach(), *gradients], _replay(recorder.calls, [x, y], [found, *gradients])


class _Recorder(Watch):  # type: ignore[no-untyped-call, unused-ignore]
    """Notes all that torch does."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def see(self, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        self.calls.append((operation, args, kwargs, out))


def _replay(calls: Sequence[Call], inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Step:
    """The calls as one function of the inputs."""
    made, held, kept = {id(value) for value in inputs}, dict[int, Tensor](), list[Call]()
    for call in calls:
        operation, args, kwargs, out = call
        used = list(_tensors([args, *kwargs.values()]))
        if operation.is_view and not any(id(value) in made for value in used):
            continue  # a view of a weight, which stays
        held |= {id(value): value.detach() for value in used if id(value) not in made}
        made |= {id(value) for value in _tensors(out)}
        kept.append(call)

    sources, results = [*map(id, inputs), *held], [id(value) for value in outputs]

    def again(*values: Tensor) -> tuple[Tensor, ...]:
        known = dict(zip(sources, values, strict=True))

        def now(value: Any) -> Any:
            if isinstance(value, (list, tuple)):
                return [now(part) for part in value]
            return known[id(value)] if isinstance(value, Tensor) else value

        for operation, args, kwargs, out in kept:
            found = operation(*map(now, args), **{name: now(value) for name, value in kwargs.items()})
            known |= {id(old): new for old, new in zip(_tensors(out), _tensors(found), strict=True)}
        return tuple(known[result] for result in results)

    with torch.random.fork_rng(devices=[]), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        copies = [value.clone() for value in (*inputs, *held.values())]  # tracing runs the calls once more
        traced = SCRIPT.trace(again, copies, check_trace=False)
    weights = list(held.values())
    kept.clear()  # what they made need not be kept
    return lambda x, y: traced(x, y, *weights)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)
