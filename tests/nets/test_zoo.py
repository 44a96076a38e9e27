"""The zoo: exact counts, any image, and errors that help."""

import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from potluck.core.errors import ModelError
from potluck.core.types import Inputs
from potluck.nets import NETS
from potluck.nets.resnet import BasicBlock
from potluck.nets.zoo import count_parameters, make

DIGIT, COLOUR = (1, 28, 28), (3, 32, 32)
COUNTS = [
    ("lenet", DIGIT, 10, 44_426),
    ("cnn", DIGIT, 10, 1_663_370),
    ("cnn-2m", COLOUR, 10, 2_168_362),
    ("mlp", DIGIT, 10, 199_210),
    ("resnet8", COLOUR, 10, 75_290),
    ("resnet20", COLOUR, 10, 269_722),
    ("resnet32", COLOUR, 10, 464_154),
    ("resnet44", COLOUR, 10, 658_586),
    ("resnet56", COLOUR, 10, 853_018),
    ("resnet110", COLOUR, 10, 1_727_962),
    ("resnet18", COLOUR, 10, 11_173_962),
    ("resnet34", COLOUR, 10, 21_282_122),
    ("resnet34", COLOUR, 100, 21_328_292),
    ("odenet-cifar-like", COLOUR, 10, 167_834),
    ("odenet-34-lite-like", COLOUR, 10, 1_596_234),
    ("odenet-xs-like", COLOUR, 10, 19_818),
    ("deq-xs-like", COLOUR, 10, 12_426),
    ("deq-s-like", COLOUR, 10, 64_842),
    ("deq-m-like", COLOUR, 10, 160_266),
    ("deq-l-like", COLOUR, 10, 615_434),
]
LARGE = ("resnet34", "resnet110", "resnet56", "resnet44")
SMALL = [name for name in NETS if name not in LARGE and "images" in NETS[name].inputs]


@pytest.mark.parametrize(("name", "shape", "classes", "count"), COUNTS)
def test_parameter_counts_are_exact(name: str, shape: tuple[int, ...], classes: int, count: int) -> None:
    assert count_parameters(make(name, Inputs(shape), classes, "group")) == count


def test_described_counts_are_those_of_the_nets() -> None:
    exact = {f"{count:,}" for _, _, classes, count in COUNTS if classes == 10}
    lines = {name: NETS[name].line for name in NETS}
    named = [found[1] for line in lines.values() if (found := re.search(r"([\d,]+) parameters", line))]
    assert len(named) >= 16
    for count in named:
        assert count in exact


def test_batch_norm_counts_equal_group_norm_counts() -> None:
    assert count_parameters(make("resnet18", Inputs(COLOUR), 10, "batch")) == 11_173_962
    assert count_parameters(make("resnet20", Inputs(COLOUR), 10, "none")) == 269_722 - 2 * (16 * 7 + 32 * 6 + 64 * 6)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("shape", [(1, 8, 8), (4, 9, 13)])
@pytest.mark.parametrize("norm", ["group", "batch", "none"])
def test_every_net_takes_any_image_from_8x8(name: str, shape: tuple[int, ...], norm: str) -> None:
    torch.manual_seed(0)
    if NETS[name].kind == "deq" and norm == "batch":
        with pytest.raises(ModelError, match=r'model\.norm = "batch"'):
            make(name, Inputs(shape), 7, norm)
        return
    net = make(name, Inputs(shape), 7, norm)
    logits_BN = net(torch.randn(2, *shape))
    assert logits_BN.shape == (2, 7)
    assert bool(logits_BN.isfinite().all())


@pytest.mark.parametrize("name", ["lenet", "cnn", "cnn-2m"])
def test_larger_images_do_not_inflate_the_dense_layer(name: str) -> None:
    torch.manual_seed(0)
    shape = (3, 96, 130)
    net = make(name, Inputs(shape), 5, "group")
    assert net(torch.randn(1, *shape)).shape == (1, 5)
    assert count_parameters(net) <= 1.35 * count_parameters(make(name, Inputs(COLOUR), 5, "group"))


def test_small_images_are_refused_with_their_size() -> None:
    with pytest.raises(ModelError, match=r"images are 7x12; expected at least 8x8"):
        make("resnet8", Inputs((3, 7, 12)), 10, "group")


