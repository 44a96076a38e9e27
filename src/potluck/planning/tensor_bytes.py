"""The most bytes that tensors took at once while a block ran: what training needs beyond the idle process."""

from __future__ import annotations

import warnings
import weakref
from typing import Any

import torch
from torch import Tensor

from potluck.training.operations import SEES_BACKWARD, OperationWatcher


class TensorBytes(OperationWatcher):  # type: ignore[no-untyped-call, unused-ignore]
    """Counts the storages of all tensors that operations return inside the block, from their making to their end.

    ``after`` holds the bytes after each operation. What was there before the block is not counted until an operation
    returns a view of it. Working memory inside an operation is not seen; against a process's resident memory the peak
    was within 3 % where the allocator returns what it does not use (docs/choosing.md).
    """

    def __init__(self) -> None:
        super().__init__()
        if not SEES_BACKWARD:
            warnings.warn(
                f"torch {torch.__version__} shows the forward pass only: memory is a lower bound", stacklevel=2
            )
        self.after: list[int] = []
        self._now = 0
        self._open: dict[int, int] = {}

    @property
    def peak(self) -> int:
        """The most bytes at once."""
        return max(self.after, default=0)

    def see(self, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        for made in out if isinstance(out, tuple | list) else (out,):
            if isinstance(made, Tensor):
                self._made(made)
        self.after.append(self._now)

    def _made(self, tensor: Tensor) -> None:
        if tensor.device.type == "meta":
            return
        storage = tensor.untyped_storage()
        key = storage.data_ptr()
        if key in self._open or not storage.nbytes():
            return
        self._open[key] = storage.nbytes()
        self._now += storage.nbytes()
        weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self._now -= self._open.pop(key)
