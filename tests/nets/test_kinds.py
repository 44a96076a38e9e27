"""Nets of series, tokens and rows: what they say, that padding does not count, and what may be made smaller."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from potluck.core.errors import ModelError
from potluck.core.types import Inputs
from potluck.lowrank.factorise import compact, factorise, recover
from potluck.lowrank.layers import candidates, factorisable, ranks_by_factor
from potluck.nets import NETS
from potluck.nets.recurrent import GATES, Gru
from potluck.nets.width import embed, index_map, narrow, slice_weights
from potluck.nets.zoo import count_parameters, make
from potluck.training.flops import forward_flops

EXAMPLES = {
    "images": Inputs((3, 8, 8)),
    "rows": Inputs((20,)),
    "series": Inputs((12, 5)),
    "tokens": Inputs((12,), 300),
}
PAIRS = [(name, kind) for name in NETS for kind in NETS[name].inputs if kind != "images"]
SLICED = [pair for pair in PAIRS if NETS[pair[0]].kind != "deq" and pair[0] != "transformer-s"]


def made(name: str, kind: str) -> nn.Module:
    torch.manual_seed(0)
    return make(name, EXAMPLES[kind], 7, "group").eval()


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_a_net_says_what_the_task_needs_and_learns_it(name: str, kind: str) -> None:
    net, x = made(name, kind), EXAMPLES[kind].example(4)
    out = net(x)
    assert out.shape == ((4, 12, 7) if NETS[name].per_step else (4, 7))
    out.square().sum().backward()
    assert all(weight.grad is not None for weight in net.parameters())
    assert name == "bag" or forward_flops(net, EXAMPLES[kind]) > 0
    alone = torch.cat([net(x[at : at + 1]) for at in range(4)])
    assert torch.allclose(alone, out, atol=1e-5), "a sample is judged by its neighbours"


@pytest.mark.parametrize(("name", "kind"), [pair for pair in PAIRS if pair[1] == "tokens" and pair[0] != "tcn"])
def test_what_stands_behind_the_end_of_a_text_does_not_count(name: str, kind: str) -> None:
    net = made(name, kind)
    x = EXAMPLES[kind].example(3)
    x[:, 8:] = 0
    with torch.no_grad():
        before = net(x)
        net.get_submodule("embedding").get_parameter("weight")[0] += 5.0
        after = net(x)
    shown = slice(0, 8) if NETS[name].per_step else slice(None)
    assert torch.allclose(before[:, shown], after[:, shown], atol=1e-5)
    assert bool(torch.isfinite(net(torch.zeros_like(x))).all()), "a text without a token"


def test_a_gated_unit_is_that_of_torch() -> None:
    torch.manual_seed(0)
    ours, theirs = Gru(5, 8), nn.GRU(5, 8, batch_first=True)
    with torch.no_grad():
        for part, gates in (("input", "ih"), ("state", "hh")):
            for kind in ("weight", "bias"):
                value = theirs.get_parameter(f"{kind}_{gates}_l0")
                rows = value.unflatten(0, (GATES, -1)).transpose(0, 1).flatten(0, 1)
                ours.get_submodule(part).get_parameter(kind).copy_(rows)
    x = torch.randn(3, 10, 5)
    assert torch.allclose(ours(x), theirs(x)[0], atol=1e-6)


COARSE = [(name, kind, rate) for name, kind in SLICED for rate in (0.25, 0.5)]
FINE = [(name, kind, 0.8) for name, kind in SLICED if (NETS[name].kind, kind) != ("ode", "rows")]


@pytest.mark.parametrize(("name", "kind", "rate"), COARSE + FINE)
def test_a_narrow_net_is_a_slice_of_the_whole(name: str, kind: str, rate: float) -> None:
    net = made(name, kind)
    thin = narrow(net, rate, EXAMPLES[kind])
    assert count_parameters(thin) < count_parameters(net)
    full, part = net.state_dict(), thin.state_dict()
    index = index_map(full, part)
    assert all(torch.equal(value, part[key]) for key, value in slice_weights(full, index).items())
    assert all(torch.equal(value, full[key]) for key, value in embed(part, full, index).items())


def test_a_rate_that_cuts_no_group_is_refused() -> None:
    """Of rows norms have groups of 16, and four fifths of 16, 32 and 64 are rounded up to all of them."""
    with pytest.raises(ModelError, match="nothing of OdeNet can be made narrower"):
        narrow(made("odenet-cifar-like", "rows"), 0.8, EXAMPLES["rows"])


class Recurrent(nn.Module):
    """A recurrent layer of torch's between linear ones."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 8, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.lstm(x)[0].mean(dim=1))
        return found


class Normed(nn.Module):
    """A layer norm between linear ones."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.Linear(8, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.layers(x)
        return found


@pytest.mark.parametrize(
    ("net", "inputs", "says"),
    [
        (Recurrent, Inputs((12, 5)), 'cannot be sliced at layer "lstm": there is no slice of a LSTM'),
        (Normed, Inputs((5,)), 'cannot be sliced at layer "layers.1": there is no slice of a LayerNorm'),
        (lambda: nn.Linear(5, 3), Inputs((5,)), "nothing of Linear can be made narrower"),
    ],
)
def test_a_layer_without_a_slice_is_named(net: Callable[[], nn.Module], inputs: Inputs, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        narrow(net(), 0.5, inputs)


@pytest.mark.parametrize(("name", "kind"), [pair for pair in PAIRS if NETS[pair[0]].kind != "deq"])
def test_a_net_at_low_rank_is_smaller_and_at_full_rank_the_same(name: str, kind: str) -> None:
    net, x = made(name, kind), EXAMPLES[kind].example(4)
    layers = candidates(net)
    whole = {layer: min(one.weight.shape[0], one.weight[0].numel()) for layer, one in layers.items()}
    with torch.no_grad():
        same = factorise(net, whole)
        assert torch.allclose(same(x), net(x), atol=1e-4)
        assert torch.allclose(recover(same)(x), net(x), atol=1e-4)
        assert torch.allclose(compact(net, 1.0)(x), net(x), atol=1e-4)
    if name in ("gru", "char-gru", "transformer-s", "bag"):
        ranks = ranks_by_factor(factorisable(net), 4.0)
        small = factorise(net, ranks)
        assert count_parameters(small) < 0.8 * count_parameters(net)
        small(x).square().sum().backward()
        assert all(weight.grad is not None for weight in small.parameters())


def test_a_net_of_another_kind_is_refused_with_those_that_fit() -> None:
    with pytest.raises(ModelError, match=r'"resnet8" takes images, and the samples are tokens.*choose .*bag'):
        make("resnet8", EXAMPLES["tokens"], 3, "group")
    with pytest.raises(ModelError, match="series of 4 steps: expected at least 8"):
        make("odenet-xs-like", Inputs((4, 5)), 3, "group")
