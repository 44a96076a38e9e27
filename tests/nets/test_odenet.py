"""The ODE nets: counts, closed forms, depth, groups."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from potluck.core.errors import ModelError
from potluck.nets.odenet import OdeStage, group_names, make_odenet, norm_names, ode_stages, set_depth, step_names

torch.set_num_threads(1)
NAMES = ["odenet-cifar-like", "odenet-34-lite-like"]


def seeded(name: str, shape=(3, 16, 16), classes: int = 10, norm: str = "group", **options) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make_odenet(name, shape, classes, norm, **options)


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def stage(rate: float | None = None, channels: int = 4) -> OdeStage:
    """A bare stage, its block replaced by z → rate · z where a rate is given; float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        made = OdeStage(channels, "none", time_channel=False).double()
    if rate is not None:
        made.block.conv1 = made.block.norm1 = made.block.norm2 = nn.Identity()
        made.block.conv2 = nn.Conv2d(channels, channels, 1, groups=channels, bias=False).double()
        nn.init.constant_(made.block.conv2.weight, rate)
    return made


# 7: counts


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_parameter_counts(norm):
    assert parameters(make_odenet("odenet-cifar-like", (3, 32, 32), 10, norm)) == 167_834
    assert parameters(make_odenet("odenet-34-lite-like", (3, 32, 32), 10, norm)) == 1_596_234
    timed = make_odenet("odenet-cifar-like", (3, 32, 32), 10, norm, time_channel=True)
    assert parameters(timed) == 167_834 + 2_016


def test_bytes_of_weights_and_of_shipped_statistics():
    def size(norm):
        net = make_odenet("odenet-cifar-like", (3, 32, 32), 10, norm)
        return sum(t.numel() * t.element_size() for t in net.state_dict().values())

    assert size("group") == 671_336
    assert size("batch") == 674_880


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("shape", "classes"), [((1, 8, 8), 3), ((3, 32, 32), 10), ((4, 9, 13), 2)])
@pytest.mark.parametrize("norm", ["group", "batch", "none"])
@pytest.mark.parametrize("time_channel", [False, True])
def test_any_image_from_8_by_8(name, shape, classes, norm, time_channel):
    net = seeded(name, shape, classes, norm, time_channel=time_channel)
    logits = net(images(2, *shape))
    assert logits.shape == (2, classes)
    logits.square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())


# 1, 2, 3, 6, 9, 12: closed forms and reductions


@pytest.mark.parametrize("step", ["unit_time", "unit_step"])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_linear_block_grows_as_its_polynomial(step, steps):
    rate = 0.3
    made = stage(rate)
    h = 1.0 if step == "unit_step" else 1 / steps
    set_depth(made, steps, step=step)
    # f(z) = rate · relu(z) = rate · z for positive z
    z = torch.rand(2, 4, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.5
    out = made(z)
    torch.testing.assert_close(out, (1 + h * rate) ** steps * z, rtol=1e-13, atol=0)
    out.sum().backward()
    expected = steps * h * (1 + h * rate) ** (steps - 1) * z.sum((0, 2, 3))
    torch.testing.assert_close(made.block.conv2.weight.grad.flatten(), expected, rtol=1e-13, atol=0)


def test_one_unit_step_is_the_residual_block():
    made = stage()
    set_depth(made, 1, step="unit_step")
    z = images(2, 4, 5, 5).double()
    assert torch.equal(made(z), z + made.block(z, 0.0))


@pytest.mark.parametrize("steps", [2, 4])
def test_unit_steps_are_a_weight_tied_residual_net(steps):
    made = stage()
    set_depth(made, steps, step="unit_step")
    copies = [copy.deepcopy(made.block) for _ in range(steps)]
    z = images(2, 4, 5, 5).double()
    tied = z
    for block in copies:
        inner = F.conv2d(tied, block.conv1.weight, padding=1)
        tied = tied + F.conv2d(F.relu(inner), block.conv2.weight, padding=1)
    out = made(z)
    torch.testing.assert_close(out, tied, rtol=1e-6, atol=1e-6)
    out.square().sum().backward()
    tied.square().sum().backward()
    for name, parameter in made.block.named_parameters():
        total = sum(dict(block.named_parameters())[name].grad for block in copies)
        torch.testing.assert_close(parameter.grad, total, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("method", "each"), [("euler", 1), ("midpoint", 2), ("heun", 2), ("rk4", 4)])
@pytest.mark.parametrize("steps", [3, [1, 2, 4]])
@pytest.mark.parametrize("training", [True, False])
def test_evaluations_of_a_forward_pass(method, each, steps, training):
    net = seeded("odenet-cifar-like", (3, 8, 8)).train(training)
    set_depth(net, steps, method=method)
    calls = []
    for module in net.modules():
        if isinstance(module, OdeStage):
            module.block.register_forward_hook(lambda *_: calls.append(1))
    net(images(1, 3, 8, 8))
    assert len(calls) == each * (9 if steps == 3 else 7)


@pytest.mark.parametrize("time_channel", [False, True])
@pytest.mark.parametrize("method", ["euler", "rk4"])
def test_learned_lengths_at_their_start_are_unit_time(time_channel, method):
    net = seeded("odenet-cifar-like", (3, 8, 8), time_channel=time_channel)
    x = images(2, 3, 8, 8)
    set_depth(net, 4, method=method)
    even = net(x)
    set_depth(net, 4, method=method, step="learned")
    learned = net(x)
    torch.testing.assert_close(learned, even)
    learned.square().sum().backward()
    assert all(module.h.grad.abs().min() > 0 for module in net.modules() if isinstance(module, OdeStage))


def test_unit_time_converges_at_first_order():
    made = stage()
    for conv in (made.block.conv1, made.block.conv2):
        nn.init.normal_(conv.weight, std=0.2, generator=torch.Generator().manual_seed(3))
    z = images(2, 4, 5, 5, seed=2).double()

    @torch.no_grad()
    def out(steps):
        set_depth(made, steps)
        return made(z)

    gaps = [float((out(steps) - out(2 * steps)).norm()) for steps in (8, 16, 32, 64)]
    for wide, narrow in itertools.pairwise(gaps):
        assert wide / narrow == pytest.approx(2, rel=0.2)


@pytest.mark.parametrize("step", ["unit_time", "learned"])
def test_checkpoints_change_neither_value_nor_gradient(step):
    x = images(2, 3, 8, 8)
    found = []
    for checkpoint in (False, True):
        net = seeded("odenet-cifar-like", (3, 8, 8), time_channel=True)
        set_depth(net, 3, method="heun", step=step, checkpoint=checkpoint)
        calls = []
        net.trunk.ode1.block.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        out = net(x)
        out.square().sum().backward()
        assert len(calls) == (12 if checkpoint else 6)
        found.append((out, [p.grad for p in net.parameters()]))
    assert torch.equal(found[0][0], found[1][0])
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))


