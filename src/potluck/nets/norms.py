"""The normalisation layers that the nets share."""

from __future__ import annotations

from torch import nn

from potluck.core.errors import ModelError

GROUP_CHANNELS = 4
NORMS = ("group", "batch", "batch_stat", "none")


def make_norm(kind: str, channels: int) -> nn.Module:
    """The normalisation of ``channels`` channels.

    ``group``: GroupNorm in groups of 4 channels, so that a width slice keeps whole groups (one group below 4 channels).
    ``batch``: BatchNorm with running statistics; ``batch_stat``: BatchNorm without them; ``none``: the identity.
    """
    if kind == "group":
        groups = max(1, channels // GROUP_CHANNELS) if channels % GROUP_CHANNELS == 0 else 1
        return nn.GroupNorm(groups, channels)
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "batch_stat":
        return nn.BatchNorm2d(channels, track_running_stats=False)
    if kind == "none":
        return nn.Identity()
    raise ModelError(f"model.norm = {kind!r}: expected one of {', '.join(NORMS)}")
