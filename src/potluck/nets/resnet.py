"""Residual nets for small images.

He, Zhang, Ren, Sun, *Deep Residual Learning for Image Recognition*, 2016, arXiv 1512.03385. Two families:

- CIFAR style (section 4.2 there), depth 6n + 2: a 3x3 stem, three stages of n blocks with 16, 32 and 64 channels, and
  shortcuts without parameters (subsample, then append channels of zeros).
- ``resnet18`` and ``resnet34``: four stages of 64 to 512 channels with 1x1 projection shortcuts, with a 3x3 stem of
  stride 1 and no max-pool, as is usual for images of 32x32.

Convolutions carry no bias. Widths are read from the activations, never from a stored number, so that a net whose layers
were made narrower or low-rank still runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from potluck.core.errors import ModelError
from potluck.nets.net import Net, by_shape
from potluck.nets.norms import make_norm

CIFAR_DEPTHS = {
    8: "75,290",
    20: "269,722",
    32: "464,154",
    44: "658,586",
    56: "853,018",
    110: "1,727,962",
}
"""Depth -> parameters, for 10 classes of 3x32x32."""
BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: (B, inputs, H, W) -> (B, outputs, ceil(H / stride), ceil(W / stride))."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: str, *, project: bool) -> None:
        nn.Module.__init__(self)
        self.stride = stride
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm1 = make_norm(norm, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = make_norm(norm, outputs)
        self.shortcut: nn.Module | None = None
        if project and (stride != 1 or inputs != outputs):
            pointwise = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(pointwise, make_norm(norm, outputs))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW: Tensor = F.relu(self.norm1(self.conv1(x_BCHW)), inplace=True)
        y_BCHW = self.norm2(self.conv2(y_BCHW))
        if self.shortcut is not None:
            return F.relu(y_BCHW + self.shortcut(x_BCHW), inplace=True)
        return F.relu(y_BCHW + _without_parameters(x_BCHW, self.stride, y_BCHW.shape[1]), inplace=True)


def _without_parameters(x_BCHW: Tensor, stride: int, channels: int) -> Tensor:
    """Every ``stride``-th pixel, with zeros *appended* up to ``channels``: channel i stays channel i at every width."""
    if stride == 1 and channels == x_BCHW.shape[1]:
        return x_BCHW  # padding by nothing would copy it
    x_BCHW = x_BCHW[:, :, ::stride, ::stride]
    return F.pad(x_BCHW, (0, 0, 0, 0, 0, channels - x_BCHW.shape[1]))


class ResNet(nn.Module):
    """Stem, stages of blocks (each stage after the first halves the image), global average pool, classifier.

    ``keep_full`` names the modules that low-rank factorisation leaves alone beside the usual ones; empty: the general
    rule of ``potluck.lowrank.factorise`` decides.
    """

    def __init__(
        self,
        channels: int,
        widths: Sequence[int],
        blocks: Sequence[int],
        classes: int,
        norm: str,
        *,
        project: bool,
        keep_full: tuple[str, ...] = (),
    ) -> None:
        nn.Module.__init__(self)
        self.keep_full = keep_full
        self.stem = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        self.stem_norm = make_norm(norm, widths[0])
        self.stages = nn.Sequential()
        inputs = widths[0]
        for index, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            stage = nn.Sequential()
            for place in range(count):
                stride = 2 if index > 0 and place == 0 else 1
                stage.append(BasicBlock(inputs, width, stride, norm, project=project))
                inputs = width
            self.stages.add_module(f"stage{index + 1}", stage)
        self.classifier = nn.Linear(inputs, classes)
        _initialise(self, norm, sum(blocks))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        z_BCHW = self.stages(F.relu(self.stem_norm(self.stem(x_BCHW)), inplace=True))
        logits: Tensor = self.classifier(z_BCHW.mean(dim=(2, 3)))
        return logits


def _initialise(net: nn.Module, norm: str, blocks: int) -> None:
    """He's normal initialisation. Without norms the variance would double in every block, so branches start smaller."""
    for name, layer in net.named_modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if norm == "none" and name.endswith("conv2"):
                layer.weight.data.mul_(blocks**-0.5)


def make_resnet(name: str, shape: tuple[int, ...], classes: int, norm: str) -> ResNet:
    """The net ``name`` (a CIFAR depth, ``resnet18`` or ``resnet34``) for images of ``shape`` (C, H, W)."""
    if name in BLOCKS:
        # The release of FedHM factorises ResNet-34 from stage 3 on; ResNet-18 is what the general rule gives.
        keep_full = ("stages.stage1", "stages.stage2") if name == "resnet34" else ()
        widths = (64, 128, 256, 512)
        return ResNet(shape[0], widths, BLOCKS[name], classes, norm, project=True, keep_full=keep_full)
    depth = int(name.removeprefix("resnet"))
    if depth not in CIFAR_DEPTHS:
        raise ModelError(f"model.name = {name!r}: expected a depth of {', '.join(map(str, CIFAR_DEPTHS))}")
    return ResNet(shape[0], (16, 32, 64), ((depth - 2) // 6,) * 3, classes, norm, project=False)


NETS = {
    f"resnet{depth}": Net(
        line=f"residual net of depth {depth}, widths 16/32/64; {parameters} parameters",
        make=by_shape(partial(make_resnet, f"resnet{depth}")),
    )
    for depth, parameters in CIFAR_DEPTHS.items()
} | {
    name: Net(
        line=f"residual net, widths 64 to 512, 3x3 stem; {parameters} parameters",
        make=by_shape(partial(make_resnet, name)),
    )
    for name, parameters in {"resnet18": "11,173,962", "resnet34": "21,282,122"}.items()
}
