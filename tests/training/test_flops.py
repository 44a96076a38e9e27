"""FLOPs of a forward pass, against closed forms and the table of FedHM."""

import copy

import pytest
import torch
from torch import Tensor, nn

from potluck.core import meter, tree
from potluck.core.types import Inputs
from potluck.lowrank.factorise import low_rank
from potluck.lowrank.layers import factorisable, ranks_by_factor
from potluck.nets.zoo import make
from potluck.training.flops import forward_flops

COLOUR = (3, 32, 32)


def test_closed_form_of_one_convolution_and_one_linear_layer() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 5 * 6, 7))
    assert forward_flops(net, Inputs((3, 9, 11))) == 2 * (8 * 3 * 9 * 5 * 6 + 8 * 5 * 6 * 7)


@pytest.mark.parametrize(
    ("name", "classes", "factor", "macs"),
    [
        ("resnet18", 10, 1, 555_422_720),
        ("resnet18", 10, 2, 259_724_288),
        ("resnet18", 10, 4, 171_643_904),
        ("resnet18", 10, 8, 127_603_712),
        ("resnet34", 100, 1, 1_159_448_576),
        ("resnet34", 100, 2, 744_212_480),
        ("resnet34", 100, 4, 630_966_272),
        ("resnet34", 100, 8, 574_343_168),
        ("resnet34", 100, 12, 555_173_888),
        ("resnet34", 100, 64, 524_797_952),
    ],
)
def test_macs_of_fedhm(name: str, classes: int, factor: float, macs: int) -> None:
    net = make(name, Inputs(COLOUR), classes, "group")
    assert forward_flops(low_rank(net, ranks_by_factor(factorisable(net), factor)), Inputs(COLOUR)) == 2 * macs


def test_the_net_is_untouched() -> None:
    torch.manual_seed(0)
    net = make("resnet8", Inputs(COLOUR), 10, "batch").train()
    net.get_submodule("stem_norm").eval()
    before = copy.deepcopy(net.state_dict())
    modes = [module.training for module in net.modules()]
    random = torch.get_rng_state()
    forward_flops(net, Inputs(COLOUR))
    assert tree.equal(before, net.state_dict())
    assert [module.training for module in net.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert all(weight.grad is None for weight in net.parameters())


class Counting(nn.Module):
    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.dense = nn.Linear(4, 2)

    def forward(self, x_BI: Tensor) -> Tensor:
        meter.add_flops(1000)
        out: Tensor = self.dense(x_BI)
        return out


def test_what_a_net_counts_itself_does_not_leak() -> None:
    with meter.metering() as outer:
        assert forward_flops(Counting(), Inputs((4,))) == 16
    assert outer.flops == 0


def test_a_norm_without_running_statistics_over_one_pixel() -> None:
    assert forward_flops(make("resnet18", Inputs((1, 8, 8)), 10, "batch_stat"), Inputs((1, 8, 8))) > 0
