"""``tcn``: convolutions along time, each over twice as long a stretch as the one before.

After S. Bai, J. Z. Kolter, V. Koltun, *An Empirical Evaluation of Generic Convolutional and Recurrent Networks for
Sequence Modeling*, 2018, arXiv 1803.01271; not causal, as a whole series is seen, and with norms instead of dropout.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from potluck.core.types import Inputs
from potluck.nets.net import Net
from potluck.nets.norms import make_norm
from potluck.nets.recurrent import mean_over_steps, present

WIDTH = 64
DILATIONS = (1, 2, 4)


class TcnBlock(nn.Module):
    """A residual block of two convolutions of three steps that lie ``dilation`` apart; (B, C, S)."""

    def __init__(self, channels: int, dilation: int, norm: str) -> None:
        super().__init__()
        self.conv1 = _conv(channels, channels, dilation)
        self.norm1 = make_norm(norm, channels, dims=1)
        self.conv2 = _conv(channels, channels, dilation)
        self.norm2 = make_norm(norm, channels, dims=1)

    def forward(self, z_BCS: Tensor) -> Tensor:
        inner_BCS = F.relu(self.norm1(self.conv1(z_BCS)), inplace=True)
        return F.relu(z_BCS + self.norm2(self.conv2(inner_BCS)), inplace=True)


class TcnNet(nn.Module):
    """Outputs (B, outputs) of series (B, S, channels) or tokens (B, S)."""

    def __init__(self, inputs: Inputs, outputs: int, norm: str) -> None:
        super().__init__()
        wide = WIDTH if inputs.vocabulary else inputs.shape[1]
        self.embedding = nn.Embedding(inputs.vocabulary, wide) if inputs.vocabulary else nn.Identity()
        self.stem = nn.Sequential(_conv(wide, WIDTH, 1), make_norm(norm, WIDTH, dims=1), nn.ReLU(inplace=True))
        self.blocks = nn.Sequential(*(TcnBlock(WIDTH, dilation, norm) for dilation in DILATIONS))
        self.head = nn.Linear(WIDTH, outputs)

    def forward(self, x: Tensor) -> Tensor:
        z_BCS = self.blocks(self.stem(self.embedding(x).transpose(1, 2)))
        out_BN: Tensor = self.head(mean_over_steps(z_BCS.transpose(1, 2), present(x)))
        return out_BN


def _conv(channels: int, out: int, dilation: int) -> nn.Conv1d:
    return nn.Conv1d(channels, out, 3, padding=dilation, dilation=dilation, bias=False)


NETS = {
    "tcn": Net(
        line="convolutions along time, width 64, over 1, 2 and 4 steps; series or tokens",
        make=TcnNet,
        inputs=("series", "tokens"),
    )
}
