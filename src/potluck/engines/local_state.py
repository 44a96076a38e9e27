"""What a device keeps between rounds: files that are whole or not there, of the acknowledged round and the newest."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potluck.core import tree
from potluck.core.errors import RunFolderError, WireError
from potluck.wire import frame


class UnusableStateError(RunFolderError):
    """A device's local state is missing or damaged: its reply would not follow from what was aggregated."""


@dataclass(frozen=True, slots=True)
class LocalStateStore:
    """Local states and codec memories of devices as files, one per device and round; two are kept."""

    folder: Path

    def path(self, device: int, round: int) -> Path:
        """Where the state of a device as of a round stands."""
        return self.folder / f"{device:06d}-{round:06d}.safetensors"

    def load(self, device: int, round: int) -> dict[str, Any]:
        """``{"own": ..., "codec": ...}`` as of ``round`` (0: nothing)."""
        if round == 0:
            return {}
        path = self.path(device, round)
        try:
            return frame.decode(bytearray(path.read_bytes()))[0]
        except (OSError, WireError) as error:
            raise UnusableStateError(
                f"{path}: the state of device {device} as of round {round} is unusable: {error}"
            ) from None

    def save(self, device: int, round: int, ack: int | None, content: Mapping[str, Any]) -> None:
        """Writes the state of this round, whole or not at all, and drops all but it and the acknowledged one.

        Without ``ack``, nothing is dropped.
        """
        path = self.path(device, round)
        fresh = path.with_suffix(".new")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            fresh.write_bytes(frame.encode(content))
            fresh.replace(path)
        except OSError as error:
            raise RunFolderError(
                f"{path}: cannot be written ({error.strerror}); mend that, then resume the run"
            ) from None
        kept = None if ack is None else (path, self.path(device, ack))
        for other in self.folder.glob(f"{device:06d}-*.safetensors"):
            if kept is not None and other not in kept:
                other.unlink(missing_ok=True)

    def sync(self, device: int, round: int) -> None:
        """Forces a state to the disk, before a checkpoint refers to it."""
        with contextlib.suppress(FileNotFoundError):  # a reply may claim a state that is not there
            handle = os.open(self.path(device, round), os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)

    def require(self, device: int, round: int, own: str, codec: str) -> None:
        """Raises RunFolderError unless the state of that round is there and has these digests."""
        held = self.load(device, round)
        if (tree.digest(held.get("own", {})), tree.digest(held.get("codec", {}))) != (own, codec):
            raise RunFolderError(f"{self.path(device, round)}: damaged, its digest is not that of the checkpoint")
