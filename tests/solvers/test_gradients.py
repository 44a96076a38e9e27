"""The four gradients against closed forms, against one another, and what they keep in memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from potluck.solvers import IFT, JFB, Anderson, FixedPoint, Phantom, Unroll, solve

torch.set_num_threads(1)
D = 5


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


def linear() -> tuple[Tensor, Tensor, Tensor]:
    """W of spectral norm 0.8, b with gradient, and the loss vector v."""
    W = random(D, D, seed=0)
    return W * (0.8 / torch.linalg.matrix_norm(W, 2)), random(D, seed=1).requires_grad_(), random(D, seed=2)


def gradient_in_b(gradient, steps: int, solver=None) -> Tensor:
    W, b, v = linear()
    z0 = torch.zeros(1, D, dtype=torch.float64)
    found = solve(lambda z: z @ W.T + b, z0, solver=solver or FixedPoint(), gradient=gradient, steps=steps)
    (found.value @ v).sum().backward()
    assert b.grad is not None
    return b.grad


def neumann(matrix: Tensor, terms: int, v: Tensor) -> Tensor:
    total, power = torch.zeros_like(v), v
    for _ in range(terms):
        total, power = total + power, matrix @ power
    return total


@pytest.mark.parametrize("k", [1, 2, 5, 9])
@pytest.mark.parametrize("damping", [1.0, 0.5])
def test_phantom_is_its_matrix_sum(k, damping):
    W, _, v = linear()
    matrix = (1 - damping) * torch.eye(D, dtype=torch.float64) + damping * W.T
    expected = damping * neumann(matrix, k, v)
    torch.testing.assert_close(gradient_in_b(Phantom(steps=k, damping=damping), 12), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("b_steps", [0, 1, 4])
def test_ift_is_its_matrix_sum(b_steps):
    W, _, v = linear()
    torch.testing.assert_close(gradient_in_b(IFT(steps=b_steps), 12), neumann(W.T, b_steps + 1, v), rtol=0, atol=1e-13)


@pytest.mark.parametrize("solver", [FixedPoint(), Anderson()])
def test_ift_at_a_converged_point_is_the_implicit_gradient(solver):
    W, _, v = linear()
    exact = torch.linalg.solve(torch.eye(D, dtype=torch.float64) - W.T, v)
    found = gradient_in_b(IFT(steps=60, solver=solver), 100)
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e-12])
def test_ift_stops_at_its_tolerance_relative_to_the_incoming_gradient(scale):
    b = random(1, D, seed=1).requires_grad_()
    calls = []

    def f(z: Tensor) -> Tensor:
        out = 0.9 * z + b
        out.register_hook(calls.append)
        return out

    found = solve(f, torch.zeros_like(b), solver=FixedPoint(), gradient=IFT(steps=500, tol=1e-3), steps=1)
    (scale * found.value).sum().backward()
    # ‖u_{j+1} - u_j‖ = 0.9^{j+1} ‖v‖, which falls to a thousandth at j + 1 = 66; then the one pass into the weights
    assert len(calls) == 66 + 1


def tanh_cell():
    W = random(D, D, seed=3)
    W = (W * (0.8 / torch.linalg.matrix_norm(W, 2))).requires_grad_()
    x = random(3, D, seed=4)
    return W, (lambda z: torch.tanh(z @ W.T + x)), torch.zeros(3, D, dtype=torch.float64)


def gradient_in_w(gradient, steps: int, z0: Tensor | None = None) -> Tensor:
    W, f, zero = tanh_cell()
    found = solve(f, zero if z0 is None else z0, solver=FixedPoint(), gradient=gradient, steps=steps)
    found.value.square().sum().backward()
    return W.grad


def test_unroll_passes_gradcheck():
    W, b, _ = linear()
    W = W.clone().requires_grad_()
    z0 = random(2, D, seed=5).requires_grad_()

    def run(W, b, z0):
        solver = FixedPoint(damping=0.7)
        return solve(lambda z: torch.tanh(z @ W.T + b), z0, solver=solver, gradient=Unroll(), steps=4).value

    assert torch.autograd.gradcheck(run, (W, b, z0))


def test_long_gradients_agree_at_convergence():
    exact = gradient_in_w(Unroll(), 300)
    torch.testing.assert_close(gradient_in_w(Phantom(steps=300), 600), exact, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient_in_w(IFT(steps=200), 300), exact, rtol=0, atol=1e-12)


@pytest.mark.parametrize("k", [1, 3, 8])
def test_phantom_is_ift_with_one_step_less_at_a_converged_point(k):
    torch.testing.assert_close(
        gradient_in_w(Phantom(steps=k), 300), gradient_in_w(IFT(steps=k - 1), 300), rtol=0, atol=1e-14
    )


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_ift_without_steps_is_jfb_bit_by_bit(steps):
    assert torch.equal(gradient_in_w(IFT(steps=0), steps), gradient_in_w(JFB(), steps))
    assert torch.equal(gradient_in_w(Phantom(steps=1), steps), gradient_in_w(JFB(), steps))


def test_phantom_over_the_whole_budget_is_unroll():
    assert torch.equal(gradient_in_w(Phantom(steps=9), 4), gradient_in_w(Unroll(), 4))


@pytest.mark.parametrize(
    ("gradient", "reaches"), [(Unroll(), True), (JFB(), False), (Phantom(), False), (IFT(), False)]
)
def test_only_unroll_sends_a_gradient_to_the_start(gradient, reaches):
    z0 = random(3, D, seed=6).requires_grad_()
    gradient_in_w(gradient, 2, z0)
    assert (z0.grad is not None) == reaches


def test_ift_evaluates_f_no_more_in_the_backward_pass_and_is_first_order():
    W, f, z0 = tanh_cell()
    calls = []
    found = solve(lambda z: (calls.append(1), f(z))[1], z0, solver=FixedPoint(), gradient=IFT(steps=20), steps=6)
    (first,) = torch.autograd.grad(found.value.square().sum(), W, create_graph=True)
    assert len(calls) == 6
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_a_second_backward_pass_gives_the_same_gradient():
    W, f, z0 = tanh_cell()
    loss = solve(f, z0, solver=FixedPoint(), gradient=IFT(steps=5), steps=6).value.square().sum()
    (one,) = torch.autograd.grad(loss, W, retain_graph=True)
    (two,) = torch.autograd.grad(loss, W)
    assert torch.equal(one, two)


def saved_bytes(gradient, steps: int) -> int:
    """Bytes of distinct storages that the graph keeps for the backward pass, the weights excluded."""
    _, f, z0 = tanh_cell()
    kept: dict[int, int] = {}
    alive = []

    def pack(saved: Tensor) -> Tensor:
        alive.append(saved)  # an address is an identity only while the tensor lives
        kept[saved.untyped_storage().data_ptr()] = saved.untyped_storage().nbytes()
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        loss = solve(f, z0, solver=FixedPoint(), gradient=gradient, steps=steps).value.square().sum()
    loss.backward()
    return sum(kept.values())


@pytest.mark.parametrize("gradient", [JFB(), Phantom(steps=5), IFT(steps=8)])
def test_memory_does_not_grow_with_the_budget(gradient):
    assert saved_bytes(gradient, 50) == saved_bytes(gradient, 5)


def test_memory_of_unroll_does_grow():
    assert saved_bytes(Unroll(), 50) > 5 * saved_bytes(Unroll(), 5)


def test_memory_of_ift_is_that_of_one_evaluation():
    assert saved_bytes(IFT(steps=100), 50) == saved_bytes(IFT(steps=1), 1) <= saved_bytes(Phantom(steps=2), 2)


def test_the_tail_holds_the_iterates_before_the_value():
    _, f, z0 = tanh_cell()
    found = solve(f, z0, solver=FixedPoint(), gradient=Phantom(steps=4), steps=6)
    assert found.grad_steps == 4
    z = z0
    states = []
    for _ in range(6):
        z = f(z)
        states.append(z)
    assert len(found.tail) == 3
    assert all(torch.equal(a, b) for a, b in zip((*found.tail, found.value), states[2:], strict=True))
    assert all(state.requires_grad for state in found.tail)


@pytest.mark.parametrize("gradient", [Unroll(), JFB(), Phantom(steps=3), IFT(steps=4)])
@pytest.mark.parametrize("damping", [1.0, 0.5])
def test_autocast_keeps_the_iterate_wide_and_the_gradient_whole(gradient, damping):
    # Casts of the weights that were made without a graph, in the solver part, must not serve the tail.
    W, x = random(D, D, seed=7).float() / 5, random(3, D, seed=8).float()
    found = []
    for enabled in (False, True):
        weight = W.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            solver = FixedPoint(damping=damping)
            z = solve(lambda z, w=weight: (z + x) @ w, torch.zeros(3, D), solver=solver, gradient=gradient, steps=8)
        assert z.value.dtype == torch.float32
        z.value.square().sum().backward()
        found.append(weight.grad)
    torch.testing.assert_close(found[1], found[0], rtol=0.1, atol=0.02 * float(found[0].abs().max()))
