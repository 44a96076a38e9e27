"""A deadline that a tier cannot meet is refused before the run."""

from __future__ import annotations

from potluck.core import spec
from potluck.core.errors import ConfigError
from potluck.core.types import Device
from potluck.data.shard import Shares
from potluck.engines.course import Course, Snapshot
from potluck.engines.peers import spec_of_posts
from potluck.experiment.config import Experiment
from potluck.fleet import link
from potluck.methods.protocol import deployed
from potluck.models.flops import training_flops


def demand_deadline(experiment: Experiment, course: Course, shares: Shares, first: Snapshot) -> None:
    """Raises ConfigError naming each tier of which no device can be done by ``fleet.deadline_s``.

    What is certain is counted: the message down, the least that a reply can hold, and one forward and backward pass of
    the tier's net over the smallest share of the tier, ``train.epochs`` times.
    """
    deadline_s, lines = course.fleet.deadline_s, []
    for tier in experiment.fleet.tier:
        device = min(
            (found for found in course.fleet.devices if found.tier == tier.name),
            key=lambda found: len(shares.train[found.id]),
        )
        seconds, told = _least(experiment, course, device, shares, first)
        if seconds > deadline_s:
            lines.append(f"tier {tier.name} needs {seconds:.0f} s at the least ({told})")
    if lines:
        raise ConfigError(
            f"fleet.deadline_s = {deadline_s:g}: {'; '.join(lines)}; raise it, or give the tier less to send or to do"
        )


def _least(
    experiment: Experiment, course: Course, device: Device, shares: Shares, first: Snapshot
) -> tuple[float, str]:
    method, desk = course.method, course.desk(1)
    net = deployed(method, None if method.traits.personal else first.state, None, device)
    if method.traits.peers:
        up_bytes = down_bytes = (len(course.fleet.devices) - 1) * spec.extent(spec_of_posts(course, device, 1))[0]
    else:
        down_bytes = len(course.letters.write_down(method.cast(first.state, device, desk), 1)[0])
        up_bytes = spec.extent(course.letters.up.respec(method.expect(first.state, device, desk)))[0]
    epochs = experiment.train.epochs
    passes = epochs[device.tier] if isinstance(epochs, dict) else epochs
    flops = training_flops(net, shares.test.shape) * len(shares.train[device.id]) * passes
    parts = {
        f"{down_bytes:,} bytes down": link.down_seconds(device, down_bytes),
        f"{flops / 1e9:.3g} GFLOPs": link.work_seconds(device, flops),
        f"{up_bytes:,} bytes up": link.up_seconds(device, up_bytes),
    }
    return sum(parts.values()), ", ".join(f"{what} {seconds:.1f} s" for what, seconds in parts.items())
