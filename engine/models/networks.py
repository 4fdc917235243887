"""Networks that are trained here: torchvision's ResNets, a small one, and the linear head.

The proxy has batch norm. Students have instance norm, as in the hard-label protocol of
MinimaxDiffusion (``train_models/resnet.py``): training and evaluation behave alike.
"""

from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from torch import nn

from coreset.engine.runtime.device import seeded_initialisation

Norm: TypeAlias = Literal["batch", "instance"]
StudentName: TypeAlias = Literal["resnet18", "resnet50", "convnet"]


def instance_norm(channels: int) -> nn.GroupNorm:
    """Make instance norm with an affine map: one group per channel."""
    return nn.GroupNorm(channels, channels)


def convnet(num_classes: int, norm_layer: Callable[[int], nn.Module]) -> nn.Sequential:
    """Build ConvNet-3 (Gidaris and Komodakis 2018) with a quarter of its width, for demonstrations.

    Papers on data set distillation train it. Arguments are named as torchvision names them.
    """
    width, side = 32, 4
    layers: list[nn.Module] = []
    for channels in (3, width, width):
        layers += [nn.Conv2d(channels, width, 3, padding=1), norm_layer(width), nn.ReLU()]
        layers += [nn.AvgPool2d(2)]
    layers += [nn.AdaptiveAvgPool2d(side), nn.Flatten(), nn.Linear(width * side**2, num_classes)]
    return nn.Sequential(*layers)


def build_network(name: StudentName, n_classes: int, *, norm: Norm, seed: int) -> nn.Module:
    """Initialise a network for ``n_classes``; the weights depend on ``seed`` alone.

    Convolutions start as N(0, sqrt(2 / (k * k * out_channels))), norms as 1 and 0 (torchvision's
    initialisation, which is also that of MinimaxDiffusion).
    """
    # Imported late: torchvision imports torch's compiler, which takes seconds and some 200 MB.
    from torchvision.models import resnet18, resnet50

    build = {"resnet18": resnet18, "resnet50": resnet50, "convnet": convnet}[name]
    norm_layer = {"batch": nn.BatchNorm2d, "instance": instance_norm}[norm]
    with seeded_initialisation(seed):
        return build(num_classes=n_classes, norm_layer=norm_layer)


def memory_format_for(norm: Norm, device: torch.device) -> torch.memory_format:
    """Choose the layout of images and weights in which a network is fastest.

    Channels last everywhere, except for instance norm on a CPU: GroupNorm does 139 images/s there
    in NCHW but 54 in channels last (128 px, bfloat16, two cores).
    """
    groups_on_cpu = norm == "instance" and device.type == "cpu"
    return torch.contiguous_format if groups_on_cpu else torch.channels_last


def placed(
    network: nn.Module, device: torch.device, memory_format: torch.memory_format
) -> nn.Module:
    """Move a network to a device, and its weights to a layout."""
    return network.to(device).to(memory_format=memory_format)  # pyright: ignore[reportCallIssue] - not in the stubs


class LinearHead(nn.Module):
    """A linear classifier on frozen features; with folds, one more per fold, in one layer."""

    def __init__(self, width: int, n_classes: int, n_folds: int = 0) -> None:
        """Start from zero weights: a convex problem needs no random start."""
        super().__init__()
        self.linear = nn.Linear(width, n_classes)
        self.folds = nn.Linear(width, n_folds * n_classes) if n_folds else None
        for layer in filter(None, (self.linear, self.folds)):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, features_bd: torch.Tensor) -> torch.Tensor:
        """Logits of shape (b, classes), followed in each row by those of fold 0, 1 and so on."""
        logits = self.linear(features_bd)
        return logits if self.folds is None else torch.cat((logits, self.folds(features_bd)), 1)
