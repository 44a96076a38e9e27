"""Low-rank layers: the pair of small layers, which layers stay full, counts, decay and the compact form."""

import copy

import pytest
import torch
from torch import Tensor, nn

from potluck.core import tree
from potluck.core.errors import ModelError, TrainingError
from potluck.core.types import Inputs
from potluck.lowrank.factorise import (
    LowRankConv2d,
    LowRankLinear,
    add_frobenius_gradient,
    compact,
    factorise,
    low_rank,
    low_rank_layers,
    recover,
)
from potluck.lowrank.layers import factorisable, grouped, ranks_by_factor
from potluck.lowrank.matrix import Flatten, break_even, from_matrix, matrix_shape, to_matrix
from potluck.nets.resnet import BasicBlock
from potluck.nets.zoo import count_parameters, make

FLATTEN: tuple[Flatten, ...] = ("ok_ik", "o_ikk")
COLOUR = (3, 32, 32)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def factors_of(net: nn.Module) -> list[Tensor]:
    return [factor for layer in low_rank_layers(net).values() for factor in (layer.u, layer.v)]


@pytest.mark.parametrize("flatten", FLATTEN)
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("inputs", "outputs"), [(6, 4), (5, 5), (3, 7)])
def test_full_rank_equals_the_convolution(
    flatten: Flatten, kernel: int, stride: int, inputs: int, outputs: int
) -> None:
    conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=stride == 2)
    pair = factorise(conv, {"": 10_000}, flatten)
    assert isinstance(pair, LowRankConv2d)
    assert pair.v.shape[0] == min(matrix_shape(conv.weight.shape, flatten))
    x_BCHW = torch.randn(2, inputs, 9, 8)
    assert torch.allclose(pair(x_BCHW), conv(x_BCHW), atol=1e-5)


@pytest.mark.parametrize("flatten", FLATTEN)
@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 6, (3, 5), stride=(2, 1), padding=(1, 0), dilation=(1, 2)),
        nn.Conv2d(4, 6, 3, padding="same", dilation=2),
        nn.Conv2d(4, 6, (5, 1), padding="valid", bias=False),
    ],
)
def test_uneven_kernels_strides_paddings_and_dilations(flatten: Flatten, conv: nn.Conv2d) -> None:
    x_BCHW = torch.randn(2, 4, 13, 14)
    pair = factorise(conv, {"": 10_000}, flatten)
    assert torch.allclose(pair(x_BCHW), conv(x_BCHW), atol=1e-5)
    back = recover(pair)
    assert isinstance(back, nn.Conv2d)
    assert torch.allclose(back(x_BCHW), conv(x_BCHW), atol=1e-5)


def test_a_linear_layer_of_full_rank_on_any_leading_shape() -> None:
    dense = nn.Linear(7, 5)
    pair = factorise(dense, {"": 5})
    assert isinstance(pair, LowRankLinear)
    x_BTI = torch.randn(2, 3, 7)
    assert torch.allclose(pair(x_BTI), dense(x_BTI), atol=1e-5)


def test_the_axes_must_move() -> None:
    weight_OIHW = torch.randn(8, 6, 3, 3)
    careless = from_matrix(weight_OIHW.reshape(24, 18), weight_OIHW.shape, "ok_ik")
    assert float((careless - weight_OIHW).norm() / weight_OIHW.norm()) > 1
    m_MN = to_matrix(weight_OIHW, "ok_ik")
    assert float(m_MN[5 * 3 + 2, 4 * 3 + 1]) == float(weight_OIHW[5, 4, 2, 1])


@pytest.mark.parametrize("flatten", FLATTEN)
@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 3, 5), (4, 6, 3)])
def test_matrix_views_are_inverse(flatten: Flatten, shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape)
    m_MN = to_matrix(weight, flatten)
    assert tuple(m_MN.shape) == matrix_shape(shape, flatten)
    assert torch.equal(from_matrix(m_MN, shape, flatten), weight)


