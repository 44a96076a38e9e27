"""Seconds that bytes and work take on a device: the simulation's clock."""

from __future__ import annotations

from potluck.core.types import Device


def down_seconds(device: Device, size_bytes: int) -> float:
    """Seconds until the last of ``size_bytes`` has reached the device."""
    return device.latency_s + size_bytes / device.downlink_bytes_per_s


def up_seconds(device: Device, size_bytes: int) -> float:
    """Seconds until the last of ``size_bytes`` from the device has reached the server."""
    return device.latency_s + size_bytes / device.uplink_bytes_per_s


def work_seconds(device: Device, flops: float) -> float:
    """Seconds that ``flops`` floating-point operations take on the device."""
    return flops / device.flops_per_s
