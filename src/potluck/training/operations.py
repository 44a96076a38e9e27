"""Watching torch operation by operation: all that we use of torch's private parts. Tested with torch 2.13.

torch's documentation shows ``TorchDispatchMode``, but imports it from a private module. Where a version has moved it,
``torch.overrides.TorchFunctionMode`` stands in, which is public and sees the forward pass only, call by call: then
FLOPs come from torch's own ``FlopCounterMode`` (flops.py), and the memory of a plan is a lower bound, which it says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.utils._python_dispatch import TorchDispatchMode as Mode

    SEES_BACKWARD = True
else:
    try:
        from torch.utils._python_dispatch import TorchDispatchMode as Mode

        SEES_BACKWARD = True
    except ImportError:
        from torch.overrides import TorchFunctionMode as Mode

        SEES_BACKWARD = False


class OperationWatcher(Mode):  # type: ignore[no-untyped-call, unused-ignore]
    """For its block, ``see`` is told of each operation, forward and backward, after it was done."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]

    def see(self, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """An operation, its arguments and named arguments, and its result."""
        raise NotImplementedError

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing of this is compiled, so nobody need be told to leave it out

    def _done(self, operation: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        out = operation(*args, **(kwargs or {}))
        self.see(operation, args, kwargs or {}, out)
        return out

    if SEES_BACKWARD:
        __torch_dispatch__ = _done
    else:
        __torch_function__ = _done
