"""The equilibrium nets: counts, reductions, depth, and the terms of their loss."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potluck.core.errors import ModelError
from potluck.nets.deqnet import WIDTHS, DeqNet, equilibrium_loss, make_deq, set_depth
from potluck.solvers import IFT, JFB, Anderson, FixedPoint, Phantom, Result, Unroll

torch.set_num_threads(1)

PAIRS = [
    (FixedPoint(), Unroll()),
    (FixedPoint(), JFB()),
    (FixedPoint(damping=0.5), Phantom()),
    (FixedPoint(), IFT()),
    (Anderson(), JFB()),
    (Anderson(), Phantom()),
    (Anderson(), IFT()),
]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def seeded(name: str = "deq-xs-like", shape=(3, 8, 8), classes: int = 10, norm: str = "group", **options) -> DeqNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make_deq(name, shape, classes, norm, **options)


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=rng(seed))


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def gradients(net: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


class LinearCell(nn.Module):
    """f(z, x) = W z + x on the channels, with the interface of the cell."""

    def __init__(self, channels: int, norm: float) -> None:
        super().__init__()
        W = torch.randn(channels, channels, generator=rng(5), dtype=torch.float64)
        self.W = nn.Parameter(W * (norm / torch.linalg.matrix_norm(W, 2)))

    def kernels(self):
        return self.W, self.W

    def forward(self, z, x, kernels):
        return torch.einsum("oc,bchw->bohw", kernels[0], z) + x


# 9: counts


@pytest.mark.parametrize(
    ("name", "cell", "whole"),
    [
        ("deq-xs-like", 9_344, 12_426),
        ("deq-s-like", 55_616, 64_842),
        ("deq-m-like", 147_968, 160_266),
        ("deq-l-like", 590_848, 615_434),
    ],
)
def test_parameter_counts(name, cell, whole):
    net = make_deq(name, (3, 32, 32), 10)
    assert parameters(net.cell) == cell
    assert parameters(net) == whole
    assert sum(t.numel() * t.element_size() for t in net.state_dict().values()) == 4 * whole


@pytest.mark.parametrize("name", list(WIDTHS))
@pytest.mark.parametrize(("channels", "classes"), [(1, 3), (4, 100)])
def test_the_formula_of_the_count(name, channels, classes):
    c, w = WIDTHS[name]
    cell = 18 * c * w + 2 * w + 4 * c
    stem, head = 9 * channels * c + 3 * c, 2 * c + (16 * c + 1) * classes
    assert parameters(make_deq(name, (channels, 9, 13), classes)) == cell + stem + head
    assert parameters(make_deq(name, (channels, 9, 13), classes, weight_norm=True)) == cell + stem + head + c + w


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (4, 9, 13)])
@pytest.mark.parametrize("norm", ["group", "none"])
@pytest.mark.parametrize("weight_norm", [False, True])
def test_any_image_from_8_by_8(shape, norm, weight_norm):
    net = seeded("deq-xs-like", shape, 3, norm, weight_norm=weight_norm)
    logits = net(images(2, *shape))
    assert logits.shape == (2, 3)
    logits.square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())


def test_weight_norm_starts_as_the_plain_cell_and_frees_the_direction():
    plain, normed = seeded(), seeded(weight_norm=True)
    x = images(2, 3, 8, 8)
    torch.testing.assert_close(normed(x), plain(x))
    with torch.no_grad():
        normed.cell.kernel1.mul_(7.0)
    torch.testing.assert_close(normed(x), plain(x))
    with torch.no_grad():
        normed.cell.gain1.mul_(7.0)
        plain.cell.kernel1.mul_(7.0)
    torch.testing.assert_close(normed(x), plain(x))


def test_the_gradient_of_a_normed_kernel_turns_it_only():
    net = seeded(weight_norm=True)
    net(images(2, 3, 8, 8)).square().sum().backward()
    for kernel in (net.cell.kernel1, net.cell.kernel2):
        along = (kernel.grad * kernel.detach()).sum((1, 2, 3)) / (kernel.grad.norm() * kernel.detach().norm())
        assert float(along.abs().max()) < 1e-6 < float(kernel.grad.norm())


# 1, 5, 7: closed forms and reductions


@pytest.mark.parametrize("steps", [1, 2, 6])
def test_a_linear_cell_gives_the_partial_sum(steps):
    net = seeded(norm="none").double()
    net.stem, net.cell = nn.Identity(), LinearCell(4, 0.8)
    set_depth(net, steps, solver=FixedPoint(), gradient=Phantom())
    x = images(2, 4, 8, 8).double()
    total, term = torch.zeros_like(x), x
    for _ in range(steps):
        total, term = total + term, torch.einsum("oc,bchw->bohw", net.cell.W, term)
    torch.testing.assert_close(net.equilibrium(x).value, total, rtol=0, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 3, 6])
@pytest.mark.parametrize("start", ["zero", "input"])
def test_unrolled_plain_steps_are_the_weight_tied_net(steps, start):
    net = seeded()
    set_depth(net, steps, solver=FixedPoint(), gradient=Unroll(), z0=start)
    layers = [copy.deepcopy(net.cell) for _ in range(steps)]
    rest = copy.deepcopy(net)
    image = images(2, 3, 8, 8)
    x = rest.stem(image)
    z = torch.zeros_like(x) if start == "zero" else x
    for layer in layers:
        z = layer(z, x, layer.kernels())
    tied, out = rest.head(z), net(image)
    assert torch.equal(out, tied)
    out.square().sum().backward()
    tied.square().sum().backward()
    for name, grad in gradients(net).items():
        if name.startswith("cell."):
            parts = [gradients(layer)[name.removeprefix("cell.")] for layer in layers]
            torch.testing.assert_close(grad, torch.stack(parts).sum(0), rtol=1e-4, atol=1e-5)
        else:
            torch.testing.assert_close(grad, gradients(rest)[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 6])
def test_ift_without_steps_is_jfb(steps):
    image, found = images(2, 3, 8, 8), []
    for gradient in (IFT(steps=0), JFB()):
        net = seeded()
        set_depth(net, steps, solver=FixedPoint(), gradient=gradient)
        net(image).square().sum().backward()
        found.append(gradients(net))
    assert found[0].keys() == found[1].keys() == dict(net.named_parameters()).keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_the_gradients_agree_at_a_fixed_point():
    image, found = images(2, 3, 8, 8).double(), []
    for gradient in (Unroll(), Phantom(steps=120), IFT(steps=120)):
        net = seeded().double()
        set_depth(net, 200, solver=FixedPoint(), gradient=gradient)
        net(image).square().sum().backward()
        found.append(gradients(net))
    for other in found[1:]:
        for name, grad in found[0].items():
            torch.testing.assert_close(other[name], grad, rtol=1e-6, atol=1e-7)


# 8, 10, 11, 12: depth


@pytest.mark.parametrize(("solver", "gradient"), PAIRS)
@pytest.mark.parametrize("training", [True, False])
def test_evaluations_of_the_cell_are_exact(solver, gradient, training):
    net, image = seeded().train(training), images(1, 3, 8, 8)
    calls = []
    net.cell.register_forward_hook(lambda *_: calls.append(1))
    for steps in range(1, 33):
        set_depth(net, steps, solver=solver, gradient=gradient)
        calls.clear()
        with torch.set_grad_enabled(training):
            out = net.trace(image)
        assert len(calls) == out.solution.evaluations == steps
        if training:
            out.logits.sum().backward()
        assert len(calls) == steps


@pytest.mark.parametrize(("solver", "gradient"), PAIRS)
def test_training_and_evaluation_see_the_same_net(solver, gradient):
    net, image = seeded(), images(5, 3, 8, 8)
    set_depth(net, 7, solver=solver, gradient=gradient)
    trained = net.train()(image)
    with torch.no_grad():
        evaluated = net.eval()(image)
        order = torch.tensor([3, 1, 4, 0, 2])
        permuted = net(image[order])
    assert torch.equal(trained, evaluated)
    torch.testing.assert_close(permuted, evaluated[order], rtol=1e-6, atol=1e-6)


def test_weights_do_not_know_the_budget():
    few, many = seeded(), make_deq("deq-xs-like", (3, 8, 8), 10)
    set_depth(few, 2, solver=Anderson(), gradient=IFT())
    set_depth(many, 20, solver=FixedPoint(), gradient=Phantom())
    few(images(2, 3, 8, 8))
    assert few.state_dict().keys() == many.state_dict().keys() == dict(few.named_parameters()).keys()
    many.load_state_dict(few.state_dict())
    set_depth(many, 2, solver=Anderson(), gradient=IFT())
    assert torch.equal(few(images(2, 3, 8, 8)), many(images(2, 3, 8, 8)))


@pytest.mark.parametrize("name", list(WIDTHS))
def test_the_iteration_starts_out_convergent(name):
    net = seeded(name, (3, 16, 16))
    image = images(2, 3, 16, 16)
    residuals = []
    with torch.no_grad():
        x, kernels = net.stem(image), net.cell.kernels()
        z = torch.zeros_like(x)
        for _ in range(11):
            f = net.cell(z, x, kernels)
            residuals.append(float((f - z).norm() / f.norm()))
            z = f
    assert all(later < earlier for earlier, later in itertools.pairwise(residuals))
    assert residuals[-1] < 0.05


def saved_bytes(gradient, steps: int) -> int:
    """Bytes of distinct storages that the graph of one loss keeps for the backward pass."""
    net = seeded()
    set_depth(net, steps, solver=FixedPoint(), gradient=gradient)
    kept: dict[int, int] = {}
    alive = []

    def pack(saved: Tensor) -> Tensor:
        alive.append(saved)  # an address is an identity only while the tensor lives
        kept[saved.untyped_storage().data_ptr()] = saved.untyped_storage().nbytes()
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        net(images(2, 3, 8, 8)).sum()
    return sum(kept.values())


@pytest.mark.parametrize("gradient", [Phantom(), IFT(), JFB()])
def test_memory_does_not_grow_with_the_budget(gradient):
    assert saved_bytes(gradient, 50) == saved_bytes(gradient, 5)
    assert saved_bytes(Unroll(), 50) > 5 * saved_bytes(gradient, 50)


# 16 and the other terms of the loss


@pytest.mark.parametrize("gradient", [Unroll(), Phantom(steps=3), IFT()])
def test_terms_of_weight_zero_add_exactly_nothing(gradient):
    image, label, found = images(4, 3, 8, 8), torch.tensor([0, 3, 9, 1]), []
    for through_loss in (False, True):
        net = seeded()
        set_depth(net, 5, solver=FixedPoint(), gradient=gradient)
        calls = []
        net.cell.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        total = equilibrium_loss(net, image, label)[0] if through_loss else F.cross_entropy(net(image), label)
        assert len(calls) == 5
        total.backward()
        found.append((total, gradients(net)))
    assert torch.equal(found[0][0], found[1][0])
    assert all(torch.equal(found[0][1][name], found[1][1][name]) for name in found[0][1])


def test_the_correction_weighs_older_states_less():
    net, image, label = seeded(), images(4, 3, 8, 8), torch.tensor([0, 3, 9, 1])
    set_depth(net, 6, solver=FixedPoint(), gradient=Phantom(steps=4))
    total, solution = equilibrium_loss(net, image, label, fixed_point_loss=0.5)
    expected = torch.zeros(())
    for steps, weight in ((6, 1.0), (5, 0.5), (4, 0.25), (3, 0.125)):
        set_depth(net, steps, solver=FixedPoint(), gradient=JFB())
        expected = expected + weight * F.cross_entropy(net(image), label)
    torch.testing.assert_close(total, expected)
    assert solution.evaluations == 6


def test_the_trace_tells_the_logits_the_solution_and_the_tail():
    net, image = seeded(), images(3, 3, 8, 8)
    set_depth(net, 6, solver=FixedPoint(), gradient=Phantom(steps=4))
    logits, solution, tail_logits = net.trace(image)
    assert torch.equal(logits, net(image))
    assert solution.result.tolist() == [Result.OK] * 3
    assert (solution.evaluations, solution.grad_steps, len(tail_logits)) == (6, 4, 3)
    assert float(solution.residual_B.max()) < 1
    set_depth(net, 5, solver=FixedPoint(), gradient=JFB())
    assert torch.equal(tail_logits[-1], net(image))
    with torch.no_grad():
        assert net.trace(image).tail_logits == ()


def test_the_jacobian_penalty_is_that_of_its_probe():
    net, image = seeded().double(), images(2, 3, 8, 8).double()
    z = net.equilibrium(image).value
    x, kernels = net.stem(image), net.cell.kernels()
    probe = torch.randn(z.shape, generator=rng(9), dtype=z.dtype)
    J = torch.autograd.functional.jacobian(lambda z: net.cell(z, x, kernels)[0], z)[..., 0, :, :, :]
    D = z[0].numel()
    first = (J.reshape(D, D).T @ probe[0].flatten()).square().sum() / D
    whole = net.jacobian_penalty(image, z, rng(9))
    alone = net.jacobian_penalty(image[:1], z[:1], rng(9))  # the first sample draws the same probe
    torch.testing.assert_close(alone, first)
    assert not torch.equal(whole, alone)
    plain, _ = equilibrium_loss(net, image, torch.tensor([1, 2]))
    total, _ = equilibrium_loss(net, image, torch.tensor([1, 2]), jacobian_weight=2.0, rng=rng(9))
    torch.testing.assert_close(total - plain, 2 * whole)
    total.backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters())


def test_the_jacobian_penalty_descends():
    net, image = seeded(), images(2, 3, 8, 8)
    z = net.equilibrium(image).value
    before = net.jacobian_penalty(image, z, rng(9))
    kernels = [net.cell.kernel1, net.cell.kernel2]
    grads = torch.autograd.grad(before, kernels)
    with torch.no_grad():
        for kernel, grad in zip(kernels, grads, strict=True):
            kernel.sub_(0.01 * grad / grad.norm())
    assert net.jacobian_penalty(image, z, rng(9)) < before


def test_a_cell_that_diverges_is_told():
    net = seeded(norm="none")
    with torch.no_grad():
        net.cell.kernel1.mul_(1e4)
        net.cell.kernel2.mul_(1e4)
    set_depth(net, 60, solver=FixedPoint(), gradient=Phantom())
    solution = net.trace(images(2, 3, 8, 8)).solution
    assert solution.result.tolist() == [Result.NOT_FINITE] * 2
    assert torch.isfinite(solution.value).all()


def test_a_step_of_training_lowers_the_loss():
    net, image, label = seeded(), images(8, 3, 8, 8), torch.arange(8)
    set_depth(net, 6, solver=FixedPoint(), gradient=Phantom())
    optimiser = torch.optim.SGD(net.parameters(), lr=0.05)
    losses = []
    for _ in range(10):
        optimiser.zero_grad()
        loss, _ = equilibrium_loss(net, image, label, fixed_point_loss=0.8)
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


# what a user sees


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"steps": 0}, "steps = 0: expected an integer from 1 to 1000"),
        ({"steps": 1001}, "steps = 1001"),
        ({"steps": 2.0}, "steps = 2.0"),
        ({"z0": "one"}, 'z0 = "one": expected one of zero, input'),
        ({"solver": Anderson(), "gradient": Unroll()}, "expected FixedPoint"),
        ({"gradient": "phantom"}, "gradient = 'phantom': expected one of Unroll"),
    ],
)
def test_bad_depths_raise(given, said):
    options = {"steps": 2, "solver": FixedPoint(), "gradient": JFB(), **given}
    with pytest.raises(ValueError, match=said):
        set_depth(seeded(), **options)


def test_depth_refuses_a_net_of_another_kind():
    with pytest.raises(ModelError, match="Linear has no cell"):
        set_depth(nn.Linear(1, 1), 2, solver=FixedPoint(), gradient=JFB())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("deq", (3, 8, 8), 10), 'model.name = "deq": expected one of deq-xs-like'),
        (("deq-s-like", (3, 8, 7), 10), "at least 8x8"),
        (("deq-s-like", (7, 3), 10), "series of 7 steps: expected at least 8"),
        (("deq-s-like", (3, 8, 8), 10, "batch"), 'model.norm = "batch": deq-s-like expects one of group, none'),
    ],
)
def test_bad_presets_raise(given, said):
    with pytest.raises(ModelError, match=said):
        make_deq(*given)
