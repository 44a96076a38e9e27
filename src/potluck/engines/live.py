"""The most bytes that tensors took at once while a block ran: what training needs beyond the idle process."""

from __future__ import annotations

import weakref
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only


class LiveBytes:
    """Counts the storages of all tensors that operations return inside the block, from their making to their end.

    ``after`` holds the bytes after each operation. What was there before the block is not counted until an operation
    returns a view of it.
    Working memory inside an operation is not seen; against a process's resident memory the peak was within 3 % where
    the allocator returns what it does not use (docs/choosing.md).
    """

    def __init__(self) -> None:
        self.after: list[int] = []
        self._now = 0
        self._mode = _Watch(self._made, self._done)
        self._open: dict[int, int] = {}

    @property
    def peak(self) -> int:
        """The most bytes at once."""
        return max(self.after, default=0)

    def __enter__(self) -> LiveBytes:
        self._mode.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._mode.__exit__(kind, error, trace)  # type: ignore[no-untyped-call]

    def _made(self, tensor: Tensor) -> None:
        if tensor.device.type == "meta":
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._open:
            return
        self._open[key] = storage.nbytes()
        self._now += storage.nbytes()
        weakref.finalize(storage, self._gone, key)

    def _done(self) -> None:
        self.after.append(self._now)

    def _gone(self, key: int) -> None:
        self._now -= self._open.pop(key)


class _Watch(TorchDispatchMode):
    """Shows each tensor that an operation returns, and says when it is done."""

    def __init__(self, made: Any, done: Any) -> None:
        TorchDispatchMode.__init__(self)  # type: ignore[no-untyped-call]
        self._made, self._done = made, done

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self._made, found)
        self._done()
        return found
