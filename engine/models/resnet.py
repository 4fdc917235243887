"""ResNet-18 and ResNet-50 with the names, numbers and initialisation of torchvision's.

He et al., "Deep residual learning for image recognition" (2016); as in torchvision
(``models/resnet.py``) a bottleneck reduces the image in its 3 x 3 convolution. Importing
torchvision itself imports torch's compiler (``ops/roi_align.py``), which costs every process two
seconds and some 200 MB.
"""

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn

NormLayer: TypeAlias = Callable[[int], nn.Module]
"""Makes the norm of so many channels."""


def resnet18(n_classes: int, norm: NormLayer = nn.BatchNorm2d) -> "ResNet":
    """ResNet-18, randomly initialised."""
    return ResNet((2, 2, 2, 2), n_classes, bottleneck=False, norm=norm)


def resnet50(n_classes: int, norm: NormLayer = nn.BatchNorm2d) -> "ResNet":
    """ResNet-50, randomly initialised."""
    return ResNet((3, 4, 6, 3), n_classes, bottleneck=True, norm=norm)


class ResNet(nn.Module):
    """Four layers of residual blocks, average pooling, a linear classifier."""

    def __init__(
        self,
        blocks: tuple[int, int, int, int],
        n_classes: int,
        *,
        bottleneck: bool,
        norm: NormLayer,
    ) -> None:
        """Convolutions start as N(0, sqrt(2 / (k * k * channels out))), norms as 1 and 0."""
        super().__init__()
        self.conv1, self.bn1 = _convolution(3, 64, 7, 2), norm(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        expansion = 4 if bottleneck else 1

        def layer(channels: int, width: int, stride: int, n: int) -> nn.Sequential:
            entries = [(channels, stride), *[(expansion * width, 1)] * (n - 1)]
            return nn.Sequential(
                *(Block(one, width, by, bottleneck=bottleneck, norm=norm) for one, by in entries)
            )

        self.layer1 = layer(64, 64, 1, blocks[0])
        self.layer2 = layer(64 * expansion, 128, 2, blocks[1])
        self.layer3 = layer(128 * expansion, 256, 2, blocks[2])
        self.layer4 = layer(256 * expansion, 512, 2, blocks[3])
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc: nn.Module = nn.Linear(512 * expansion, n_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Logits of shape (b, classes) of normalised images (b, 3, h, w)."""
        inner = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        inner = self.layer4(self.layer3(self.layer2(self.layer1(inner))))
        return self.fc(torch.flatten(self.avgpool(inner), 1))


class Block(nn.Module):
    """``relu(branch(x) + shortcut(x))``: two 3 x 3 convolutions, or one between two of 1 x 1."""

    def __init__(
        self, channels: int, width: int, stride: int, *, bottleneck: bool, norm: NormLayer
    ) -> None:
        super().__init__()
        out = 4 * width if bottleneck else width
        shortcut = None
        if stride != 1 or channels != out:
            shortcut = nn.Sequential(_convolution(channels, out, 1, stride), norm(out))
        first, second = ((1, 1), (3, stride)) if bottleneck else ((3, stride), (3, 1))
        self.conv1, self.bn1 = _convolution(channels, width, *first), norm(width)
        self.conv2, self.bn2 = _convolution(width, width, *second), norm(width)
        self.conv3 = _convolution(width, out, 1, 1) if bottleneck else None
        self.bn3 = norm(out) if bottleneck else None
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Of half the height and width where the stride is 2."""
        branch = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        if self.conv3 is not None and self.bn3 is not None:
            branch = self.bn3(self.conv3(self.relu(branch)))
        branch += x if self.downsample is None else self.downsample(x)
        return self.relu(branch)


def _convolution(channels: int, out: int, side: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(channels, out, side, stride=stride, padding=side // 2, bias=False)
