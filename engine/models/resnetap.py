"""ResNetAP-10: a ResNet of one basic block per stage, with average pooling instead of strides.

The stem is a 7x7 convolution and average pooling of 4. The first block of each later stage pools
by 2: its own path before the second convolution, its shortcut before the norm.

Source: MinimaxDiffusion ``train_models/resnet_ap.py`` at ``--depth 10``. Deliberate difference:
images of every size get the stem that is published for those of more than 128 pixels (up to
these it has a 3x3 convolution, and pools by 2 from 65 pixels on), so that another ``--size``
changes the images and not the network.
"""

from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor, nn

WIDTHS = (64, 128, 256, 512)

MakeNorm: TypeAlias = Callable[[int], nn.Module]


class BasicBlock(nn.Module):
    """Two convolutions and a shortcut; with ``pool`` both paths halve height and width."""

    def __init__(self, inputs: int, channels: int, make_norm: MakeNorm, *, pool: bool) -> None:
        super().__init__()
        halved = [nn.AvgPool2d(2)] if pool else []
        self.residual = nn.Sequential(
            convolution(inputs, channels, 3), make_norm(channels), nn.ReLU(inplace=True), *halved,
            convolution(channels, channels, 3), make_norm(channels),
        )  # fmt: skip
        self.shortcut = nn.Sequential()
        if pool:
            project = convolution(inputs, channels, 1)
            self.shortcut = nn.Sequential(project, *halved, make_norm(channels))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, inputs, h, w) to (b, channels, h, w), or to half of h and w, rounded down."""
        return self.relu(self.residual(x) + self.shortcut(x))


def convolution(inputs: int, channels: int, side: int) -> nn.Conv2d:
    """Make a convolution that keeps height and width, drawn from N(0, 2 / (side^2 channels))."""
    layer = nn.Conv2d(inputs, channels, side, padding=side // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer


def resnetap10(num_classes: int, norm_layer: MakeNorm) -> nn.Sequential:
    """Build the network, which maps images (b, 3, h, w) to logits (b, num_classes)."""
    first = WIDTHS[0]
    layers = [convolution(3, first, 7), norm_layer(first), nn.ReLU(inplace=True), nn.AvgPool2d(4)]
    inputs = first
    for channels in WIDTHS:
        layers.append(BasicBlock(inputs, channels, norm_layer, pool=channels != first))
        inputs = channels
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, num_classes)]
    return nn.Sequential(*layers)
