"""Recurrent nets: a gated recurrent unit over a series or a text, and one that says what comes next.

K. Cho et al., *Learning Phrase Representations using RNN Encoder-Decoder*, 2014, arXiv 1406.1078, in torch's form:

    r = σ(W_r x + U_r h),  z = σ(W_z x + U_z h),  n = tanh(W_n x + r ∘ (U_n h)),  h ← n + z ∘ (h - n)

The six matrices stand in two linear layers, ``input`` and ``state``, row 3k + g being unit k of gate g (r, z, n): so
the first rows are the first units, and whatever is done to linear layers (low rank, width slices) is done to these.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from potluck.core.types import PADDING, Inputs
from potluck.nets.net import Net

GATES = 3
UNITS = 64
CHARACTER_WIDTH, CHARACTER_UNITS = 32, 128


class Gru(nn.Module):
    """The state after each step, (B, S, H), of series (B, S, I)."""

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        self.input = nn.Linear(inputs, GATES * units)
        self.state = nn.Linear(units, GATES * units)
        bound = units**-0.5
        for weight in self.parameters():
            nn.init.uniform_(weight, -bound, bound)

    def forward(self, x_BSI: Tensor) -> Tensor:
        x_BSHG = self.input(x_BSI).unflatten(-1, (-1, GATES))
        h_BH = torch.zeros_like(x_BSHG[:, 0, :, 0])
        states: list[Tensor] = []
        for x_BHG in x_BSHG.unbind(dim=1):
            own_BHG = self.state(h_BH).unflatten(-1, (-1, GATES))
            r_BH, z_BH = torch.sigmoid(x_BHG[..., :2] + own_BHG[..., :2]).unbind(dim=-1)
            n_BH = torch.tanh(x_BHG[..., 2] + r_BH * own_BHG[..., 2])
            h_BH = torch.lerp(n_BH, h_BH, z_BH)
            states.append(h_BH)
        return torch.stack(states, dim=1)


def present(x: Tensor) -> Tensor:
    """Which steps are there, float32 (B, S, 1): tokens other than padding, steps of a series that are not zero."""
    there_BS = x != PADDING if x.dim() == 2 else (x != 0).any(dim=2)
    return there_BS.unsqueeze(-1).to(torch.float32)


def mean_over_steps(z_BSH: Tensor, there_BS1: Tensor) -> Tensor:
    """The mean over the steps that are there, (B, H); zero where there are none."""
    there_BS1 = there_BS1.to(z_BSH.dtype)
    return (z_BSH * there_BS1).sum(dim=1) / there_BS1.sum(dim=1).clamp(min=1)


class GruNet(nn.Module):
    """Outputs (B, outputs) of series (B, S, channels) or tokens (B, S): the mean state, then a linear layer."""

    def __init__(self, inputs: Inputs, outputs: int) -> None:
        super().__init__()
        wide = UNITS if inputs.vocabulary else inputs.shape[1]
        self.embedding = nn.Embedding(inputs.vocabulary, wide) if inputs.vocabulary else nn.Identity()
        self.gru = Gru(wide, UNITS)
        self.head = nn.Linear(UNITS, outputs)

    def forward(self, x: Tensor) -> Tensor:
        out_BN: Tensor = self.head(mean_over_steps(self.gru(self.embedding(x)), present(x)))
        return out_BN


class NextGru(nn.Module):
    """What comes after each token, (B, S, outputs), of tokens (B, S)."""

    def __init__(self, inputs: Inputs, outputs: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(inputs.vocabulary, CHARACTER_WIDTH)
        self.gru = Gru(CHARACTER_WIDTH, CHARACTER_UNITS)
        self.head = nn.Linear(CHARACTER_UNITS, outputs)

    def forward(self, x_BS: Tensor) -> Tensor:
        out_BSN: Tensor = self.head(self.gru(self.embedding(x_BS)))
        return out_BSN


NETS = {
    "gru": Net(
        line="a gated recurrent unit of 64, its mean state; series or tokens; no norms",
        make=lambda inputs, outputs, norm: GruNet(inputs, outputs),
        inputs=("series", "tokens"),
    ),
    "char-gru": Net(
        line="what comes next in a text: embedding of 32, a gated recurrent unit of 128; no norms",
        make=lambda inputs, outputs, norm: NextGru(inputs, outputs),
        inputs=("tokens",),
        per_step=True,
    ),
}
