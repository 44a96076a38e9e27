"""The nets of the tiers: the same initial weights everywhere, and resident nets that leak nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from potluck.core import tree
from potluck.core.errors import ModelError
from potluck.nets.tier_nets import TierNets
from potluck.nets.weights import load, weights_of


def make() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 3))


def nets(seed: int = 0, **more: object) -> TierNets:
    return TierNets({"phone": make, "laptop": make}, seed=seed, **more)  # type: ignore[arg-type]


def test_initial_weights_come_from_the_seed_alone() -> None:
    first = weights_of(nets()("phone"))
    torch.manual_seed(77)
    other = nets()
    other("laptop")
    assert tree.equal(weights_of(other("phone")), first)
    assert tree.equal(weights_of(other("laptop")), first)
    assert not tree.equal(weights_of(nets(seed=1)("phone")), first)


def test_making_a_net_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    nets()("phone")
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_are_copies_of_parameters_and_buffers_row_major() -> None:
    net = make().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    found = weights_of(net)
    assert found.keys() == net.state_dict().keys()
    assert {"1.running_mean", "1.num_batches_tracked"} <= found.keys()
    assert found["1.num_batches_tracked"].dtype == torch.int64
    assert all(value.is_contiguous() and not value.requires_grad for value in found.values())
    found["3.bias"].fill_(9.0)
    assert float(net.state_dict()["3.bias"].max()) < 9


def test_a_net_of_the_caller_is_its_own() -> None:
    made = nets()
    first = made("phone")
    nn.init.zeros_(first.get_parameter("3.bias"))
    assert float(made("phone").get_parameter("3.bias").detach().abs().max()) > 0


def test_a_lent_net_has_just_the_weights_that_were_given() -> None:
    made = nets()
    weights = weights_of(nets(seed=1)("phone"))
    kept = tree.map(weights, torch.clone)
    net = made.with_weights("phone", weights)
    assert tree.equal(weights_of(net), weights)
    net.train()
    net(torch.ones(2, 2, 8, 8)).sum().backward()
    for parameter in net.parameters():
        parameter.data.add_(1.0)
    assert tree.equal(weights, kept), "training must not reach back into what was loaded"
    again = made.with_weights("phone", weights)
    assert again is net
    assert tree.equal(weights_of(again), weights)
    assert made.with_weights("laptop", weights) is not net
    assert made("phone") is not net


def test_a_lent_net_of_ones_own_making_is_made_once() -> None:
    made, calls = nets(), []

    def thin() -> nn.Module:
        calls.append(1)
        return make()

    weights = weights_of(make())
    assert made.borrow(("phone", 0.5), weights, thin) is made.borrow(("phone", 0.5), weights, thin)
    assert calls == [1]


def test_initial_weights_may_be_given() -> None:
    given = weights_of(nets(seed=4)("phone"))
    assert tree.equal(weights_of(nets(initial=given)("laptop")), given)
    with pytest.raises(ModelError, match="weights do not fit the net"):
        nets(initial={"a": torch.zeros(1)})("phone")


def test_channels_last_changes_the_layout_and_no_value() -> None:
    last = nets(channels_last=True)("phone")
    assert last.get_parameter("0.weight").is_contiguous(memory_format=torch.channels_last)
    assert tree.equal(weights_of(last), weights_of(nets()("phone")))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"3.bias": torch.zeros(4)}, "size mismatch for 3.bias"),
        ({"3.bias": torch.zeros(1)}, "size mismatch for 3.bias"),
        ({"3.bias": None}, 'Missing key.*"3.bias"'),
        ({"more": torch.zeros(1)}, 'Unexpected key.*"more"'),
    ],
)
def test_weights_of_another_net_are_refused(changed: dict[str, torch.Tensor | None], message: str) -> None:
    net = make()
    weights = {name: value for name, value in {**weights_of(net), **changed}.items() if value is not None}
    with pytest.raises(ModelError, match=message):
        load(net, weights)
