"""Low-rank layers: a weight matrix M ≈ U V, run as two small layers with nothing between them.

Yao et al., *FedHM*, arXiv 2111.14655, and Qiao et al., *Dual-Side Low-Rank Compression*, arXiv 2104.12416, share it.

    linear (O, I)                     M: (O, I)           I -> r, then r -> O
    embedding (V, E)                  M: (V, E)           rows of r numbers, then r -> E
    conv (O, I, k)                    M: (O, I·k)         k to r channels, then 1 to O
    conv (O, I, kh, kw), "ok_ik"      M: (O·kh, I·kw)     1×kw to r channels, then kh×1 to O; axes moved first
    conv (O, I, kh, kw), "o_ikk"      M: (O, I·kh·kw)     kh×kw to r channels, then 1×1 to O

U: (m, r) and V: (r, n) are the parameters ``<layer>.u`` and ``<layer>.v``; a bias stays ``<layer>.bias``. Which layers
stay full is decided in ``keep_full.py``, at which rank it pays in ``matrix.py``.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potluck.lowrank.layers import Layer, candidates
from potluck.lowrank.matrix import Flatten, break_even, from_matrix, matrix_shape, to_matrix
from potluck.lowrank.svd import Energy, decompose


class LowRankLinear(nn.Module):
    """``Linear`` with M = U V; it starts at zero, for factors to come."""

    def __init__(self, full: nn.Linear, rank: int, flatten: Flatten) -> None:
        nn.Module.__init__(self)
        self.flatten: Flatten = flatten
        self.shape = tuple(full.weight.shape)
        self.in_features, self.out_features = full.in_features, full.out_features  # for nets that read them
        self.u = nn.Parameter(full.weight.new_zeros(self.shape[0], rank))
        self.v = nn.Parameter(full.weight.new_zeros(rank, self.shape[1]))
        self.bias = full.bias

    def forward(self, x_BI: Tensor) -> Tensor:
        return F.linear(F.linear(x_BI, self.v), self.u, self.bias)

    def full(self) -> nn.Linear:
        """A layer of the ordinary kind with all but the weight copied."""
        return nn.Linear(self.shape[1], self.shape[0], bias=self.bias is not None)


class LowRankConv2d(nn.Module):
    """``Conv2d`` with M = U V: V is the first convolution, U the second. It starts at zero, for factors to come."""

    def __init__(self, full: nn.Conv2d, rank: int, flatten: Flatten) -> None:
        nn.Module.__init__(self)
        rows, columns = matrix_shape(full.weight.shape, flatten)
        self.flatten: Flatten = flatten
        self.shape = tuple(full.weight.shape)
        self.in_channels, self.out_channels = full.in_channels, full.out_channels  # for nets that read them
        self.stride = _pair(full.stride)
        self.padding = full.padding if isinstance(full.padding, str) else _pair(full.padding)
        self.dilation = _pair(full.dilation)
        self.u = nn.Parameter(full.weight.new_zeros(rows, rank))
        self.v = nn.Parameter(full.weight.new_zeros(rank, columns))
        self.bias = full.bias

    def forward(self, x_BIHW: Tensor) -> Tensor:
        outputs, inputs, high, wide = self.shape
        rank = self.v.shape[0]
        if self.flatten == "o_ikk":
            first_RIHW = self.v.view(rank, inputs, high, wide)
            z_BRHW = F.conv2d(x_BIHW, first_RIHW, None, self.stride, self.padding, self.dilation)
            return F.conv2d(z_BRHW, self.u[:, :, None, None], self.bias)
        (down, right), (tall, broad) = self.stride, self.dilation
        above: str | tuple[int, int]
        beside: str | tuple[int, int]
        if isinstance(self.padding, str):
            above = beside = self.padding
        else:
            above, beside = (self.padding[0], 0), (0, self.padding[1])
        first_RI1W = self.v.view(rank, inputs, 1, wide)
        # Contiguous, because the plain kernel (taken for a batch of one, among others) wants its gradient to be so.
        second_ORH1 = self.u.view(outputs, high, rank).permute(0, 2, 1)[..., None].contiguous()
        z_BRHW = F.conv2d(x_BIHW, first_RI1W, None, (1, right), beside, (1, broad))
        return F.conv2d(z_BRHW, second_ORH1, self.bias, (down, 1), above, (tall, 1))

    def full(self) -> nn.Conv2d:
        """A layer of the ordinary kind with all but the weight copied."""
        outputs, inputs, high, wide = self.shape
        return nn.Conv2d(
            inputs, outputs, (high, wide), self.stride, self.padding, self.dilation, bias=self.bias is not None
        )


class LowRankConv1d(nn.Module):
    """``Conv1d`` with M = U V: V is the first convolution, U a second one of a single step."""

    def __init__(self, full: nn.Conv1d, rank: int, flatten: Flatten) -> None:
        nn.Module.__init__(self)
        rows, columns = matrix_shape(full.weight.shape, flatten)
        self.flatten: Flatten = flatten
        self.shape = tuple(full.weight.shape)
        self.in_channels, self.out_channels = full.in_channels, full.out_channels  # for nets that read them
        self.stride, self.padding, self.dilation = full.stride, full.padding, full.dilation
        self.u = nn.Parameter(full.weight.new_zeros(rows, rank))
        self.v = nn.Parameter(full.weight.new_zeros(rank, columns))
        self.bias = full.bias

    def forward(self, x_BIS: Tensor) -> Tensor:
        first_RIK = self.v.view(self.v.shape[0], *self.shape[1:])
        z_BRS = F.conv1d(x_BIS, first_RIK, None, self.stride, self.padding, self.dilation)
        return F.conv1d(z_BRS, self.u[:, :, None], self.bias)

    def full(self) -> nn.Conv1d:
        """A layer of the ordinary kind with all but the weight copied."""
        outputs, inputs, wide = self.shape
        bias = self.bias is not None
        padding = self.padding if isinstance(self.padding, str) else self.padding[0]
        return nn.Conv1d(inputs, outputs, wide, self.stride[0], padding, self.dilation[0], bias=bias)


class LowRankEmbedding(nn.Module):
    """``Embedding`` with M = U V: a row of U for each token, and V for all."""

    def __init__(self, full: nn.Embedding, rank: int, flatten: Flatten) -> None:
        nn.Module.__init__(self)
        self.flatten: Flatten = flatten
        self.shape = tuple(full.weight.shape)
        self.num_embeddings, self.embedding_dim = full.num_embeddings, full.embedding_dim
        self.u = nn.Parameter(full.weight.new_zeros(self.shape[0], rank))
        self.v = nn.Parameter(full.weight.new_zeros(rank, self.shape[1]))
        self.bias: None = None

    def forward(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self.u) @ self.v

    def full(self) -> nn.Embedding:
        """A layer of the ordinary kind."""
        return nn.Embedding(self.shape[0], self.shape[1])


LowRank = LowRankLinear | LowRankConv1d | LowRankConv2d | LowRankEmbedding


def _made(full: nn.Module, name: str, rank: int, flatten: Flatten) -> LowRank:
    """The low-rank layer for a full one, at zero."""
    if isinstance(full, nn.Linear):
        return LowRankLinear(full, rank, flatten)
    if isinstance(full, nn.Conv1d):
        return LowRankConv1d(full, rank, flatten)
    if isinstance(full, nn.Embedding):
        return LowRankEmbedding(full, rank, flatten)
    assert isinstance(full, nn.Conv2d), f"{name}: a {type(full).__name__}"
    return LowRankConv2d(full, rank, flatten)


def _pair(of: tuple[int, ...]) -> tuple[int, int]:
    return of[0], of[1]


def low_rank(net: nn.Module, ranks: Mapping[str, int], flatten: Flatten = "ok_ik") -> nn.Module:
    """A copy of ``net`` whose layers named in ``ranks`` are low-rank, with factors of zero: for those who load them."""
    made = copy.deepcopy(net)
    for name, rank in ranks.items():
        made = _replace(made, name, _made(made.get_submodule(name), name, rank, flatten))
    return made


def factorise(
    net: nn.Module,
    ranks: Mapping[str, int],
    flatten: Flatten = "ok_ik",
    *,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """A copy of ``net`` whose layers named in ``ranks`` are low-rank, from the balanced spectral start.

    U = P_r √S_r and V = √S_r Q_rᵀ. Ranks above min(m, n) are cut to it. Raises TrainingError, naming the layer, if a
    weight is not finite.
    """
    bounds = {name: min(matrix_shape(_weight(net, name).shape, flatten)) for name in ranks}
    made = low_rank(net, {name: min(rank, bounds[name]) for name, rank in ranks.items()}, flatten)
    for name, layer in low_rank_layers(made).items():
        if name in ranks:
            rank = layer.u.shape[1]
            found = decompose(to_matrix(_weight(net, name), flatten), name, rank=rank, generator=generator)
            _fill(layer, *found.factors(rank))
    return made


def compact(net: nn.Module, share: float, energy: Energy = "squared", flatten: Flatten = "o_ikk") -> nn.Module:
    """A copy of ``net`` to deploy: each layer at the least rank that holds ``share`` of its energy, where that is
    cheaper than the full layer; all others as they are."""
    matrices = {name: to_matrix(layer.weight, flatten) for name, layer in candidates(net).items()}
    found = {name: decompose(matrix_MN, name) for name, matrix_MN in matrices.items()}
    ranks = {name: one.rank(share, energy) for name, one in found.items()}
    cheaper = {name: rank for name, rank in ranks.items() if rank <= break_even(*matrices[name].shape)}
    made = low_rank(net, cheaper, flatten)
    for name, layer in low_rank_layers(made).items():
        if name in cheaper:
            _fill(layer, *found[name].factors(cheaper[name]))
    return made


def recover(net: nn.Module) -> nn.Module:
    """A copy of ``net`` with each low-rank layer multiplied out into the full layer of the same name."""
    made = copy.deepcopy(net)
    for name, layer in low_rank_layers(made).items():
        full = layer.full().to(layer.u)
        with torch.no_grad():
            full.weight.copy_(from_matrix(layer.u @ layer.v, layer.shape, layer.flatten))
        if not isinstance(full, nn.Embedding):
            full.bias = layer.bias
        made = _replace(made, name, full)
    return made


def low_rank_layers(net: nn.Module) -> dict[str, LowRank]:
    """The low-rank layers of ``net`` by name."""
    return {name: layer for name, layer in net.named_modules() if isinstance(layer, LowRank)}


def with_factors(full: Mapping[str, Tensor], u: Mapping[str, Tensor], v: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a net with these factors, beside its tensors that stay full."""
    pairs = {f"{layer}.{part}": value for part, held in (("u", u), ("v", v)) for layer, value in held.items()}
    return {**full, **pairs}


