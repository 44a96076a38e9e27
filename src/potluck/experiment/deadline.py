"""A deadline that a tier cannot meet is refused before the run."""

from __future__ import annotations

from potluck.core import spec
from potluck.core.errors import ConfigError
from potluck.core.types import Device
from potluck.engines.federation import Checkpoint
from potluck.engines.peer_round import spec_of_updates
from potluck.experiment.prepare import Prepared
from potluck.fleet import link
from potluck.methods.protocol import deployed
from potluck.training.flops import training_flops


def require_deadline(ready: Prepared, first: Checkpoint) -> None:
    """Raises ConfigError naming each tier of which no device can be done by ``fleet.deadline_s``.

    What is certain is counted: the message down, the least that a reply can hold, and one forward and backward pass of
    the tier's net over the smallest share of the tier, ``train.epochs`` times.
    """
    fleet, lines = ready.federation.fleet, []
    for tier in ready.resolved.tiers:
        there = (device for device in fleet.devices if device.tier == tier)
        device = min(there, key=lambda found: len(ready.shares.train[found.id]))
        seconds, told = _least(ready, device, first)
        if seconds > fleet.deadline_s:
            lines.append(f"tier {tier} needs {seconds:.0f} s at the least ({told})")
    if lines:
        raise ConfigError(
            f"fleet.deadline_s = {fleet.deadline_s:g}: {'; '.join(lines)}; raise it, or give the tier less to send or "
            "to do"
        )


def _least(ready: Prepared, device: Device, first: Checkpoint) -> tuple[float, str]:
    federation, method = ready.federation, ready.federation.method
    net = deployed(method, None if method.traits.personal else first.state, None, device)
    if method.traits.peers:
        others = len(federation.fleet.devices) - 1
        up_bytes = down_bytes = others * spec.extent(spec_of_updates(federation, device, 1))[0]
    else:
        context, messages = federation.server_context(1), federation.messages
        down_bytes = len(messages.write_down(method.broadcast(first.state, device, context), 1)[0])
        up_bytes = spec.extent(messages.up.respec(method.update_spec(first.state, device, context)))[0]
    samples = len(ready.shares.train[device.id]) * ready.resolved.epochs[device.tier]
    flops = training_flops(net, ready.shares.inputs) * samples
    parts = {
        f"{down_bytes:,} bytes down": link.down_seconds(device, down_bytes),
        f"{flops / 1e9:.3g} GFLOPs": link.work_seconds(device, flops),
        f"{up_bytes:,} bytes up": link.up_seconds(device, up_bytes),
    }
    return sum(parts.values()), ", ".join(f"{what} {seconds:.1f} s" for what, seconds in parts.items())
