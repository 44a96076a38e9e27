"""Shards, tasks and desks."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest
import torch

from potluck.core import seeds
from potluck.core.contexts import DeviceContext, ServerContext
from potluck.core.types import Device, Shard, TargetFacts

DEVICE = Device(
    id=3, tier="phone", memory_bytes=1, flops_per_s=1.0, uplink_bytes_per_s=1.0, downlink_bytes_per_s=1.0, latency_s=0.0
)


def shard(images: torch.Tensor, domains: torch.Tensor | None = None) -> Shard:
    return Shard(
        samples=images,
        targets=torch.arange(len(images)) % 3,
        index=torch.tensor([4, 1, 2]),
        mean=torch.tensor([0.5, 0.25]).reshape(2, 1, 1),
        deviation=torch.tensor([2.0, 0.5]).reshape(2, 1, 1),
        facts=TargetFacts(outputs=3),
        domains=domains,
    )


def test_samples_are_picked_scaled_and_normalised() -> None:
    images = torch.arange(6 * 2 * 2 * 2, dtype=torch.uint8).reshape(6, 2, 2, 2)
    found = shard(images)
    unit = images[[4, 1, 2]].double() / 255
    wanted = torch.stack([(unit[:, 0] - 0.5) / 2.0, (unit[:, 1] - 0.25) / 0.5], dim=1)
    assert found.x.dtype == torch.float32
    assert torch.allclose(found.x.double(), wanted, atol=1e-6)
    assert found.y.tolist() == [1, 1, 2]
    assert (len(found), found.inputs.shape, found.d) == (3, (2, 2, 2), None)


def test_floats_are_not_scaled_and_nothing_is_written_to() -> None:
    images = torch.randn(6, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    before = images.clone()
    found = shard(images)
    found.x.zero_()
    assert torch.allclose(found.x[:, 1], (images[[4, 1, 2], 1] - 0.25) / 0.5)
    assert torch.equal(images, before)


def test_a_part_of_a_share_keeps_what_belongs_to_its_samples() -> None:
    found = shard(torch.zeros(6, 2, 1, 1), torch.arange(6)).take(torch.tensor([2, 0]))
    assert found.index.tolist() == [2, 4]
    assert found.d is not None
    assert found.d.tolist() == [2, 4]
    assert found.y.tolist() == [2, 1]
    assert found.take(torch.tensor([], dtype=torch.int64)).x.shape == (0, 2, 1, 1)


def test_a_task_draws_from_its_own_generator() -> None:
    data = shard(torch.zeros(6, 2, 1, 1))
    task = DeviceContext(round=2, device=DEVICE, data=data, public=None, seed=9)
    assert task.rng("train").initial_seed() == seeds.derived(9, 2, 3, "train")
    server_context = ServerContext(round=2, devices=[DEVICE], held=None, public=None, seed=9)
    assert server_context.rng("train").initial_seed() == seeds.derived(9, 2, seeds.SERVER, "train")
    with pytest.raises(FrozenInstanceError):
        task.round = 3  # type: ignore[misc]


def test_a_desk_computes_a_thing_once_a_round() -> None:
    calls: list[int] = []
    server_context = ServerContext(round=1, devices=[], held=None, public=None, seed=0)
    for _ in range(3):
        assert server_context.once("svd", lambda: calls.append(1) or len(calls)) == 1
    assert server_context.once("other", lambda: 5) == 5
    assert ServerContext(round=2, devices=[], held=None, public=None, seed=0).once("svd", lambda: 7) == 7
    assert len(calls) == 1
