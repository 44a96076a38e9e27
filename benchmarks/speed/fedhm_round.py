"""The server's work in one round of FedHM on ``resnet18``, beside the training of its devices.

    python benchmarks/speed/fedhm_round.py [--threads 1] [--images 2500] [--epochs 1]

Four tiers of rank factor 1, 2, 4 and 8, one device each. The server: every decomposition (one a layer serves all
tiers), the casts, and the merge of four replies. The devices: one timed step of 32 images each, times the steps of
``--epochs`` over ``--images`` images; the slowest device is what a round waits for.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from potluck.core import meter
from potluck.core.contexts import Reply, ServerContext
from potluck.core.types import Device
from potluck.lowrank.factorise import low_rank, with_factors
from potluck.methods.fedhm import FedHM
from potluck.nets.tier_nets import TierNets
from potluck.nets.weights import load
from potluck.nets.zoo import count_parameters, make

SHAPE, BATCH = (3, 32, 32), 32
FACTORS = {"server": 1.0, "laptop": 2.0, "tablet": 4.0, "phone": 8.0}


def device(number: int, tier: str) -> Device:
    """A device of which only number and tier matter here."""
    return Device(
        id=number,
        tier=tier,
        memory_bytes=1,
        flops_per_s=1.0,
        uplink_bytes_per_s=1.0,
        downlink_bytes_per_s=1.0,
        latency_s=0.0,
    )


def step_seconds(method: Any, down: Any) -> tuple[int, float]:
    """(parameters, seconds of one step of training) of the net that a device is sent: the better of two."""
    net = low_rank(method.net("server"), {layer: u.shape[1] for layer, u in down["u"].items()})
    load(net, with_factors(down["full"], down["u"], down["v"]))
    x, y = torch.randn(BATCH, *SHAPE), torch.zeros(BATCH, dtype=torch.int64)
    optimiser, seconds = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9), []
    for _ in range(3):
        start = time.perf_counter()
        optimiser.zero_grad()
        F.cross_entropy(net(x), y).backward()
        method._decay(net)
        optimiser.step()
        seconds.append(time.perf_counter() - start)
    return count_parameters(net), min(seconds[1:])


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--images", type=int, default=2500)
    parser.add_argument("--epochs", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    maker = partial(make, "resnet18", SHAPE, 10, "group")
    method: Any = FedHM(
        net=TierNets(dict.fromkeys(FACTORS, maker), shape=SHAPE, classes=10, seed=0),
        fit=type("NoDecay", (), {"weight_decay": 0.0})(),
        rank_factor=FACTORS,
    )
    devices = [device(number, tier) for number, tier in enumerate(FACTORS)]
    before, server_context = (
        ServerContext(round=number, devices=devices, held=None, public=None, seed=0) for number in (0, 1)
    )
    state, start = method.initial_state(before), time.perf_counter()
    with meter.metering() as costs:
        downs = [method.broadcast(state, one, server_context) for one in devices]
        sent = time.perf_counter() - start
        replies = [
            Reply(device=one, round=1, update={**down, "rank_factor": 1.0, "samples": 1, "labels": [0]})
            for one, down in zip(devices, downs, strict=True)
        ]
        method.aggregate(state, replies, server_context)
    server = time.perf_counter() - start
    print(
        f"torch {torch.__version__}, {given.threads} thread(s), {given.images} images a device, {given.epochs} epoch(s)"
    )
    print(f"server: broadcast {sent:.2f} s, of which SVD {costs.seconds['svd']:.2f} s; with aggregate {server:.2f} s")
    steps, slowest = -(-given.images // BATCH) * given.epochs, 0.0
    for one, down in zip(devices, downs, strict=True):
        parameters, seconds = step_seconds(method, down)
        slowest = max(slowest, steps * seconds)
        print(
            f"f = {FACTORS[one.tier]:g}: {parameters:,} parameters; a step {seconds:.3f} s, all {steps * seconds:.0f} s"
        )
    print(f"the server's round is {server / slowest:.1%} of the slowest device's training")


if __name__ == "__main__":
    main()
