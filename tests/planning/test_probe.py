"""A probed tier can be pasted into an experiment file, and says what the simulated clock would say."""

from __future__ import annotations

import time
import tomllib

import pytest

from potluck.experiment.config import Experiment
from potluck.planning import probe
from potluck.planning.probe_link import Link


def test_the_table_is_a_tier() -> None:
    fast = probe.Speed(gflops=12.345, model="resnet20", threads=1, steps=7)
    link = Link(uplink_mbps=9.876, downlink_mbps=51.2, latency_ms=12.5)
    text = probe.tier_table("gateway", fast, 512_000_000, link, "10.0.0.1:7450")
    (tier,) = Experiment.of({"fleet": tomllib.loads(text)["fleet"]}).fleet.tier
    assert (tier.name, tier.devices, tier.gflops, tier.memory_mb) == ("gateway", 1, 12.35, 512)  # four digits
    assert (tier.uplink_mbps, tier.downlink_mbps, tier.latency_ms) == (9.876, 51.2, 12.5)
    bare = probe.tier_table("gateway", fast, None, None)
    (tier,) = Experiment.of({"fleet": tomllib.loads(bare)["fleet"]}).fleet.tier
    assert (tier.uplink_mbps, tier.memory_mb) == (10.0, 1024.0), "the defaults"
    assert "not measured" in bare


def test_speed_is_that_of_training_steps() -> None:
    start = time.perf_counter()
    fast = probe.speed("resnet8", seconds=0.05)
    passed = time.perf_counter() - start
    flops_a_step = 3 * 32 * 24.1e6  # resnet8 at 3x32x32: some 24 MFLOPs forward
    assert fast.steps >= probe.LEAST_STEPS
    assert fast.gflops > 0.5 * fast.steps * flops_a_step / passed / 1e9


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"/proc/meminfo": "MemTotal: 9 kB\nMemAvailable: 4 kB\n"}, 4096),
        (
            {
                "/proc/meminfo": "MemAvailable: 4000 kB\n",
                "/sys/fs/cgroup/memory.max": "3000\n",
                "/sys/fs/cgroup/memory.current": "1000\n",
            },
            2000,
        ),
        (
            {
                "/proc/meminfo": "MemAvailable: 4 kB\n",
                "/sys/fs/cgroup/memory.max": "max\n",
                "/sys/fs/cgroup/memory.current": "1000\n",
            },
            4096,
        ),
    ],
)
def test_free_memory_is_within_the_limit(files: dict[str, str], expected: int) -> None:
    def read(path: str) -> str:
        try:
            return files[path]
        except KeyError:
            raise FileNotFoundError(path) from None

    assert probe.free_bytes(read) == expected
