"""The normalisation layers that the nets share."""

from __future__ import annotations

from torch import nn

from potluck.core.errors import ModelError

GROUP_CHANNELS, ROW_CHANNELS = 4, 16
NORMS = ("group", "batch", "batch_stat", "none")


BATCH_NORMS = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d}
"""By the dimensions behind the channels: none of rows, one of series, two of images."""


def make_norm(kind: str, channels: int, dims: int = 2) -> nn.Module:
    """The normalisation of ``channels`` channels, behind which stand so many dimensions.

    ``group``: GroupNorm in groups of 4 channels, so that a width slice keeps whole groups (one group below 4 channels);
    of rows in groups of 16, since a channel is one number there, and the deviation of four is mostly chance.
    ``batch``: BatchNorm with running statistics; ``batch_stat``: BatchNorm without them; ``none``: the identity.
    """
    if kind == "group":
        each = GROUP_CHANNELS if dims else ROW_CHANNELS
        groups = max(1, channels // each) if channels % each == 0 else 1
        return nn.GroupNorm(groups, channels)
    if kind == "batch":
        return BATCH_NORMS[dims](channels)
    if kind == "batch_stat":
        return BATCH_NORMS[dims](channels, track_running_stats=False)
    if kind == "none":
        return nn.Identity()
    raise ModelError(f"model.norm = {kind!r}: expected one of {', '.join(NORMS)}")