def add_frobenius_gradient(net: nn.Module, strength: float) -> None:
    """Adds the gradient of (λ/2)·Σ ‖U V‖²_F over the low-rank layers: dU += λ U V Vᵀ, dV += λ Uᵀ U V. In place.

    Cheaper than autograd: the products are r × r, and M itself is never formed. λ = 0 changes nothing.
    """
    if strength == 0:
        return
    for layer in low_rank_layers(net).values():
        u_MR, v_RN = layer.u.detach(), layer.v.detach()
        _accumulate(layer.u, u_MR @ (v_RN @ v_RN.T), strength)
        _accumulate(layer.v, (u_MR.T @ u_MR) @ v_RN, strength)


def add_decay_gradient(net: nn.Module, strength: float) -> None:
    """Adds the gradient of (strength/2)·Σ (‖U‖² + ‖V‖²) over the low-rank layers; 0 changes nothing. In place."""
    for layer in low_rank_layers(net).values() if strength else ():
        _accumulate(layer.u, layer.u.detach(), strength)
        _accumulate(layer.v, layer.v.detach(), strength)


def _accumulate(weight: nn.Parameter, gradient: Tensor, strength: float) -> None:
    if weight.grad is None:
        weight.grad = gradient * strength
    else:
        weight.grad.add_(gradient, alpha=strength)


def _weight(net: nn.Module, name: str) -> Tensor:
    layer = net.get_submodule(name)
    assert isinstance(layer, Layer), f"{name}: a {type(layer).__name__}"
    return layer.weight


def _fill(layer: LowRank, u_MR: Tensor, v_RN: Tensor) -> None:
    with torch.no_grad():
        layer.u.copy_(u_MR)
        layer.v.copy_(v_RN)


def _replace(net: nn.Module, name: str, layer: nn.Module) -> nn.Module:
    """``net`` with the module ``name`` replaced; a net that is itself the layer becomes the new one."""
    if not name:
        return layer
    parent, _, last = name.rpartition(".")
    setattr(net.get_submodule(parent), last, layer)
    return net
