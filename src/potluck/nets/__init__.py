"""The nets: a file a family, which says its members in a table ``NETS``; and what is done to nets as such.

zoo.py makes a net by its name, tier_nets.py holds one for each tier, weights.py takes weights out and puts them in,
width.py cuts narrower nets, norms.py and batch_statistics.py are about normalisation.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from potluck.core.errors import ModelError
from potluck.core.plugins import Catalogue
from potluck.core.types import KINDS, Inputs
from potluck.nets.net import Net


def _net(name: str, found: Any) -> Net:
    if isinstance(found, Net):
        return found
    if not callable(found):
        raise ValueError(f"got {found!r}, expected a function (shape, outputs) -> torch.nn.Module, or a Net")
    line = next(iter((found.__doc__ or "").strip().splitlines()), "a net of your own")

    def make(inputs: Inputs, outputs: int, norm: str) -> nn.Module:
        more = (inputs.vocabulary,) if inputs.vocabulary else ()
        return found(inputs.shape, outputs, *more)  # type: ignore[no-any-return]

    return Net(line=line, make=make, own=True, inputs=KINDS)


NETS: Catalogue[Net] = Catalogue(
    kind="net",
    key="model.name",
    package=__name__,
    table="NETS",
    group="potluck.nets",
    made=_net,
    error=ModelError,
    objects="package.module:function",
)