def test_the_time_channel_matters():
    net = seeded("odenet-cifar-like", (3, 8, 8), time_channel=True)
    block = next(m.block for m in net.modules() if isinstance(m, OdeStage))
    z = images(1, 16, 8, 8)
    assert not torch.equal(block(z, 0.0), block(z, 0.5))


# 8: what the state dict holds


@pytest.mark.parametrize("name", NAMES)
def test_weights_do_not_know_the_step_count(name):
    few, many = seeded(name), make_odenet(name, (3, 16, 16), 10)
    set_depth(few, 2, method="rk4", step="unit_step")
    set_depth(many, 20, checkpoint=True)
    shapes = {key: value.shape for key, value in few.state_dict().items()}
    assert shapes == {key: value.shape for key, value in many.state_dict().items()}
    many.load_state_dict(few.state_dict())
    set_depth(many, 2, method="rk4", step="unit_step")
    x = images(1, 3, 16, 16)
    assert torch.equal(few(x), many(x))


def test_learned_lengths_come_and_go():
    net = seeded("odenet-cifar-like")
    plain = set(net.state_dict())
    set_depth(net, [2, 3, 4], step="learned")
    assert {key: net.state_dict()[key].tolist() for key in sorted(step_names(net))} == {
        f"trunk.ode{i}.h": pytest.approx([1 / count] * count) for i, count in ((1, 2), (2, 3), (3, 4))
    }
    assert set(net.state_dict()) == plain | step_names(net)
    assert all(f"trunk.ode{i}.h" in dict(net.named_parameters()) for i in (1, 2, 3))
    set_depth(net, 2)
    assert set(net.state_dict()) == plain
    assert step_names(net) == frozenset()


@pytest.mark.parametrize(("norm", "tensors", "numbers"), [("group", 22, 864), ("batch", 55, 1739), ("none", 0, 0)])
def test_the_group_is_the_norms_and_the_learned_lengths(norm, tensors, numbers):
    net = seeded("odenet-cifar-like", norm=norm)
    state = net.state_dict()
    assert len(norm_names(net)) == tensors
    assert sum(state[name].numel() for name in norm_names(net)) == numbers
    assert group_names(net) == norm_names(net) <= set(state)
    set_depth(net, 4, step="learned")
    assert group_names(net) == norm_names(net) | step_names(net)
    assert len(step_names(net)) == 3
    assert not any("conv" in name or "head" in name for name in group_names(net))


def test_stages_are_counted():
    assert [ode_stages(seeded(name)) for name in NAMES] == [3, 3]
    assert ode_stages(nn.Linear(1, 1)) == 0


# what a user sees


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"steps": 0}, "steps = 0: expected an integer from 1 to 1000"),
        ({"steps": 1001}, "steps = 1001: expected an integer from 1 to 1000"),
        ({"steps": [1, 2, 3.0]}, r"steps = 3\.0"),
        ({"steps": True}, "steps = True"),
        ({"steps": [1, 2, 3, 4]}, 'steps has 4 entries, model "odenet-cifar-like" has 3 ODE stages'),
        ({"method": "dopri5"}, 'solver = "dopri5": expected one of euler, midpoint, heun, rk4'),
        ({"step": "unit"}, 'step = "unit": expected one of unit_time, unit_step, learned'),
    ],
)
def test_bad_depths_raise(given, said):
    net = seeded("odenet-cifar-like")
    options = {"steps": 2, **given}
    with pytest.raises(ModelError, match=said):
        set_depth(net, **options)


def test_checkpoints_refuse_batch_norm():
    with pytest.raises(ModelError, match=r'checkpoint = true with model\.norm = "batch"'):
        set_depth(seeded("odenet-cifar-like", norm="batch"), 2, checkpoint=True)


def test_depth_refuses_a_net_without_stages():
    with pytest.raises(ModelError, match="Linear has no ODE stage"):
        set_depth(nn.Linear(1, 1), 2)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("odenet", (3, 8, 8), 10), 'model.name = "odenet": expected one of'),
        (("odenet-cifar-like", (3, 7, 8), 10), "expected .* at least 8x8"),
        (("odenet-cifar-like", (7, 3), 10), "series of 7 steps: expected at least 8"),
        (("odenet-cifar-like", (3, 8, 8), 10, "layer"), 'model.norm = "layer"'),
    ],
)
def test_bad_presets_raise(given, said):
    with pytest.raises(ModelError, match=said):
        make_odenet(*given)
