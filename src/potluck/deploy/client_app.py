"""The app that Flower starts on a device: which device this is, and its answers to requests.

The experiment stands in the run's configuration; what is local to a device (its number, data and folder) in its node's.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from potluck.core.errors import ConfigError, PotluckError
from potluck.core.types import Device
from potluck.core.version import VERSION
from potluck.data.shares import Shares
from potluck.deploy.split import read_shard
from potluck.engines.device import DeviceRuntime
from potluck.engines.flower.device import make_client_app
from potluck.experiment import build
from potluck.experiment.config import Experiment
from potluck.experiment.resolve import Resolved, resolve


def _resolved(config: Mapping[str, Any]) -> Resolved:
    return resolve(Experiment.of(json.loads(str(config["experiment"]))))


def _hello(config: Mapping[str, Any], node: Mapping[str, Any]) -> dict[str, Any]:
    """Which device this is; ``fault`` says what would keep it from working, before any training."""
    said = {"device": int(node.get("partition-id", -1)), "tier": str(node.get("tier", "")), "version": VERSION}
    said |= {"python": platform.python_version(), "digest": "", "fault": ""}
    try:
        resolved = _resolved(config)
        said["digest"] = str(node.get("digest", "")) or resolved.digest
        if said["tier"] and said["tier"] not in resolved.tiers:
            raise ConfigError(f"--tier {said['tier']}: the experiment knows {', '.join(resolved.tiers)}")
        if said["digest"] == resolved.digest:
            runtime, device, _ = _work(config, node)
            runtime.method.net(device.tier)  # a net of one's own that is not on this device is told now
    except (PotluckError, ImportError, ValueError) as error:
        said["fault"] = str(error)
    return said


def _work(config: Mapping[str, Any], node: Mapping[str, Any]) -> tuple[DeviceRuntime, Device, int]:
    resolved = _resolved(config)
    devices, number = build.make_fleet(resolved).devices, int(node["partition-id"])
    if not 0 <= number < len(devices):
        raise ConfigError(f"device {number}: the fleet has 0 to {len(devices) - 1}")
    kept = str(node.get("store", "")) or f"{config['folder']}/devices"
    folder = Path(kept) / str(config["run"]) / f"{number:06d}"
    runtime = build.make_runtime(resolved, _shares(resolved, node, number), folder)
    return runtime, devices[number], resolved.experiment.engine.threads


def _shares(resolved: Resolved, node: Mapping[str, Any], number: int) -> Shares:
    """This device's own data in its place; without any, as in a simulation, those of ``[data]``."""
    if not node.get("data"):
        return build.make_shares(resolved)
    data = read_shard(str(node["data"]))
    nothing = data.take(torch.arange(0))
    public = None
    if node.get("public"):
        public = read_shard(str(node["public"]), like=data)
    elif resolved.experiment.data.public:
        raise ConfigError("the experiment has a public share: name it with --public npz:FILE")
    test = read_shard(str(node["test"]), part="test", like=data) if node.get("test") else nothing
    train = tuple(data if device == number else nothing for device in range(resolved.devices))
    return Shares(train=train, public=public, held=None, test=test, tests=None)


def _note(node: Mapping[str, Any], line: Mapping[str, Any]) -> None:
    """Adds a line about a piece of work to the device's own record, where it has a folder."""
    if node.get("store"):
        folder = Path(str(node["store"]))
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "work.jsonl").open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(dict(line)) + "\n")


client_app = make_client_app(_hello, _work, _note)
