"""The truncated singular value decomposition, by the cheapest of three paths.

    M ≈ P diag(s) Qᵀ,   P: (m, r),  s: (r,),  Q: (n, r),   singular values in descending order

- *exact*: LAPACK on the matrix itself, for small matrices and for float64 input.
- *Gram*: the eigenvectors of MᵀM (or M Mᵀ, the smaller) in float64. Squaring costs half the digits, and half of float64
  is what float32 has: for float32 input nothing is lost.
- *randomised*: Halko, Martinsson, Tropp 2011 (arXiv 0909.4061, algorithm 4.4) where only a leading part is wanted and
  the caller gives a generator. The usual 8 extra columns and 2 power iterations leave up to 3 % of excess error on a
  flat spectrum (a Gaussian matrix, as at the start of training); 4 iterations and r/4 columns leave less than 1 %.

Equal input gives equal output: signs are fixed, and the random path draws from the caller's generator alone. On the
Gram path the product of the factors is M projected on the span of Q (or P), so it is right even where tiny singular
values are not. All work stands under the part "svd" of the meter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from potluck.core import meter, tree
from potluck.core.errors import TrainingError

Energy = Literal["squared", "plain"]

SMALL = 32
"""Up to this smaller side LAPACK needs no help."""
LEAST_EXTRA_COLUMNS = 8
POWER_ITERATIONS = 4
RANDOMISED_SHARE = 4
"""Randomised: ranks up to 1/4 of the smaller side, and sides within a factor of 4; else Gram is cheaper."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Svd:
    """The leading part of a decomposition: ``p`` (m, k), ``s`` (k,) descending, ``q`` (n, k).

    ``total`` is ‖M‖²_F; ``complete`` says that no singular value is missing.
    """

    p: Tensor
    s: Tensor
    q: Tensor
    total: float
    complete: bool

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """(U, V) with U V the best approximation of this rank: U = P √S (m, r), V = √S Qᵀ (r, n), both contiguous."""
        assert 1 <= rank <= self.s.numel(), f"rank {rank} of {self.s.numel()}"
        root_R = self.s[:rank].sqrt()
        return (self.p[:, :rank] * root_R).contiguous(), (self.q[:, :rank] * root_R).T.contiguous()

    def truncated(self, rank: int) -> Tensor:
        """T_r(M), (m, n)."""
        u_MR, v_RN = self.factors(rank)
        return u_MR @ v_RN

    def rank(self, share: float, energy: Energy = "squared") -> int:
        """The least rank, at least 1, whose singular values hold ``share`` of the energy: Σσ² or, "plain", Σσ."""
        assert self.complete, "the energy rule needs every singular value"
        return energy_rank(self.s, share, energy)


def energy_rank(s_K: Tensor, share: float, energy: Energy = "squared") -> int:
    """r(p) = min { r >= 1 : Σ_{i<=r} e_i >= p · Σ e_i }, e = σ² ("squared") or σ ("plain"); 1 for a zero matrix."""
    e_K = s_K.double()
    held_K = (e_K.square() if energy == "squared" else e_K).cumsum(0)
    short = int((held_K < share * held_K[-1]).sum())
    return min(short + 1, s_K.numel())


def decompose(
    matrix_MN: Tensor, name: str, *, rank: int | None = None, generator: torch.Generator | None = None
) -> Svd:
    """The decomposition of ``matrix_MN`` up to ``rank`` (None: complete), in float32 or better.

    One call with the largest rank serves every smaller one. ``generator`` allows the randomised path, whose error is
    within 1 % of the best; without one the result is the best approximation. Raises TrainingError, naming the
    layer ``name``, if an entry is not finite.
    """
    if not tree.finite(matrix_MN):
        raise TrainingError(f'layer "{name}": its weights are not finite, so it has no SVD; lower train.lr')
    with meter.part("svd"), torch.no_grad():
        m_MN = matrix_MN.detach()
        m_MN = m_MN if m_MN.dtype == torch.float64 else m_MN.float()
        side = min(m_MN.shape)
        rank = side if rank is None else min(rank, side)
        p_MK, s_K, q_NK = _leading(m_MN, rank, generator)
        sign_K = _signs(p_MK)
        total = float(torch.linalg.vector_norm(m_MN, dtype=torch.float64).square())
        return Svd(p=p_MK * sign_K, s=s_K, q=q_NK * sign_K, total=total, complete=rank == side)


