"""``bag``: the mean of the embeddings of a text's tokens, then a hidden layer: fast, and hard to beat on topics.

After fastText (A. Joulin et al., *Bag of Tricks for Efficient Text Classification*, 2016, arXiv 1607.01759), without
n-grams and with a hidden layer.
"""

from __future__ import annotations

from torch import Tensor, nn

from potluck.core.types import Inputs
from potluck.nets.net import Net
from potluck.nets.recurrent import mean_over_steps, present

WIDTH = 64


class BagNet(nn.Module):
    """Outputs (B, outputs) of tokens (B, S)."""

    def __init__(self, inputs: Inputs, outputs: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(inputs.vocabulary, WIDTH)
        self.dense = nn.Linear(WIDTH, WIDTH)
        self.relu = nn.ReLU()
        self.head = nn.Linear(WIDTH, outputs)

    def forward(self, x_BS: Tensor) -> Tensor:
        z_BH = mean_over_steps(self.embedding(x_BS), present(x_BS))
        out_BN: Tensor = self.head(self.relu(self.dense(z_BH)))
        return out_BN


NETS = {
    "bag": Net(
        line="the mean of embeddings of 64, a hidden layer; tokens; no norms",
        make=lambda inputs, outputs, norm: BagNet(inputs, outputs),
        inputs=("tokens",),
    )
}
