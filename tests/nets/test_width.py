"""Width slices: which entries a narrow net holds, that it computes what it should, and what cannot be sliced."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potluck.core import tree
from potluck.core.errors import ModelError
from potluck.core.types import Inputs
from potluck.nets import NETS as ALL
from potluck.nets.width import embed, index_map, narrow, slice_weights
from potluck.nets.zoo import count_parameters, make

COLOUR = (3, 32, 32)
LARGE = ("resnet34", "resnet44", "resnet56", "resnet110")
NETS = [name for name, entry in ALL.items() if name not in LARGE and entry.kind != "deq" and "images" in entry.inputs]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def small(norm: str = "group") -> nn.Module:
    return make("resnet8", Inputs((3, 8, 8)), 10, norm)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("norm", ["group", "batch"])
@pytest.mark.parametrize("rate", [0.25, 0.3])
def test_every_net_can_be_sliced(name: str, norm: str, rate: float) -> None:
    net = make(name, Inputs((3, 9, 12)), 7, norm)
    thin = narrow(net, rate, Inputs((3, 9, 12)), scaler=True).train()
    x_BCHW = torch.randn(4, 3, 9, 12)
    assert thin(x_BCHW).shape == (4, 7)
    assert count_parameters(thin) < 0.5 * count_parameters(net)


@pytest.mark.parametrize(("norm", "rate"), [("group", 0.3), ("batch", 0.3), ("none", 0.3), ("batch", 0.1)])
def test_widths_are_rounded_with_group_norm_only(norm: str, rate: float) -> None:
    net = make("resnet20", Inputs((3, 8, 8)), 10, norm)
    thin = narrow(net, rate, Inputs((3, 8, 8)))
    unit = 4 if norm == "group" else 1
    for name, layer in net.named_modules():
        held = thin.get_submodule(name)
        if isinstance(layer, nn.Conv2d):
            assert isinstance(held, nn.Conv2d)
            assert held.out_channels == unit * math.ceil(math.ceil(rate * layer.out_channels) / unit)
            assert tuple(held.weight.shape[:2]) == (held.out_channels, held.in_channels)
        if isinstance(layer, nn.GroupNorm):
            assert isinstance(held, nn.GroupNorm)
            assert held.num_channels == 4 * held.num_groups
    assert thin.get_submodule("stem").in_channels == 3
    assert thin.get_submodule("classifier").out_features == 10


def test_a_width_is_not_a_channel_too_many_from_rounding() -> None:
    net = nn.Sequential(nn.Linear(5, 25), nn.ReLU(), nn.Linear(25, 2))
    assert 0.28 * 25 > 7
    assert narrow(net, 0.28, Inputs((5,))).get_submodule("0").out_features == 7


def test_a_layer_by_hand_with_two_rates() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    full = net.state_dict()
    full["1.weight"].copy_(torch.arange(16.0).reshape(4, 4))
    half = index_map(full, narrow(net, 0.5, Inputs((4,))).state_dict())
    most = index_map(full, narrow(net, 0.75, Inputs((4,))).state_dict())
    assert slice_weights(full, half)["1.weight"].tolist() == [[0, 1], [4, 5]]
    assert slice_weights(full, most)["1.weight"].tolist() == [[0, 1, 2], [4, 5, 6], [8, 9, 10]]
    assert slice_weights(full, half)["0.weight"].shape == (2, 4)
    assert slice_weights(full, half)["2.weight"].shape == (4, 2)
    changed = embed({**slice_weights(full, half), "1.weight": torch.full((2, 2), -1.0)}, full, half)
    assert changed["1.weight"].tolist() == [[-1, -1, 2, 3], [-1, -1, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]]


@pytest.mark.parametrize(("name", "norm"), [("resnet8", "batch"), ("lenet", "none"), ("odenet-cifar-like", "group")])
def test_slice_and_embed_is_the_identity(name: str, norm: str) -> None:
    net = make(name, Inputs((3, 12, 12)), 10, norm)
    full = net.state_dict()
    index = index_map(full, narrow(net, 0.5, Inputs((3, 12, 12))).state_dict())
    part = slice_weights(full, index)
    assert tree.equal(embed(part, full, index), full)
    zeros = {name: torch.zeros_like(value) for name, value in full.items()}
    assert tree.equal(slice_weights(embed(part, zeros, index), index), part)
    first = next(iter(part))
    whole = embed({**part, first: torch.full_like(part[first], 9.0)}, full, index)
    assert bool((whole[first] == 9).any())
    assert not bool((full[first] == 9).any())
    part[first].fill_(9.0)
    assert not bool((full[first] == 9).any())


def test_the_narrow_net_holds_the_slice() -> None:
    net = small()
    thin = narrow(net, 0.5, Inputs((3, 8, 8)))
    assert tree.equal(
        slice_weights(net.state_dict(), index_map(net.state_dict(), thin.state_dict())), thin.state_dict()
    )


@pytest.mark.parametrize("name", ["resnet8", "resnet18", "lenet", "cnn", "odenet-cifar-like"])
@pytest.mark.parametrize("norm", ["group", "batch"])
def test_it_computes_what_the_full_net_does_with_zeros_elsewhere(name: str, norm: str) -> None:
    shape = (2, 13, 9)
    net = make(name, Inputs(shape), 5, norm).eval()
    for layer in net.modules():  # statistics that are not trivial
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean)
            nn.init.uniform_(layer.running_var, 0.5, 2.0)
    thin = narrow(net, 0.5, Inputs(shape)).eval()
    full = net.state_dict()
    index = index_map(full, thin.state_dict())
    zeros = {key: torch.zeros_like(value) for key, value in full.items()}
    net.load_state_dict(embed(slice_weights(full, index), zeros, index))
    x_BCHW = torch.randn(3, *shape)
    assert torch.allclose(net(x_BCHW), thin(x_BCHW), atol=1e-5)


def test_flattened_channels_keep_their_pixels() -> None:
    net = make("lenet", Inputs((1, 28, 28)), 10, "none")
    thin = narrow(net, 0.5, Inputs((1, 28, 28)))
    wide, held = net.get_submodule("dense1").weight, thin.get_submodule("dense1").weight
    assert held.shape == (60, 8 * 16)
    assert torch.equal(held, wide[:60, : 8 * 16])


def test_width_one_is_the_net_itself() -> None:
    net = small("batch")
    same = narrow(net, 1.0, Inputs((3, 8, 8)), scaler=True).train()
    assert tree.equal(same.state_dict(), net.state_dict())
    x_BCHW = torch.randn(4, 3, 8, 8)
    assert torch.equal(same(x_BCHW), net.train()(x_BCHW))


def test_the_full_net_and_the_generator_are_untouched() -> None:
    net = small("batch").train()
    before, random = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    thin = narrow(net, 0.5, Inputs((3, 8, 8)))
    assert tree.equal(net.state_dict(), before)
    assert torch.equal(torch.get_rng_state(), random)
    assert net.training
    assert all(module.training for module in thin.modules())
    assert float(thin.get_submodule("stem_norm").num_batches_tracked) == 0
    assert thin.get_submodule("stem").weight.data_ptr() != net.get_submodule("stem").weight.data_ptr()


def test_the_scaler_works_in_training_only_and_not_on_the_last_layer() -> None:
    net = nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    plain, scaled = narrow(net, 0.5, Inputs((3,))), narrow(net, 0.5, Inputs((3,)), scaler=True)
    x_BI = torch.randn(5, 3)
    assert torch.equal(scaled.eval()(x_BI), plain.eval()(x_BI))
    a, b, c = plain
    wanted = c(b(a(x_BI) / 0.5) / 0.5)
    assert torch.allclose(scaled.train()(x_BI), wanted)
    assert not torch.allclose(wanted, plain.train()(x_BI), atol=1e-2)
    assert torch.allclose(copy.deepcopy(scaled).train()(x_BI), wanted)
    assert scaled.state_dict().keys() == net.state_dict().keys()


class Concat(nn.Module):
    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.left, self.right = nn.Linear(6, 8), nn.Linear(6, 8)
        self.top = nn.Linear(16, 3)

    def forward(self, x_BI: Tensor) -> Tensor:
        out: Tensor = self.top(torch.cat([self.left(x_BI), self.right(x_BI)], dim=1))
        return out


class Fixed(nn.Module):
    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.conv = nn.Conv2d(1, 8, 3)
        self.dense = nn.Linear(8 * 36, 3)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        out: Tensor = self.dense(F.relu(self.conv(x_BCHW)).view(-1, 8 * 36))
        return out


class Spare(nn.Module):
    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.used, self.last, self.spare = nn.Linear(6, 8), nn.Linear(8, 2), nn.Linear(8, 2)

    def forward(self, x_BI: Tensor) -> Tensor:
        out: Tensor = self.last(self.used(x_BI))
        return out


@pytest.mark.parametrize(
    ("net", "shape", "message"),
    [
        (nn.Sequential(nn.Conv2d(1, 8, 3), nn.GroupNorm(1, 8), nn.Conv2d(8, 2, 3)), (1, 8, 8), 'layer "1": 4 channels'),
        (
            nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 2)),
            (6,),
            'layer "1": there is no slice of a Layer',
        ),
        (nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 2, 3)), (1, 8, 8), 'layer "1"'),
        (Concat(), (6,), 'Concat cannot be sliced at layer "top": its inputs are not the first'),
        (Fixed(), (1, 8, 8), 'layer "dense": its inputs'),  # its view mixes samples
        (Spare(), (6,), 'layer "spare": the forward pass does not reach it'),
        (nn.Flatten(), (6,), "no convolution or linear layer"),
    ],
)
def test_what_cannot_be_sliced_names_layer_and_rate(net: nn.Module, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        narrow(net, 0.5, Inputs(shape))
    assert "method.width = 0.5" in str(caught.value)


def test_an_equilibrium_cell_has_kernels_of_its_own_and_no_slice() -> None:
    with pytest.raises(ModelError, match=r'method\.width = 0\.5: DeqNet cannot be sliced at layer "cell"'):
        narrow(make("deq-xs-like", Inputs((3, 8, 8)), 10, "group"), 0.5, Inputs((3, 8, 8)))


@pytest.mark.parametrize("rate", [0.0, 1.5, -1.0])
def test_the_rate_has_a_range(rate: float) -> None:
    with pytest.raises(ModelError, match="expected 0 < width <= 1"):
        narrow(small(), rate, Inputs((3, 8, 8)))


def test_a_block_used_twice_is_cut_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            nn.Module.__init__(self)
            self.first, self.block, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x_BI: Tensor) -> Tensor:
            z_BO = self.first(x_BI)
            z_BO = z_BO + self.block(z_BO)
            out: Tensor = self.last(z_BO + self.block(z_BO))
            return out

    thin = narrow(Tied(), 0.5, Inputs((6,)))
    assert thin.get_submodule("block").weight.shape == (4, 4)


def test_an_index_map_needs_the_same_tensors() -> None:
    full = {"a": torch.zeros(4, 4), "b": torch.zeros(4)}
    with pytest.raises(ModelError, match="differ in their tensors: b"):
        index_map(full, {"a": torch.zeros(2, 2)})
    with pytest.raises(ModelError, match=r"b: \(5,\) is no slice of \(4,\)"):
        index_map(full, {"a": torch.zeros(2, 2), "b": torch.zeros(5)})