def test_rows_need_a_net_for_rows() -> None:
    torch.manual_seed(0)
    assert make("mlp", Inputs((20,)), 3, "group")(torch.randn(4, 20)).shape == (4, 3)
    with pytest.raises(
        ModelError, match=r'"lenet" takes images, and the samples are rows of shape .20,.: choose .*mlp'
    ):
        make("lenet", Inputs((20,)), 3, "group")
    with pytest.raises(ModelError, match=r"expected \(channels, height, width\)"):
        make("mlp", Inputs((8, 8, 8, 8)), 3, "group")
    with pytest.raises(ModelError, match="0 outputs"):
        make("mlp", Inputs((20,)), 0, "group")


def test_unknown_names_get_a_hint() -> None:
    with pytest.raises(
        ModelError, match=r'model.name = "rasnet20": expected one of bag, lenet, .*did you mean "resnet20"\?'
    ):
        make("rasnet20", Inputs(COLOUR), 10, "group")
    with pytest.raises(ModelError, match=r"package\.module:function"):
        make("q", Inputs(COLOUR), 10, "group")
    with pytest.raises(ModelError, match=r'model.norm = "layer": expected one of group, batch'):
        make("resnet8", Inputs(COLOUR), 10, "layer")


OWN = """
import torch
def make_net(shape, classes):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(shape[0] * shape[1] * shape[2], classes))
def number(shape, classes):
    return 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_nets_of_the_test.py").write_text(OWN)
    (tmp_path / "broken_nets_of_the_test.py").write_text("import a_module_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("own_nets_of_the_test", "broken_nets_of_the_test"):
        monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.mark.usefixtures("own")
def test_a_net_of_ones_own() -> None:
    net = make("own_nets_of_the_test:make_net", Inputs((1, 2, 3)), 4, "group")
    assert isinstance(net, nn.Module)
    assert count_parameters(net) == 28


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_package.nets:make_net", r"no module 'no_such_package'; run from the folder"),
        ("own_nets_of_the_test.nets:make_net", r"no module 'own_nets_of_the_test.nets'"),
        ("own_nets_of_the_test:make_ne", r"has no 'make_ne'; did you mean \"make_net\"\?"),
        ("own_nets_of_the_test:number", r"returned int: expected a torch.nn.Module"),
        (":make_net", r'or "package.module:function"'),
        ("own_nets_of_the_test:", r'or "package.module:function"'),
    ],
)
def test_own_nets_that_do_not_work(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        make(name, Inputs((1, 8, 8)), 2, "group")


@pytest.mark.usefixtures("own")
def test_an_error_inside_ones_own_module_is_told_with_its_place() -> None:
    with pytest.raises(ModelError, match=r"a_module_that_is_not_there.*broken_nets_of_the_test.py, line 1") as caught:
        make("broken_nets_of_the_test:make_net", Inputs((1, 8, 8)), 2, "group")
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_shortcut_without_parameters_subsamples_and_appends_zeros() -> None:
    block = BasicBlock(2, 4, 2, "none", project=False)
    nn.init.zeros_(block.conv2.weight)
    x_BCHW = torch.arange(2 * 5 * 5, dtype=torch.float32).reshape(1, 2, 5, 5)
    y_BCHW = block(x_BCHW)
    assert y_BCHW.shape == (1, 4, 3, 3)
    assert torch.equal(y_BCHW[:, :2], x_BCHW[:, :, ::2, ::2])
    assert torch.equal(y_BCHW[:, 2:], torch.zeros(1, 2, 3, 3))


def test_deep_nets_without_norms_do_not_explode() -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        logits_BN = make("resnet110", Inputs((3, 8, 8)), 10, "none")(torch.randn(4, 3, 8, 8))
    assert float(logits_BN.abs().max()) < 50


def test_images_are_padded_to_the_middle_for_lenet() -> None:
    pad = make("lenet", Inputs((1, 8, 9)), 10, "group").get_submodule("pad")
    padded = pad(torch.ones(1, 1, 8, 9))
    assert padded.shape == (1, 1, 28, 28)
    assert float(padded.sum()) == 72
    assert float(padded[0, 0, 10:18, 9:18].sum()) == 72
