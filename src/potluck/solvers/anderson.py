"""Anderson acceleration, type II, sample by sample.

From the newest n pairs (z_i, f(z_i)) with g_i = f(z_i) - z_i and the Gram matrix H = G Gᵀ of the g_i:

    H ← H + ridge · trace(H)/n · I,   a = H⁻¹1 / (1ᵀH⁻¹1),   z_{k+1} = Σ a_i [ β f(z_i) + (1 - β) z_i ]

The ridge is relative to trace(H), so that rescaling the activations does not change the result. The first two steps
are plain. A sample whose mix cannot be trusted takes one plain step and starts its history anew at the newest pair.

Source: D. G. Anderson, *Iterative procedures for nonlinear integral equations*, J. ACM 12 (1965).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from potluck.solvers.options import demand, require_integer

WARM_UP = 2
LEAST_CHANGE = 1e-6
"""A mix must change the squared residual by at least this part of it. Where all residuals are equal it cannot: H is
singular but for its ridge, and averaging old iterates would only fall behind the plain step."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AndersonState:
    """The newest pairs, oldest first, at most ``history`` of them.

    ``f_BD`` and ``g_BD`` hold one (B, D) tensor a pair; ``gram_Bnn`` (float64) holds their products g_i · g_j;
    ``usable_B`` says how many of the newest pairs a sample may use; ``residual_B`` is that of the newest pair.
    """

    steps: int
    f_BD: tuple[Tensor, ...]
    g_BD: tuple[Tensor, ...]
    gram_Bnn: Tensor
    usable_B: Tensor
    residual_B: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Anderson:
    """Anderson acceleration over the newest ``history`` evaluations; worth its cost from five evaluations upwards.

    ``damping`` is β; a residual above ``growth`` times the one before counts as a failed mix.
    """

    history: int = 5
    ridge: float = 1e-6
    damping: float = 1.0
    growth: float = 2.0

    def __post_init__(self) -> None:
        require_integer("history", self.history, 1, 50)
        demand(0 <= self.ridge < float("inf"), "ridge", self.ridge, "a number >= 0 (relative; 1e-6 is a good start)")
        demand(0 < self.damping <= 1, "damping", self.damping, "0 < damping <= 1")
        demand(self.growth > 1, "growth", self.growth, "a number > 1 (2 is a good start)")

    def init(self, z: Tensor) -> AndersonState:
        """The state without any pair."""
        batch = z.shape[0]
        return AndersonState(
            steps=0,
            f_BD=(),
            g_BD=(),
            gram_Bnn=z.new_zeros(batch, 0, 0, dtype=torch.float64),
            usable_B=z.new_zeros(batch, dtype=torch.int64),
            residual_B=z.new_full((batch,), torch.inf, dtype=torch.float32),
        )

    def step(self, state: AndersonState, z: Tensor, f_z: Tensor, residual_B: Tensor) -> tuple[Tensor, AndersonState]:
        """The mixed iterate, or f(z) in the warm-up and for samples that fall back."""
        fails_B = residual_B > self.growth * state.residual_B
        f_BD = f_z.flatten(1)
        state = self._push(state, f_BD, f_BD - z.flatten(1), residual_B)
        if state.steps <= WARM_UP:
            return f_z, _restart(state, fails_B)
        a_Bn, sound_B = _weights(state.gram_Bnn, state.usable_B, self.ridge)
        fails_B = fails_B | ~sound_B
        mixed = self._mix(state, a_Bn.to(z.dtype)).reshape(z.shape)
        plain = fails_B.reshape(-1, *[1] * (z.ndim - 1))
        return torch.where(plain, f_z, mixed), _restart(state, fails_B)

    def _push(self, state: AndersonState, f_BD: Tensor, g_BD: Tensor, residual_B: Tensor) -> AndersonState:
        keep = self.history - 1
        first = max(0, len(state.g_BD) - keep)
        old_f, old_g = state.f_BD[first:], state.g_BD[first:]
        n = len(old_g) + 1
        # Only the newest row of the Gram matrix is new: n products instead of n².
        row_Bn = torch.stack([(g * g_BD).sum(1, dtype=torch.float64) for g in (*old_g, g_BD)], dim=1)
        gram_Bnn = row_Bn.new_empty(f_BD.shape[0], n, n)
        gram_Bnn[:, :-1, :-1] = state.gram_Bnn[:, first:, first:]
        gram_Bnn[:, -1, :] = gram_Bnn[:, :, -1] = row_Bn
        return AndersonState(
            steps=state.steps + 1,
            f_BD=(*old_f, f_BD),
            g_BD=(*old_g, g_BD),
            gram_Bnn=gram_Bnn,
            usable_B=(state.usable_B + 1).clamp(max=n),
            residual_B=residual_B,
        )

    def _mix(self, state: AndersonState, a_Bn: Tensor) -> Tensor:
        mixed_BD = torch.zeros_like(state.f_BD[0])
        for a_B, f_BD, g_BD in zip(a_Bn.unbind(1), state.f_BD, state.g_BD, strict=True):
            mixed_BD = torch.addcmul(mixed_BD, a_B[:, None], f_BD)
            if self.damping != 1:  # β f + (1 - β) z = f - (1 - β) g
                mixed_BD = torch.addcmul(mixed_BD, a_B[:, None], g_BD, value=self.damping - 1)
        return mixed_BD


def _weights(gram_Bnn: Tensor, usable_B: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """The weights a (B, n), zero where they cannot be trusted, and for which samples they can (B,)."""
    n = gram_Bnn.shape[1]
    usable_Bn = torch.arange(n, 0, -1, device=usable_B.device) <= usable_B[:, None]
    one_Bn = usable_Bn.to(gram_Bnn.dtype)
    H_Bnn = gram_Bnn * one_Bn[:, :, None] * one_Bn[:, None, :]
    mean_B = H_Bnn.diagonal(dim1=1, dim2=2).sum(1) / usable_B
    # In units of the mean diagonal the ridge is a plain number; the unused rows become those of the identity.
    H_Bnn = H_Bnn / mean_B[:, None, None]
    solved_Bn, info_B = torch.linalg.solve_ex(H_Bnn + torch.diag_embed(ridge * one_Bn + (1 - one_Bn)), one_Bn)
    a_Bn = solved_Bn / solved_Bn.sum(1, keepdim=True)
    predicted_B = torch.einsum("bi,bij,bj->b", a_Bn, H_Bnn, a_Bn)
    newest_B = H_Bnn[:, -1, -1]
    mixes_B = (predicted_B - newest_B).abs() > LEAST_CHANGE * newest_B  # false for NaN, hence for residuals of zero
    sound_B = (info_B == 0) & torch.isfinite(a_Bn).all(1) & mixes_B
    return torch.where(sound_B[:, None], a_Bn, 0.0), sound_B


def _restart(state: AndersonState, fails_B: Tensor) -> AndersonState:
    return AndersonState(
        steps=state.steps,
        f_BD=state.f_BD,
        g_BD=state.g_BD,
        gram_Bnn=state.gram_Bnn,
        usable_B=state.usable_B.masked_fill(fails_B, 1),
        residual_B=state.residual_B,
    )