@pytest.mark.parametrize(
    ("shape", "flatten", "rank"),
    [
        ((32, 1, 5, 5), "o_ikk", 14),
        ((64, 32, 5, 5), "o_ikk", 59),
        ((512, 3136), "o_ikk", 440),
        ((10, 512), "o_ikk", 9),
        ((64, 64, 3, 3), "o_ikk", 57),
        ((128, 128, 3, 3), "o_ikk", 115),
        ((256, 256, 3, 3), "o_ikk", 230),
        ((512, 512, 3, 3), "o_ikk", 460),
        ((64, 64, 3, 3), "ok_ik", 95),
        ((128, 128, 3, 3), "ok_ik", 191),
        ((256, 256, 3, 3), "ok_ik", 383),
        ((512, 512, 3, 3), "ok_ik", 767),
    ],
)
def test_break_even(shape: tuple[int, ...], flatten: Flatten, rank: int) -> None:
    rows, columns = matrix_shape(shape, flatten)
    assert break_even(rows, columns) == rank
    assert rank * (rows + columns) < rows * columns <= (rank + 1) * (rows + columns)


def test_at_break_even_exactly_the_full_tensor_wins() -> None:
    assert break_even(6, 3) == 1  # 2·(6 + 3) = 6·3
    assert break_even(4, 1) == 0


@pytest.mark.parametrize(
    ("name", "classes", "factor", "parameters"),
    [
        ("resnet18", 10, 1, 11_173_962),
        ("resnet18", 10, 2, 4_157_514),
        ("resnet18", 10, 4, 2_209_866),
        ("resnet18", 10, 8, 1_236_042),
        ("resnet34", 100, 1, 21_328_292),
        ("resnet34", 100, 2, 8_401_316),
        ("resnet34", 100, 4, 4_985_252),
        ("resnet34", 100, 8, 3_277_220),
        ("resnet34", 100, 12, 2_707_748),
        ("resnet34", 100, 64, 1_782_692),
    ],
)
def test_parameter_counts_of_fedhm(name: str, classes: int, factor: float, parameters: int) -> None:
    net = make(name, Inputs(COLOUR), classes, "group")
    small = low_rank(net, ranks_by_factor(factorisable(net), factor))
    assert count_parameters(small) == parameters
    assert tree.nbytes({"weights": {k.replace(".", "-"): v for k, v in small.state_dict().items()}}) == 4 * parameters


def test_ranks_are_at_least_one_round_half_to_even_and_must_pay() -> None:
    layers = {"a": (16, 16, 3, 3), "b": (20, 16, 3, 3), "c": (28, 16, 3, 3), "d": (64, 1)}
    assert ranks_by_factor(layers, 64) == {"a": 1, "b": 1, "c": 1}
    assert ranks_by_factor(layers, 8) == {"a": 2, "b": 2, "c": 4}
    assert ranks_by_factor(layers, 1) == {}
    assert ranks_by_factor({"a": (16, 16, 3, 3)}, 1.01, "o_ikk") == {}


def kept(name: str, shape: tuple[int, ...]) -> list[str]:
    net = make(name, Inputs(shape), 10, "group")
    low = factorisable(net)
    return [n for n, one in net.named_modules() if isinstance(one, nn.Linear | nn.Conv2d) and n not in low]


def test_what_stays_full_by_the_general_rule() -> None:
    assert kept("resnet20", COLOUR) == ["stem", "stages.stage1.0.conv1", "stages.stage1.0.conv2", "classifier"]
    assert kept("cnn", (1, 28, 28)) == ["conv1", "classifier"]
    assert kept("lenet", (1, 28, 28)) == ["conv1", "classifier"]
    assert kept("odenet-cifar-like", COLOUR) == [
        "trunk.stem.0",
        "trunk.ode1.block.conv1",
        "trunk.ode1.block.conv2",
        "head",
    ]


def test_what_stays_full_by_the_hybrid_rule() -> None:
    of_18, of_34 = kept("resnet18", COLOUR), kept("resnet34", COLOUR)
    shortcuts = [f"stages.stage{stage}.0.shortcut.0" for stage in (2, 3, 4)]
    assert of_18 == ["stem", "stages.stage1.0.conv1", "stages.stage1.0.conv2", *shortcuts, "classifier"]
    first = [f"stages.stage1.{i}.conv{j}" for i in range(3) for j in (1, 2)]
    second = [f"stages.stage2.{i}.conv{j}" for i in range(4) for j in (1, 2)]
    assert set(of_34) == {"stem", *first, *second, *shortcuts, "classifier"}


def test_the_only_block_of_a_net_may_be_factorised() -> None:
    def net(blocks: int) -> nn.Module:
        inner = [BasicBlock(8, 8, 1, "group", project=False) for _ in range(blocks)]
        return nn.Sequential(nn.Conv2d(3, 8, 3), *inner, nn.Flatten(), nn.Linear(8 * 36, 2))

    assert [*factorisable(net(1))] == ["1.conv1", "1.conv2"]
    assert [*factorisable(net(2))] == ["2.conv1", "2.conv2"]


