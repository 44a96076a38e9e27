"""Randomness is derived, not consumed.

Every generator is a hash of (run seed, round, device, purpose), so the order of devices, the number of workers and the
engine do not change a result, and a resumed run draws what the unbroken run would have drawn.
"""

from __future__ import annotations

import hashlib

import torch

SERVER = -1
"""The device number that stands for the server."""


def derived(seed: int, round: int, device: int, purpose: str) -> int:
    """A number in [0, 2**63), the first eight bytes of SHA-256 of the four arguments."""
    text = f"{seed}/{round}/{device}/{purpose}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


def generator(seed: int, round: int, device: int, purpose: str) -> torch.Generator:
    """A fresh CPU generator for one purpose of one device in one round."""
    made = torch.Generator()
    made.manual_seed(derived(seed, round, device, purpose))
    return made
