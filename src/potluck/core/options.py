"""What a method says of its options, and what it may know of the experiment before it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from potluck.core.types import Device, Inputs


@dataclass(frozen=True, slots=True)
class Ladder:
    """Marks a per-tier option of a method: left out, it follows these rungs in the order of the tiers' gflops."""

    rungs: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class NetChoice:
    """Marks a per-tier option that names the net of each tier; left out, every tier has the net of ``[model]``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What a method may know of the experiment before it runs, to refuse what cannot work."""

    devices: Sequence[Device]
    tiers: Sequence[str]
    inputs: Inputs
    outputs: int
    public_samples: int
    server_samples: int
    up_codecs: Sequence[str]
    down_codecs: Sequence[str]
    rounds: int
    given: Mapping[str, Any]
    """The options of ``[method]`` that the experiment file itself sets."""
    sparse_codecs: Sequence[str] = ()
    """Those of the codecs that drop most entries, which only updates survive."""


@dataclass(frozen=True, slots=True)
class IfServerData:
    """A profile's value where the server holds samples of its own (two or more), and where it does not."""

    yes: Any
    no: Any
