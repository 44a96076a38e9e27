"""Flower's ClientApp program of a device that breaks the rules in some rounds; it has a good key.

    python flower_rogue.py ROUND=FAULT,ROUND=FAULT ARGUMENTS-OF-FLWR-CLIENTAPP

Planted where ``potluck join --cold`` looks first (``plant``), it answers as any device would, but for its faults.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, RecordDict
from flwr.supernode.cli import flwr_clientapp

from potluck.core import tree
from potluck.engines.flower import device
from potluck.engines.flower.frames import pack, unpack
from potluck.wire.messages import Messages

sound_reply, sound_letter = device._answered, Messages.write_up
SAYS = {
    "type": "'numpy.ndarray'",
    "cut": "truncated or padded",
    "shape": "shape",
    "nan": "NaN",
}
"""What the ledger says of each fault."""


def plant(home: Path, faults: dict[int, str]) -> None:
    """Makes the device whose Flower home this is a rogue."""
    path = home / "bin" / "flwr-clientapp"
    path.parent.mkdir(parents=True)
    words = [sys.executable, __file__, ",".join(f"{round}={fault}" for round, fault in faults.items())]
    path.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    path.chmod(0o700)


def changed(up: Any, fault: str) -> Any:
    """The message with its first tensor of another shape, or with a value that is no number."""
    path, leaf = next((path, leaf) for path, leaf in tree.leaves(up) if isinstance(leaf, torch.Tensor) and leaf.dim())
    wrong = leaf[:-1].clone() if fault == "shape" else leaf.clone()
    if fault == "nan":
        wrong.view(-1)[0] = torch.nan
    return tree.assemble({**dict(tree.leaves(up)), path: wrong})


def break_rules(faults: dict[int, str]) -> None:
    """From now on, this process's replies have these faults."""

    def letter(self: Messages, up: Any, round: int, *rest: Any) -> Any:
        fault = faults.get(round, "")
        return sound_letter(self, changed(up, fault) if fault in ("shape", "nan") else up, round, *rest)

    def reply(runtime: Any, device: Any, content: RecordDict) -> RecordDict:
        made, fault = sound_reply(runtime, device, content), faults.get(int(content["order"]["round"]), "")
        data = unpack(made)
        if fault == "type":
            made["frame"] = ArrayRecord({"frame": Array("uint8", (len(data),), "numpy.ndarray", data)})
        if fault == "cut":
            made["frame"] = pack(data[: len(data) // 2])
        return made

    device._answered, Messages.write_up = reply, letter  # type: ignore[method-assign]


if __name__ == "__main__":
    break_rules({int(round): fault for round, _, fault in (word.partition("=") for word in sys.argv[1].split(","))})
    del sys.argv[1]
    flwr_clientapp()
