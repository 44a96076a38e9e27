"""A world small enough to compute by hand: rows of features, two tiny nets, local training with known settings."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from potluck.core.contexts import DeviceContext
from potluck.core.types import Device, Inputs, Shard, TargetFacts
from potluck.methods.fedh2l.method import FedH2L
from potluck.nets.tier_nets import TierNets
from potluck.tasks.classification import Classification
from potluck.training.fit import Fit

CLASSES = 3


def device(number: int = 0, tier: str = "phone") -> Device:
    rates = {"flops_per_s": 1.0, "uplink_bytes_per_s": 1.0, "downlink_bytes_per_s": 1.0, "latency_s": 0.0}
    return Device(id=number, tier=tier, memory_bytes=1, **rates)


def fit(**changed: Any) -> Fit:
    plain: dict[str, Any] = {
        "optimiser": "sgd",
        "lr": 0.1,
        "momentum": 0.9,
        "weight_decay": 0.0,
        "epochs": {"phone": 2},
        "batch_size": 8,
        "schedule": "none",
        "milestones": (),
        "gamma": 0.1,
        "schedule_rounds": 1,
        "clip_norm": 0.0,
        "channels_last": False,
        "bf16": False,
        "augment": "none",
    }
    return Fit(task=Classification(facts=TargetFacts(outputs=CLASSES)), **{**plain, **changed})


def shard(images: Tensor, labels: Tensor) -> Shard:
    index = torch.arange(len(images))
    return Shard(
        samples=images,
        targets=labels,
        index=index,
        mean=torch.zeros(1),
        deviation=torch.ones(1),
        facts=TargetFacts(outputs=CLASSES),
    )


def rows(count: int, seed: int = 1) -> Shard:
    rng = torch.Generator().manual_seed(seed)
    return shard(torch.randn(count, 5, generator=rng), torch.randint(0, CLASSES, (count,), generator=rng))


def small_net() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, CLASSES))


def nets(make: Any = small_net) -> TierNets:
    return TierNets({"phone": make}, inputs=Inputs((5,)), outputs=CLASSES, seed=0)


def device_context(
    round: int = 1, number: int = 0, data: Shard | None = None, public: Shard | None = None
) -> DeviceContext:
    return DeviceContext(
        round=round,
        device=device(number),
        data=rows(24) if data is None else data,
        public=rows(20, seed=2) if public is None else public,
        seed=0,
    )


def fedh2l(settings: Fit | None = None, make: Any = small_net, **options: Any) -> FedH2L:
    return FedH2L(net=nets(make), fit=fit() if settings is None else settings, **options)
