"""The truncated SVD: the energy rule, the three paths, signs and refusals."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from potluck.core import meter
from potluck.core.errors import TrainingError
from potluck.lowrank import svd
from potluck.lowrank.matrix import break_even
from potluck.lowrank.svd import decompose, energy_rank


def gaussian(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("share", "energy", "rank"),
    [
        (0.7, "squared", 1),
        (0.9, "squared", 2),
        (0.95, "squared", 3),
        (0.99, "squared", 4),
        (0.7, "plain", 2),
        (0.9, "plain", 4),
        (0.75, "plain", 2),
    ],
)
def test_energy_rule_in_closed_form(share: float, energy: svd.Energy, rank: int) -> None:
    assert energy_rank(torch.tensor([4.0, 2.0, 1.0, 1.0]), share, energy) == rank


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    share=st.floats(0.05, 0.999),
    decay=st.floats(0.3, 1.0),
    seed=st.integers(0, 99),
)
def test_truncation_error_is_bounded_and_the_rank_minimal(
    rows: int, columns: int, share: float, decay: float, seed: int
) -> None:
    m_MN = (gaussian(rows, columns, seed) * decay ** torch.arange(columns)).double()
    found = decompose(m_MN, "layer")
    rank, total = found.rank(share), float(m_MN.square().sum())
    lost = float((m_MN - found.truncated(rank)).square().sum())
    assert lost <= (1 - share) * total + 1e-9 * total
    if rank > 1:
        assert float(found.s[: rank - 1].square().sum()) < share * total * (1 + 1e-12)


@pytest.mark.parametrize(("rows", "columns"), [(20, 30), (64, 100), (100, 64), (90, 90), (40, 400)])
def test_the_truncation_is_the_best_of_its_rank(rows: int, columns: int) -> None:
    m_MN = gaussian(rows, columns)
    sigma_K = torch.linalg.svdvals(m_MN.double())
    found = decompose(m_MN, "layer")
    assert torch.allclose(found.s.double(), sigma_K, rtol=1e-5)
    for rank in (1, 7, min(rows, columns) - 1):
        lost = float((m_MN.double() - found.truncated(rank).double()).square().sum())
        assert lost == pytest.approx(float(sigma_K[rank:].square().sum()), rel=1e-4)


@pytest.mark.parametrize(("rows", "columns"), [(60, 90), (90, 60)])
def test_full_rank_gives_the_matrix_back(rows: int, columns: int) -> None:
    m_MN = gaussian(rows, columns)
    assert float((decompose(m_MN, "layer").truncated(60) - m_MN).abs().max()) < 1e-5


def test_gram_path_keeps_float32_accuracy_over_a_wide_spectrum() -> None:
    p, _ = torch.linalg.qr(gaussian(80, 80, 1).double())
    q, _ = torch.linalg.qr(gaussian(80, 80, 2).double())
    sigma = 10.0 ** torch.linspace(0, -6, 80, dtype=torch.float64)
    m_MN = ((p * sigma) @ q.T).float()
    _, s_K, _ = svd._gram(m_MN, 80)
    assert torch.allclose(s_K.double(), sigma, rtol=0.2, atol=1e-7)
    assert float((decompose(m_MN, "layer").truncated(80) - m_MN).abs().max()) < 1e-6


def test_the_random_path_is_within_one_percent_of_the_best() -> None:
    for rows, columns, rank in [(384, 384, 16), (384, 384, 96), (768, 384, 48)]:
        m_MN = gaussian(rows, columns)
        best = float(torch.linalg.svdvals(m_MN)[rank:].square().sum().sqrt())
        found = decompose(m_MN, "layer", rank=rank, generator=torch.Generator().manual_seed(1))
        error = float((m_MN - found.truncated(rank)).norm())
        assert not found.complete
        assert best * (1 - 1e-4) <= error <= 1.01 * best


def test_paths_are_chosen_by_shape_rank_and_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []
    for path in ("_exact", "_gram", "_randomised"):
        real = getattr(svd, path)
        monkeypatch.setattr(svd, path, lambda *given, _path=path, _real=real: taken.append(_path) or _real(*given))

    def path(m_MN: Tensor, rank: int, *, seeded: bool) -> str:
        taken.clear()
        svd._leading(m_MN, rank, torch.Generator().manual_seed(0) if seeded else None)
        return taken[0]

    assert path(gaussian(32, 500), 4, seeded=True) == "_exact"
    assert path(gaussian(80, 80), 20, seeded=True) == "_randomised"
    assert path(gaussian(80, 80), 20, seeded=False) == "_gram"
    assert path(gaussian(80, 80), 21, seeded=True) == "_gram"
    assert path(gaussian(80, 400), 4, seeded=True) == "_gram"
    assert path(gaussian(80, 80).double(), 21, seeded=True) == "_exact"


def test_equal_input_gives_equal_bits_and_the_generator_decides() -> None:
    m_MN = gaussian(100, 120)

    def draw(seed: int) -> Tensor:
        return decompose(m_MN, "layer", rank=8, generator=torch.Generator().manual_seed(seed)).p

    assert torch.equal(draw(3), draw(3))
    assert not torch.equal(draw(3), draw(4))
    assert torch.equal(decompose(m_MN, "layer").p, decompose(m_MN.clone(), "layer").p)


@pytest.mark.parametrize("shape", [(20, 30), (70, 50), (50, 70)])
def test_signs_are_fixed(shape: tuple[int, int]) -> None:
    m_MN = gaussian(*shape)
    for found in (decompose(m_MN, "a"), decompose(-m_MN, "a"), decompose(m_MN.double(), "a")):
        top = found.p.abs().argmax(0, keepdim=True)
        assert bool((found.p.gather(0, top) > 0).all())
        assert float((found.p.T @ found.p - torch.eye(min(shape))).abs().max()) < 1e-4
    u_MR, v_RN = decompose(m_MN, "a").factors(3)
    flipped_u, flipped_v = decompose(-m_MN, "a").factors(3)
    assert torch.allclose(u_MR @ v_RN, -(flipped_u @ flipped_v), atol=1e-5)


def test_factors_are_balanced_and_one_decomposition_serves_all_ranks() -> None:
    m_MN = gaussian(60, 90)
    found, short = decompose(m_MN, "layer"), decompose(m_MN, "layer", rank=9)
    u_MR, v_RN = found.factors(9)
    assert torch.allclose(u_MR.T @ u_MR, torch.diag(found.s[:9]), atol=1e-3)
    assert torch.allclose(v_RN @ v_RN.T, torch.diag(found.s[:9]), atol=1e-3)
    assert torch.allclose(short.truncated(9), u_MR @ v_RN, atol=1e-5)
    assert torch.allclose(short.factors(4)[0], found.factors(4)[0], atol=1e-4)
    assert u_MR.is_contiguous()
    assert v_RN.is_contiguous()


@pytest.mark.parametrize("shape", [(12, 9), (50, 60)])
def test_a_zero_matrix_has_rank_one_and_no_nan(shape: tuple[int, int]) -> None:
    found = decompose(torch.zeros(shape), "layer")
    assert found.rank(0.95) == 1
    assert torch.equal(found.truncated(1), torch.zeros(shape))


def test_an_exactly_low_rank_matrix_is_found_out() -> None:
    m_MN = gaussian(50, 3) @ gaussian(3, 60, 1)
    found = decompose(m_MN, "layer")
    assert found.rank(1 - 1e-9) == 3
    assert torch.allclose(found.truncated(3), m_MN, atol=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused_by_name(bad: float) -> None:
    m_MN = gaussian(40, 40)
    m_MN[3, 5] = bad
    with pytest.raises(TrainingError, match=r'layer "stage2\.conv1"'):
        decompose(m_MN, "stage2.conv1")


def test_half_precision_is_decomposed_in_float32() -> None:
    assert decompose(gaussian(40, 50).bfloat16(), "layer").p.dtype == torch.float32
    assert decompose(gaussian(40, 50).double(), "layer").s.dtype == torch.float64


def test_the_input_keeps_its_values_and_needs_no_gradient() -> None:
    m_MN = gaussian(40, 50).requires_grad_()
    before = m_MN.detach().clone()
    assert not decompose(m_MN, "layer").p.requires_grad
    assert torch.equal(m_MN.detach(), before)


def test_total_is_the_squared_norm_also_when_truncated() -> None:
    m_MN = gaussian(100, 100)
    found = decompose(m_MN, "layer", rank=5, generator=torch.Generator().manual_seed(0))
    assert found.total == pytest.approx(float(m_MN.double().square().sum()), rel=1e-12)


def test_seconds_stand_under_svd() -> None:
    with meter.metering() as counted:
        decompose(gaussian(60, 60), "layer")
    assert counted.seconds["svd"] > 0


def test_a_gaussian_matrix_is_not_low_rank() -> None:
    rank = decompose(gaussian(512, 3136), "dense1").rank(0.95)
    assert rank == pytest.approx(455, abs=6)
    assert rank > break_even(512, 3136) == 440
