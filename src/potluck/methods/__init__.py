"""The methods, one paper a file. A new method is one file and one line here."""

from __future__ import annotations

from typing import Any

from potluck.methods.fedavg import FedAvg
from potluck.methods.feddeq import FedDEQ
from potluck.methods.feddlr import FedDLR
from potluck.methods.fedh2l import FedH2L
from potluck.methods.fedhm import FedHM
from potluck.methods.fedmd import FedMD
from potluck.methods.fedode import FedODE
from potluck.methods.fedprox import FedProx
from potluck.methods.heterofl import HeteroFL
from potluck.methods.local import Local

METHODS: dict[str, type[Any]] = {
    "local": Local,
    "fedavg": FedAvg,
    "fedprox": FedProx,
    "heterofl": HeteroFL,
    "fedhm": FedHM,
    "feddlr": FedDLR,
    "fedode": FedODE,
    "feddeq": FedDEQ,
    "fedmd": FedMD,
    "fedh2l": FedH2L,
}
