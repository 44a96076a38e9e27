"""Counts, closed forms and properties of the fixed-point solvers."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from potluck.core.errors import SolveError
from potluck.solvers import IFT, JFB, Anderson, FixedPoint, Phantom, Result, Unroll, iterate, solve
from potluck.solvers.anderson import AndersonState
from potluck.solvers.fixed_point import FixedPointState

torch.set_num_threads(1)

SOLVERS = [FixedPoint(), FixedPoint(damping=0.5), Anderson(), Anderson(history=2, damping=0.5)]
GRADIENTS = [Unroll(), JFB(), Phantom(), Phantom(steps=3, damping=0.5), IFT()]
PAIRS = [(s, g) for s in SOLVERS for g in GRADIENTS if isinstance(s, FixedPoint) or not isinstance(g, Unroll)]


class Counted:
    """f, counting its calls."""

    def __init__(self, f):
        self.f, self.calls = f, 0

    def __call__(self, z):
        self.calls += 1
        return self.f(z)


@dataclass(frozen=True)
class Spied:
    """A solver that notes every state it was handed and every residual."""

    inner: object
    states: list = field(default_factory=list)

    def init(self, z):
        return self.inner.init(z)

    def step(self, state, z, f_z, residual_B):
        self.states.append(state)
        return self.inner.step(state, z, f_z, residual_B)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def contraction(dimension: int, norm: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """W of the given spectral norm, and b; float64."""
    W = torch.randn(dimension, dimension, generator=rng(seed), dtype=torch.float64)
    return W * (norm / torch.linalg.matrix_norm(W, 2)), torch.randn(
        dimension, generator=rng(seed + 1), dtype=torch.float64
    )


def tanh_map(batch: int = 4, dimension: int = 6, seed: int = 0):
    W, _ = contraction(dimension, 0.8, seed)
    x = torch.randn(batch, dimension, generator=rng(seed + 2), dtype=torch.float64)
    return (lambda z: torch.tanh(z @ W.T + x)), torch.zeros(batch, dimension, dtype=torch.float64)


# 1, 2, 3: counts


@pytest.mark.parametrize(("solver", "gradient"), PAIRS[5:10] + PAIRS[14:])  # the damped ones, for the sake of time
def test_exactly_k_evaluations_and_the_same_value_without_gradients(solver, gradient):
    f, z0 = tanh_map()
    for steps in (*range(1, 21), 32, 64):  # longer than every history, tail and limit of a gradient
        trained, evaluated = Counted(f), Counted(f)
        one = solve(trained, z0, solver=solver, gradient=gradient, steps=steps)
        with torch.no_grad():
            two = solve(evaluated, z0, solver=solver, gradient=gradient, steps=steps)
        assert trained.calls == evaluated.calls == steps == one.evaluations == two.evaluations
        assert one.steps_B.tolist() == [steps] * 4
        assert one.result.tolist() == [Result.OK] * 4
        assert torch.equal(one.value, two.value)
        assert torch.equal(one.residual_B, two.residual_B)
        assert two.tail == ()


@pytest.mark.parametrize("solver", [Anderson(), Anderson(history=1), Anderson(damping=0.3)])
def test_two_steps_are_plain_for_every_solver(solver):
    f, z0 = tanh_map()
    for steps in (1, 2):
        plain = iterate(f, z0, solver=FixedPoint(), steps=steps).z
        assert torch.equal(iterate(f, z0, solver=solver, steps=steps).z, plain)
        for gradient in (JFB(), Phantom(), IFT()):
            assert torch.equal(solve(f, z0, solver=solver, gradient=gradient, steps=steps).value, plain)
    assert torch.equal(f(f(z0)), plain)


@pytest.mark.parametrize(("solver", "state"), [(FixedPoint(), FixedPointState), (Anderson(), AndersonState)])
@pytest.mark.parametrize(("gradient", "length"), [(JFB(), 1), (Phantom(), 5), (IFT(), 1)])
def test_the_solver_that_ran_is_the_one_asked_for(solver, state, gradient, length):
    f, z0 = tanh_map()
    spied = Spied(solver)
    found = solve(f, z0, solver=spied, gradient=gradient, steps=12)
    assert [type(s) for s in spied.states] == [state] * (12 - length)
    assert found.grad_steps == length


def test_anderson_departs_from_plain_iteration_after_its_warm_up():
    f, z0 = tanh_map()
    plain, mixed = (iterate(f, z0, solver=s, steps=3).z for s in (FixedPoint(), Anderson()))
    assert not torch.allclose(plain, mixed, atol=1e-4)


# 4, 5: closed forms


@pytest.mark.parametrize("gradient", [Unroll(), JFB(), Phantom(), IFT()])
def test_plain_iteration_on_the_line(gradient):
    z0 = torch.zeros(1, 1, dtype=torch.float64)
    for steps, value in enumerate([1, 1.5, 1.75, 1.875, 1.9375], start=1):
        assert solve(lambda z: 0.5 * z + 1, z0, solver=FixedPoint(), gradient=gradient, steps=steps).value == value


def test_anderson_on_the_line_is_exact_at_three():
    z0 = torch.zeros(1, 1, dtype=torch.float64)
    solver = Anderson(ridge=1e-12)
    assert abs(float(iterate(lambda z: 0.5 * z + 1, z0, solver=solver, steps=3).z) - 2) < 1e-9
    found = solve(lambda z: 0.5 * z + 1, z0, solver=solver, gradient=JFB(), steps=4)
    assert abs(float(found.value.detach()) - 2) < 1e-9


@pytest.mark.parametrize("dimension", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_anderson_solves_a_linear_map_in_as_many_steps_as_it_has_dimensions(dimension, seed):
    W, b = contraction(dimension, 0.8, seed)
    solver = Anderson(history=dimension + 1, ridge=1e-12)
    z0 = torch.zeros(1, dimension, dtype=torch.float64)
    found = iterate(lambda z: z @ W.T + b, z0, solver=solver, steps=max(3, dimension + 1)).z[0]
    exact = torch.linalg.solve(torch.eye(dimension, dtype=torch.float64) - W, b)
    assert float((found - exact).norm()) < 1e-5


def test_damped_iteration_reaches_what_the_plain_one_cannot():
    z0 = torch.zeros(1, 1, dtype=torch.float64)
    damped = iterate(lambda z: 1 - 1.2 * z, z0, solver=FixedPoint(damping=0.5), steps=30).z
    assert abs(float(damped) - 1 / 2.2) < 1e-9
    assert abs(float(iterate(lambda z: 1 - 1.2 * z, z0, solver=FixedPoint(), steps=30).z)) > 50


@pytest.mark.parametrize(("history", "damping"), [(5, 1.0), (3, 1.0), (3, 0.4), (1, 1.0)])
def test_anderson_is_its_formula(history, damping):
    ridge = 1e-3
    f, z0 = tanh_map(batch=1)
    points, images = [z0[0]], []
    for step in range(9):
        images.append(f(points[-1][None])[0])
        if step < 2 or history == 1:  # a mix of one pair is the plain step
            points.append(images[-1])
            continue
        Z, F = torch.stack(points[-history:]), torch.stack(images[-history:])
        H = (F - Z) @ (F - Z).T
        H = H + ridge * H.trace() / len(H) * torch.eye(len(H), dtype=H.dtype)
        a = torch.linalg.solve(H, torch.ones(len(H), dtype=H.dtype))
        points.append(a / a.sum() @ (damping * F + (1 - damping) * Z))
    spied = Spied(Anderson(history=history, ridge=ridge, damping=damping, growth=1e9))
    found = iterate(f, z0, solver=spied, steps=9).z[0]
    torch.testing.assert_close(found, points[-1], rtol=1e-9, atol=1e-9)
    assert max(len(state.g_BD) for state in spied.states) == min(history, 8)


@pytest.mark.parametrize("steps", [1, 4])
def test_unroll_uses_the_damping_of_its_solver(steps):
    f, z0 = tanh_map()
    found = solve(f, z0, solver=FixedPoint(damping=0.3), gradient=Unroll(), steps=steps).value
    for _ in range(steps):
        z0 = 0.7 * z0 + 0.3 * f(z0)
    torch.testing.assert_close(found, z0)


# 10 to 15: properties


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_anderson_is_free_of_scale(scale):
    f, z0 = tanh_map()
    z0 = z0 + 0.3
    one = iterate(f, z0, solver=Anderson(), steps=8).z
    two = iterate(lambda z: scale * f(z / scale), scale * z0, solver=Anderson(), steps=8).z
    torch.testing.assert_close(two, scale * one, rtol=1e-6, atol=0)


@pytest.mark.parametrize("solver", SOLVERS)
@settings(derandomize=True, max_examples=15, deadline=None)
@given(order=st.permutations(range(6)), cut=st.integers(1, 5))
def test_a_sample_does_not_feel_its_batch_mates(solver, order, cut):
    W, _ = contraction(5, 0.8)
    # Injections of very different size, so that the samples need different numbers of steps.
    x = torch.randn(6, 5, generator=rng(3), dtype=torch.float64) * torch.tensor([0.01, 0.1, 0.5, 1, 2, 5])[:, None]

    def run(rows):
        picked = x[rows]
        return solve(
            lambda z: torch.tanh(z @ W.T + picked),
            torch.zeros(len(rows), 5, dtype=torch.float64),
            solver=solver,
            gradient=Phantom(steps=2),
            steps=40,
            tol=1e-3,
        )

    whole = run(list(range(6)))
    assert len(set(whole.steps_B.tolist())) > 1
    assert whole.evaluations == int(whole.steps_B.max())
    for part in (list(order), list(order)[:cut], list(order)[cut:]):
        found = run(part)
        assert torch.equal(found.steps_B, whole.steps_B[part])
        assert torch.equal(found.result, whole.result[part])
        torch.testing.assert_close(found.value, whole.value[part], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(("steps", "tol"), [(20, None), (20, 1e-3), (400, None), (400, 1e-3)])
def test_one_diverging_sample_leaves_the_others_alone(solver, steps, tol):
    slope = torch.tensor([0.5, 3.0, 0.25])[:, None]
    z0 = torch.ones(3, 2)

    def run(rows):
        def f(z):
            return slope[rows] * z + (slope[rows] < 1)

        return solve(f, z0[rows], solver=solver, gradient=JFB(), steps=steps, tol=tol)

    whole, good = run([0, 1, 2]), run([0, 2])
    assert torch.equal(whole.value[[0, 2]], good.value)
    assert torch.equal(whole.steps_B[[0, 2]], good.steps_B)
    assert torch.isfinite(whole.value).all()
    if isinstance(solver, FixedPoint):  # extrapolation finds even the fixed point that repels
        late = Result.OK if tol is None else Result.STEP_LIMIT
        assert whole.result[1] == (late if steps == 20 else Result.NOT_FINITE)
    assert Result.NOT_FINITE not in good.result.tolist()


def test_a_sample_that_is_not_finite_keeps_its_last_finite_iterate():
    bad = torch.tensor([False, True])[:, None]
    calls = Counted(lambda z: torch.where(bad & (z > 1.2), torch.nan, 0.5 * z + 1))
    z0 = torch.zeros(2, 1)
    for gradient in (Unroll(), JFB(), Phantom(), IFT()):
        found = solve(calls, z0, solver=FixedPoint(), gradient=gradient, steps=6)
        assert found.result.tolist() == [Result.OK, Result.NOT_FINITE]
        assert found.value.flatten().tolist() == [1.96875, 1.5]
        assert found.residual_B[1] == torch.inf
        with pytest.raises(SolveError, match="not finite for 1 of 2 samples"):
            found.ok()


def test_a_constant_map_converges_after_one_step():
    c = torch.tensor([[1.0, 2.0]])
    for solver in SOLVERS[::2]:
        found = solve(lambda z: c + 0 * z, 0 * c, solver=solver, gradient=JFB(), steps=10, tol=1e-6)
        assert found.result.tolist() == [Result.CONVERGED]
        assert found.steps_B.tolist() == [3]  # the second evaluation has residual 0, then the tail
        assert found.residual_B.tolist() == [0.0]
        assert torch.equal(found.value.detach(), c)


@pytest.mark.parametrize(("solver", "gradient"), PAIRS)
def test_zero_at_zero_is_not_nan(solver, gradient):
    W = torch.eye(3).requires_grad_()
    found = solve(lambda z: z @ W, torch.zeros(2, 3), solver=solver, gradient=gradient, steps=9)
    found.value.sum().backward()
    assert torch.equal(found.value, torch.zeros(2, 3))
    assert torch.equal(found.residual_B, torch.zeros(2))
    assert torch.isfinite(W.grad).all()


@pytest.mark.parametrize("ridge", [0.0, 1e-6])
def test_equal_residuals_make_anderson_plain(ridge):
    step = torch.tensor([[1.0, -2.0], [0.25, 0.75]])  # exact in binary, so that the residuals are equal bit by bit
    plain, mixed = (
        iterate(lambda z: z + step, torch.zeros(2, 2), solver=s, steps=7).z
        for s in (FixedPoint(), Anderson(ridge=ridge))
    )
    assert torch.equal(mixed, plain)


def test_anderson_falls_back_when_the_residual_grows():
    # The map jumps at the third point: the residual there is far above the one before.
    points = iter([1.0, 1.1, 50.0, 55.0])
    spied = Spied(Anderson(ridge=1e-12))
    z0 = torch.zeros(1, 1, dtype=torch.float64)
    found = iterate(lambda z: torch.full_like(z, next(points)), z0, solver=spied, steps=4).z
    assert [int(s.usable_B) for s in spied.states] == [0, 1, 2, 1]
    # After the plain step to 50 only two pairs count: f = 50 with g = 48.9, and f = 55 with g = 5.
    assert float(found) == pytest.approx((48.9 * 55 - 5 * 50) / (48.9 - 5), rel=1e-6)


@pytest.mark.parametrize(("solver", "gradient"), PAIRS)
def test_nothing_is_mutated_and_global_randomness_plays_no_part(solver, gradient):
    f, z0 = tanh_map()
    before = z0.clone()
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    one = solve(f, z0, solver=solver, gradient=gradient, steps=9)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(2)
    two = solve(f, z0, solver=solver, gradient=gradient, steps=9)
    assert torch.equal(z0, before)
    assert z0.grad is None
    assert not z0.requires_grad
    assert torch.equal(one.value, two.value)


# the tolerance


def test_a_tolerance_stops_early_or_says_that_it_did_not():
    f, z0 = tanh_map()
    calls = Counted(f)
    early = solve(calls, z0, solver=FixedPoint(), gradient=JFB(), steps=200, tol=1e-4)
    assert calls.calls == early.evaluations < 200
    assert early.result.tolist() == [Result.CONVERGED] * 4
    assert float(early.residual_B.max()) <= 1e-4
    assert early.ok() is early
    late = solve(f, z0, solver=FixedPoint(), gradient=JFB(), steps=2, tol=1e-4)
    assert late.result.tolist() == [Result.STEP_LIMIT] * 4
    with pytest.raises(SolveError, match="4 of 4 samples did not converge within 2 evaluations"):
        late.ok()


def test_a_sample_takes_the_step_it_has_paid_for():
    z0 = torch.zeros(1, 1, dtype=torch.float64)

    def f(z):
        return 0.5 * z + 1

    part = iterate(f, z0, solver=FixedPoint(), steps=9, tol=0.2)  # residuals 1, 1/3, 1/7
    assert (float(part.z), part.evaluations, part.samples.steps_B.tolist()) == (1.75, 3, [3])
    found = solve(f, z0, solver=FixedPoint(), gradient=JFB(), steps=9, tol=0.2)
    assert (float(found.value), found.evaluations, found.steps_B.tolist()) == (1.875, 4, [4])


def test_never_only_reports_the_tolerance():
    f, z0 = tanh_map()
    for gradient in GRADIENTS:
        exact = solve(f, z0, solver=FixedPoint(), gradient=gradient, steps=50)
        told = solve(f, z0, solver=FixedPoint(), gradient=gradient, steps=50, tol=1e-2, stop="never")
        assert told.evaluations == 50
        assert torch.equal(told.value, exact.value)
        assert told.result.tolist() == [Result.CONVERGED] * 4


def test_the_residual_is_that_of_the_last_point_evaluated():
    f, z0 = tanh_map()
    z = iterate(f, z0, solver=FixedPoint(), steps=4).z
    expected = (f(z) - z).norm(dim=1) / (f(z).norm(dim=1) + 1e-9)
    for gradient in (Unroll(), JFB(), Phantom(steps=3), IFT()):
        found = solve(f, z0, solver=FixedPoint(), gradient=gradient, steps=5)
        torch.testing.assert_close(found.residual_B, expected)
    first = solve(f, z0 + 1, solver=FixedPoint(), gradient=JFB(), steps=1).residual_B
    torch.testing.assert_close(first, (f(z0 + 1) - z0 - 1).norm(dim=1) / (f(z0 + 1).norm(dim=1) + 1e-9))


# 16: options


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: FixedPoint(damping=0), r"damping = 0: expected 0 < damping <= 1"),
        (lambda: FixedPoint(damping=1.5), "damping = 1.5"),
        (lambda: FixedPoint(damping=float("nan")), "damping = nan"),
        (lambda: Anderson(history=0), "history = 0: expected an integer from 1 to 50"),
        (lambda: Anderson(history=51), "history = 51"),
        (lambda: Anderson(history=2.0), "history = 2.0"),
        (lambda: Anderson(ridge=-1e-9), "ridge = -1e-09: expected a number >= 0"),
        (lambda: Anderson(ridge=float("inf")), "ridge = inf"),
        (lambda: Anderson(damping=-1), "damping = -1"),
        (lambda: Anderson(growth=1.0), "growth = 1.0"),
        (lambda: Phantom(steps=0), "steps = 0: expected an integer >= 1"),
        (lambda: Phantom(steps=True), "steps = True"),
        (lambda: Phantom(damping=2), "damping = 2"),
        (lambda: IFT(steps=-1), "steps = -1: expected an integer from 0 to 1000"),
        (lambda: IFT(steps=1001), "steps = 1001"),
        (lambda: IFT(tol=0.0), "tol = 0.0: expected 0 < tol < 1"),
    ],
)
def test_bad_values_raise(make, said):
    with pytest.raises(ValueError, match=said):
        make()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"steps": 0}, "steps = 0: expected an integer >= 1"),
        ({"steps": 2.0}, "steps = 2.0"),
        ({"tol": 0.0}, "tol = 0.0: expected 0 < tol < 1"),
        ({"tol": 1.0}, "tol = 1.0"),
        ({"stop": "per-sample"}, 'expected one of per_sample, never. Did you mean "per_sample"?'),
        ({"gradient": "phantom"}, "gradient = 'phantom': expected one of Unroll"),
        ({"gradient": Unroll(), "solver": Anderson()}, "expected FixedPoint"),
    ],
)
def test_bad_options_of_solve_raise_before_any_evaluation(given, said):
    options = {"solver": FixedPoint(), "gradient": JFB(), "steps": 4, **given}
    calls = Counted(lambda z: z)
    with pytest.raises(ValueError, match=said.replace("?", r"\?")):
        solve(calls, torch.zeros(1, 1), **options)
    assert calls.calls == 0


@pytest.mark.parametrize("damping", [1.0, 0.5])
def test_a_longer_phantom_is_clipped_and_recorded(damping):
    f, z0 = tanh_map()
    long, exact = (
        solve(f, z0, solver=FixedPoint(), gradient=Phantom(steps=k, damping=damping), steps=3) for k in (9, 3)
    )
    assert torch.equal(long.value, exact.value)
    assert long.grad_steps == exact.grad_steps == 3
    assert len(long.tail) == 2
