"""Watching torch operation by operation."""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class OperationWatcher(TorchDispatchMode):  # type: ignore[no-untyped-call, unused-ignore]
    """For its block, ``see`` is told of each operation, forward and backward, after it was done."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]

    def see(self, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """An operation, its arguments and named arguments, and its result."""
        raise NotImplementedError

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing of this is compiled, so nobody need be told to leave it out

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = operation(*args, **(kwargs or {}))
        self.see(operation, args, kwargs or {}, out)
        return out