def test_keep_full_replaces_the_rule() -> None:
    net = make("resnet8", Inputs(COLOUR), 10, "group")
    low = factorisable(net, keep_full=["stages.stage1", "classifier"])
    assert [*low][:2] == ["stem", "stages.stage2.0.conv1"]
    assert len(low) == 5
    assert "stages.stage1.0.conv1" in factorisable(net, keep_full=[])
    with pytest.raises(ModelError, match=r'method\.keep_full: the net has no layer "stage9"; it has: stem, stages'):
        factorisable(net, keep_full=["stage9"])


def test_a_net_without_a_factorisable_layer_is_an_error() -> None:
    with pytest.raises(ModelError, match=r"Sequential has no layer to factorise \(its layers: 0, 2"):
        factorisable(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
    with pytest.raises(ModelError, match="DeqNet has no layer to factorise"):
        factorisable(make("deq-xs-like", Inputs((3, 8, 8)), 10, "group"))


def test_grouped_convolutions_stay_full() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 2, 3))
    assert [*factorisable(net)] == ["2"]
    assert grouped(net) == ["1"]


def test_shared_and_special_layers_stay_full() -> None:
    shared = nn.Linear(6, 6)
    net = nn.Sequential(nn.Linear(6, 6), shared, nn.Linear(6, 6), shared, nn.MultiheadAttention(6, 2), nn.Linear(6, 6))
    assert [*factorisable(net, keep_full=[])] == ["0", "2", "5"]
    assert [*factorisable(nn.Sequential(nn.Conv2d(4, 4, 3, padding_mode="circular"), nn.Linear(4, 4)), [])] == ["1"]


def test_factorise_leaves_the_net_alone_and_recover_undoes_it() -> None:
    net = make("resnet8", Inputs((1, 8, 8)), 10, "group")
    before = copy.deepcopy(net.state_dict())
    full = dict.fromkeys(factorisable(net), 10_000)
    low = factorise(net, full)
    assert tree.equal(before, net.state_dict())
    assert {"stages.stage2.0.conv1.u", "stages.stage2.0.conv1.v", "stem.weight"} <= low.state_dict().keys()
    back = recover(low)
    assert back.state_dict().keys() == before.keys()
    for name, value in back.state_dict().items():
        assert torch.allclose(value, before[name], atol=1e-5), name
    assert isinstance(low.get_submodule("stages.stage2.0.conv1"), LowRankConv2d)


def test_factors_travel_by_state_dict() -> None:
    net = make("cnn", Inputs((1, 28, 28)), 10, "group")
    ranks = ranks_by_factor(factorisable(net), 8)
    low, waiting = factorise(net, ranks), low_rank(net, ranks)
    assert all(not bool(factor.any()) for factor in factors_of(waiting))
    waiting.load_state_dict(low.state_dict())
    x_BCHW = torch.randn(2, 1, 28, 28)
    assert torch.equal(waiting(x_BCHW), low(x_BCHW))


def test_factorise_is_pure_and_takes_the_leading_part() -> None:
    net = make("mlp", Inputs((60,)), 10, "group")
    first, again = factorise(net, {"dense2": 6}), factorise(net, {"dense2": 6})
    assert tree.equal(first.state_dict(), again.state_dict())
    weight = net.get_submodule("dense2").weight.detach()
    lost = float((recover(first).get_submodule("dense2").weight.detach() - weight).norm())
    assert lost == pytest.approx(float(torch.linalg.svdvals(weight)[6:].norm()), rel=1e-4)


def test_weights_that_are_not_finite_are_refused_by_layer() -> None:
    net = make("mlp", Inputs((60,)), 10, "group")
    net.get_submodule("dense2").weight.data[0, 0] = torch.nan
    with pytest.raises(TrainingError, match='layer "dense2"'):
        factorise(net, {"dense2": 6})