def decompose_product(a_MR: Tensor, b_RN: Tensor, name: str) -> Svd:
    """The decomposition of A B, never formed: QR of A and of Bᵀ, then an SVD of the small core between them.

    Exact, and cheap for R well below m and n: so too for a sum, whose factors stand side by side. Float64 inside.
    Raises TrainingError, naming the layer ``name``, if an entry is not finite.
    """
    if not (tree.finite(a_MR) and tree.finite(b_RN)):
        raise TrainingError(f'layer "{name}": its factors are not finite, so they have no SVD; lower train.lr')
    with meter.part("svd"), torch.no_grad():
        left_MK, upper_KR = torch.linalg.qr(a_MR.double())
        right_NL, lower_LR = torch.linalg.qr(b_RN.double().T)
        core_KL = upper_KR @ lower_LR.T
        p_KC, s_C, q_LC = _exact(core_KL, min(core_KL.shape))
        p_MC, q_NC = left_MK @ p_KC, right_NL @ q_LC
        sign_C, kind = _signs(p_MC), a_MR.dtype
        total = float(s_C.square().sum())
        return Svd(p=(p_MC * sign_C).to(kind), s=s_C.to(kind), q=(q_NC * sign_C).to(kind), total=total, complete=True)


def _leading(m_MN: Tensor, rank: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
    side, longer = min(m_MN.shape), max(m_MN.shape)
    if side <= SMALL:
        return _exact(m_MN, rank)
    if generator is not None and RANDOMISED_SHARE * rank <= side and longer < RANDOMISED_SHARE * side:
        return _randomised(m_MN, rank, generator)
    return _exact(m_MN, rank) if m_MN.dtype == torch.float64 else _gram(m_MN, rank)


def _signs(p_MK: Tensor) -> Tensor:
    """±1 per column, such that the entry of largest magnitude (the first of equals) becomes positive."""
    top_K = p_MK.gather(0, p_MK.abs().argmax(0, keepdim=True))[0]
    return torch.where(top_K < 0, -1.0, 1.0).to(p_MK.dtype)


def _exact(m_MN: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    p_MK, s_K, qt_KN = torch.linalg.svd(m_MN, full_matrices=False)
    return p_MK[:, :rank], s_K[:rank], qt_KN[:rank].T


def _gram(m_MN: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Eigenvectors q of the Gram matrix of the smaller side; then σ = ‖M q‖ and p = M q / σ."""
    if m_MN.shape[0] < m_MN.shape[1]:
        q_NK, s_K, p_MK = _gram(m_MN.T, rank)
        return p_MK, s_K, q_NK
    d_MN = m_MN.double()
    _, q_NN = torch.linalg.eigh(d_MN.T @ d_MN)
    q_NK = q_NN.flip(1)[:, :rank]
    image_MK = d_MN @ q_NK
    s_K = torch.linalg.vector_norm(image_MK, dim=0)
    # A vanishing singular value has no direction on this side: its column is zero, and so is its part of the product.
    p_MK = image_MK / torch.where(s_K > 0, s_K, 1.0)
    return p_MK.to(m_MN.dtype), s_K.to(m_MN.dtype), q_NK.to(m_MN.dtype)


def _randomised(m_MN: Tensor, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    columns = rank + max(LEAST_EXTRA_COLUMNS, rank // 4)
    omega_NC = torch.randn((m_MN.shape[1], columns), generator=generator, dtype=m_MN.dtype).to(m_MN.device)
    y_MC, _ = torch.linalg.qr(m_MN @ omega_NC)
    for _ in range(POWER_ITERATIONS):
        z_NC, _ = torch.linalg.qr(m_MN.T @ y_MC)
        y_MC, _ = torch.linalg.qr(m_MN @ z_NC)
    inner = _gram if m_MN.dtype == torch.float32 else _exact
    p_CK, s_K, q_NK = inner(y_MC.T @ m_MN, rank)
    return y_MC @ p_CK, s_K, q_NK
