"""``transformer-s``: two layers of self-attention over a text or a series, from scratch.

A. Vaswani et al., *Attention Is All You Need*, 2017, arXiv 1706.03762; norms before each part, learned positions, the
mean over what is there at the end. Queries, keys, values and the way out are linear layers of their own, so that
whatever is done to linear layers is done to them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potluck.core.types import Inputs
from potluck.nets.net import Net
from potluck.nets.recurrent import mean_over_steps, present

WIDTH, HEADS, LAYERS, HIDDEN = 64, 4, 2, 128


class Attention(nn.Module):
    """Self-attention of ``HEADS`` heads; (B, S, W)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, z_BSW: Tensor, there_BS1: Tensor) -> Tensor:
        query, key, value = (
            layer(z_BSW).unflatten(-1, (HEADS, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        # What is not there is looked at by nobody; where nothing is there, everything is, so that no row is empty.
        seen_BS = (there_BS1.squeeze(-1) > 0) | (there_BS1.sum(dim=(1, 2)) == 0)[:, None]
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=seen_BS[:, None, None, :])
        out_BSW: Tensor = self.out(found.transpose(1, 2).flatten(-2))
        return out_BSW


class TransformerBlock(nn.Module):
    """Attention, then a hidden layer, each beside a shortcut; (B, S, W)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width)
        self.norm2, self.dense1, self.dense2 = nn.LayerNorm(width), nn.Linear(width, HIDDEN), nn.Linear(HIDDEN, width)

    def forward(self, z_BSW: Tensor, there_BS1: Tensor) -> Tensor:
        z_BSW = z_BSW + self.attention(self.norm1(z_BSW), there_BS1)
        out_BSW: Tensor = z_BSW + self.dense2(F.gelu(self.dense1(self.norm2(z_BSW))))
        return out_BSW


class TransformerNet(nn.Module):
    """Outputs (B, outputs) of tokens (B, S) or series (B, S, channels)."""

    def __init__(self, inputs: Inputs, outputs: int) -> None:
        super().__init__()
        wide = inputs.vocabulary or inputs.shape[1]
        self.embedding = nn.Embedding(wide, WIDTH) if inputs.vocabulary else nn.Linear(wide, WIDTH)
        self.place = nn.Parameter(torch.randn(inputs.shape[0], WIDTH) * 0.02)
        self.blocks = nn.ModuleList(TransformerBlock(WIDTH) for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, outputs)

    def forward(self, x: Tensor) -> Tensor:
        there_BS1 = present(x)
        z_BSW = self.embedding(x) + self.place
        for block in self.blocks:
            z_BSW = block(z_BSW, there_BS1)
        out_BN: Tensor = self.head(mean_over_steps(self.norm(z_BSW), there_BS1))
        return out_BN


NETS = {
    "transformer-s": Net(
        line="two layers of self-attention, width 64, from scratch; tokens or series; layer norms",
        make=lambda inputs, outputs, norm: TransformerNet(inputs, outputs),
        inputs=("tokens", "series"),
    )
}