@pytest.mark.parametrize("flatten", FLATTEN)
def test_frobenius_gradient_equals_autograd(flatten: Flatten) -> None:
    net = make("resnet8", Inputs((1, 8, 8)), 10, "group").double()
    low = factorise(net, dict.fromkeys(factorisable(net), 5), flatten)
    products = [(layer.u @ layer.v).square().sum() for layer in low_rank_layers(low).values()]
    wanted = torch.autograd.grad(0.5 * 0.3 * torch.stack(products).sum(), factors_of(low))
    add_frobenius_gradient(low, 0.3)
    found = [factor.grad for factor in factors_of(low)]
    for one, other in zip(found, wanted, strict=True):
        assert one is not None
        assert torch.allclose(one, other, rtol=1e-6, atol=1e-12)
    add_frobenius_gradient(low, 0.3)
    assert torch.allclose(low_rank_layers(low)["stages.stage3.0.conv2"].u.grad, 2 * wanted[-2], rtol=1e-6)
    assert all(weight.grad is None for name, weight in low.named_parameters() if name[-2:] not in (".u", ".v"))


def test_no_decay_adds_exactly_nothing() -> None:
    low = factorise(make("mlp", Inputs((60,)), 10, "group"), {"dense2": 4})
    add_frobenius_gradient(low, 0.0)
    assert all(factor.grad is None for factor in factors_of(low))


def test_products_do_not_depend_on_scale_or_rotation_of_the_factors() -> None:
    net = make("resnet8", Inputs((1, 8, 8)), 10, "group")
    low = factorise(net, dict.fromkeys(factorisable(net), 5))
    moved = copy.deepcopy(low)
    rotation_RR, _ = torch.linalg.qr(torch.randn(5, 5))
    for layer in low_rank_layers(moved).values():
        layer.u.data = 3.0 * layer.u.data @ rotation_RR
        layer.v.data = rotation_RR.T @ layer.v.data / 3.0
    assert not tree.equal(low.state_dict(), moved.state_dict())
    for one, other in zip(recover(low).parameters(), recover(moved).parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def low_rank_weights(net: nn.Module, rank: int, flatten: Flatten) -> None:
    for layer in net.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            rows, columns = matrix_shape(layer.weight.shape, flatten)
            product = torch.randn(rows, rank) @ torch.randn(rank, columns) / columns**0.5
            layer.weight.data = from_matrix(product, layer.weight.shape, flatten)


@pytest.mark.parametrize("flatten", FLATTEN)
@pytest.mark.parametrize("name", ["resnet8", "cnn"])
def test_the_compact_net_computes_the_same(name: str, flatten: Flatten) -> None:
    net = make(name, Inputs((2, 12, 12)), 10, "group")
    low_rank_weights(net, 3, flatten)
    small = compact(net, 1 - 1e-9, flatten=flatten)
    ranks = {layer.v.shape[0] for layer in low_rank_layers(small).values()}
    assert ranks == {3}
    assert count_parameters(small) < 0.5 * count_parameters(net)
    x_BCHW = torch.randn(3, 2, 12, 12)
    with torch.no_grad():
        whole, less, rebuilt = net(x_BCHW), small(x_BCHW), recover(small)(x_BCHW)
    scale = float(whole.abs().max())
    assert float((less - rebuilt).abs().max()) <= 1e-5 * scale
    assert float((less - whole).abs().max()) <= 1e-4 * scale


def test_compact_leaves_a_layer_full_where_that_is_cheaper() -> None:
    net = make("lenet", Inputs((1, 28, 28)), 10, "group")
    assert low_rank_layers(compact(net, 0.9999)) == {}
    assert "dense1" in low_rank_layers(compact(net, 0.3))
    assert count_parameters(compact(net, 0.8)) <= count_parameters(net)


def test_energy_and_flatten_reach_the_compact_form() -> None:
    net = make("cnn", Inputs((1, 28, 28)), 10, "group")
    squared, plain = compact(net, 0.3), compact(net, 0.3, "plain")
    assert low_rank_layers(squared)["dense1"].v.shape[0] < low_rank_layers(plain)["dense1"].v.shape[0]
    assert low_rank_layers(compact(net, 0.3, flatten="ok_ik"))["conv2"].v.shape[1] == 32 * 5


@pytest.mark.parametrize("name", ["mlp", "lenet", "cnn-2m", "resnet8", "odenet-cifar-like", "odenet-34-lite-like"])
def test_nets_of_the_zoo_run_in_low_rank_form(name: str) -> None:
    net = make(name, Inputs((3, 16, 16)), 10, "none" if name in ("mlp", "lenet", "cnn-2m") else "group")
    ranks = ranks_by_factor(factorisable(net), 4)
    assert ranks
    assert factorise(net, ranks)(torch.randn(2, 3, 16, 16)).shape == (2, 10)
