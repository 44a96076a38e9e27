"""What we use of torch's private parts: where it was, and what holds where it is gone."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module

import torch
from torch import nn

from potluck.core.types import Inputs
from potluck.planning.tensor_bytes import TensorBytes
from potluck.training import operations
from potluck.training.flops import forward_flops, training_flops

SHAPE = (1, 8, 8)
MOVED = """
import json, sys, warnings
import torch.utils._python_dispatch as place
place.__dict__["kept"] = place.__dict__.pop("TorchDispatchMode")
from potluck.training import operations
place.TorchDispatchMode = place.kept  # torch itself goes on using it
from tests.training.test_operations import SHAPE, figures
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    found = figures()
print(json.dumps({**found, "sees": operations.SEES_BACKWARD, "told": [str(one.message) for one in told]}))
"""


def net() -> nn.Module:
    """Two layers, of fixed weights."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))


def figures() -> dict[str, float]:
    """FLOPs of a sample, and the most bytes of a forward and a backward pass."""
    with TensorBytes() as live:  # type: ignore[no-untyped-call, unused-ignore]
        net()(torch.ones(64, *SHAPE)).sum().backward()
    return {
        "forward": forward_flops(net(), Inputs(SHAPE)),
        "training": training_flops(net(), Inputs(SHAPE)),
        "peak": live.peak,
    }


def test_the_private_name_is_where_it_was() -> None:
    place = import_module("torch.utils._python_dispatch")
    assert hasattr(place, "TorchDispatchMode"), f"torch {torch.__version__} has moved it: {operations.__doc__}"
    assert operations.SEES_BACKWARD


def test_without_it_flops_are_the_same_and_memory_is_a_lower_bound_that_says_so() -> None:
    here = figures()
    said = subprocess.run([sys.executable, "-c", MOVED], capture_output=True, text=True, check=True).stdout
    moved = json.loads(said.splitlines()[-1])
    assert not moved["sees"]
    assert (moved["forward"], moved["training"]) == (here["forward"], here["training"])
    activations = 4 * 64 * (2 * 4 * 36)
    assert activations <= moved["peak"] <= here["peak"]
    assert [f"torch {torch.__version__} shows the forward pass only: memory is a lower bound"] == moved["told"]
