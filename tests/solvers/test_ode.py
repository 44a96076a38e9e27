"""ODE steps against their stability polynomials, exact integrals and orders."""

from __future__ import annotations

import math

import pytest
import torch

from potluck.solvers import EVALUATIONS, odeint

torch.set_num_threads(1)
METHODS = ["euler", "midpoint", "heun", "rk4"]


def scalar(value: float = 0.0) -> torch.Tensor:
    return torch.full((1, 1), value, dtype=torch.float64)


@pytest.mark.parametrize("method", METHODS)
def test_evaluations_are_exact_for_every_step_count(method):
    for steps in range(1, 101):
        calls = []

        def field(z, t, calls=calls):
            calls.append(t)
            return z

        odeint(field, torch.ones(1, 1), steps=steps, method=method, h=1 / steps)
        assert len(calls) == steps * {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4}[method]
        assert len(calls) == steps * EVALUATIONS[method]


GROWTH = {
    "euler": lambda x: 1 + x,
    "midpoint": lambda x: 1 + x + x**2 / 2,
    "heun": lambda x: 1 + x + x**2 / 2,
    "rk4": lambda x: 1 + x + x**2 / 2 + x**3 / 6 + x**4 / 24,
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rate", [-2.0, 0.7])
@pytest.mark.parametrize("steps", [1, 3, 10])
def test_linear_growth(method, rate, steps):
    found = odeint(lambda z, t: rate * z, scalar(1.0), steps=steps, method=method, h=1 / steps)
    assert float(found) == pytest.approx(GROWTH[method](rate / steps) ** steps, rel=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 7, 64])
@pytest.mark.parametrize("learned", [False, True])
def test_integrals_of_time(steps, learned):
    h = torch.full((steps,), 1 / steps, dtype=torch.float64) if learned else 1 / steps

    def integral(power, method):
        return float(odeint(lambda z, t: 0 * z + t**power, scalar(), steps=steps, method=method, h=h))

    assert integral(1, "euler") == pytest.approx((steps - 1) / (2 * steps), abs=1e-14)
    for method in METHODS[1:]:
        assert integral(1, method) == pytest.approx(0.5, abs=1e-14)
    assert integral(3, "euler") == pytest.approx((steps - 1) ** 2 / (4 * steps**2), abs=1e-14)
    assert integral(3, "rk4") == pytest.approx(0.25, abs=1e-14)


@pytest.mark.parametrize(("method", "factor"), [("euler", 2), ("midpoint", 4), ("heun", 4), ("rk4", 16)])
def test_order(method, factor):
    exact = 1.5 * math.exp(-1) + (math.sin(1) - math.cos(1)) / 2

    def error(steps):
        field = lambda z, t: -z + math.sin(t)  # noqa: E731  (the equation, in one line)
        return abs(float(odeint(field, scalar(1.0), steps=steps, method=method, h=1 / steps)) - exact)

    assert error(20) / error(40) == pytest.approx(factor, rel=0.1)


def net_and_input():
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(6, 6, generator=generator, dtype=torch.float64).requires_grad_()
    z = torch.randn(3, 6, generator=generator, dtype=torch.float64).requires_grad_()
    return W, z


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("learned", [False, True])
def test_checkpoints_change_neither_value_nor_gradient(method, learned):
    found = []
    for checkpoint in (False, True):
        W, z = net_and_input()
        h = torch.full((5,), 0.2, dtype=torch.float64, requires_grad=True) if learned else 0.2
        out = odeint(lambda z, t, W=W: torch.tanh(z @ W + t), z, steps=5, method=method, h=h, checkpoint=checkpoint)
        out.square().sum().backward()
        found.append([out.detach(), W.grad, z.grad, *([h.grad] if learned else [])])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def saved_bytes(checkpoint: bool, steps: int) -> int:
    W, z = net_and_input()
    kept: dict[int, int] = {}
    alive = []

    def pack(saved):
        alive.append(saved)
        kept[saved.untyped_storage().data_ptr()] = saved.untyped_storage().nbytes()
        return saved

    def field(z, t):
        return torch.tanh(torch.tanh(torch.tanh(z @ W) @ W) @ W)

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        odeint(field, z, steps=steps, method="rk4", h=0.1, checkpoint=checkpoint).sum()
    return sum(kept.values())


def test_checkpoints_save_memory():
    assert saved_bytes(True, 20) < saved_bytes(False, 20) / 5


@pytest.mark.parametrize("method", METHODS)
def test_gradients_pass_gradcheck(method):
    W, z = net_and_input()
    h = torch.tensor([0.1, 0.3], dtype=torch.float64, requires_grad=True)

    def run(W, z, h):
        return odeint(lambda z, t: torch.tanh(z @ W + t), z, steps=2, method=method, h=h)

    assert torch.autograd.gradcheck(run, (W, z, h))


def test_learned_lengths_move_the_times_too():
    seen = []
    h = torch.tensor([0.5, 0.25, 0.125])
    odeint(lambda z, t: (seen.append(float(t)), z)[1], torch.ones(1), steps=3, method="euler", h=h)
    assert seen == [0.0, 0.5, 0.75]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"steps": 0}, "steps = 0: expected an integer >= 1"),
        ({"method": "rk5"}, "method = 'rk5': expected one of euler, midpoint, heun, rk4"),
        ({"method": "dopri5"}, "method = 'dopri5'"),
        ({"h": float("nan")}, "h = nan: expected a finite number"),
        ({"h": torch.ones(3)}, r"shape of h = \(3,\): expected \(2,\)"),
    ],
)
def test_bad_options_raise(given, said):
    options = {"steps": 2, "method": "euler", "h": 0.5, **given}
    with pytest.raises(ValueError, match=said):
        odeint(lambda z, t: z, torch.ones(1), **options)
