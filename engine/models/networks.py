"""Networks that are trained here.

A proxy has batch norm. Students have instance norm, as in the hard-label protocol of
MinimaxDiffusion: training and evaluation behave alike.
"""

from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from torch import nn

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Norm: TypeAlias = Literal["batch", "instance"]
StudentName: TypeAlias = Literal["resnet18", "resnet50", "convnet"]


def instance_norm(channels: int) -> nn.GroupNorm:
    """Make instance norm with an affine map: one group per channel."""
    return nn.GroupNorm(channels, channels)


def convnet(num_classes: int, norm_layer: Callable[[int], nn.Module]) -> nn.Sequential:
    """Build ConvNet-3 (Gidaris and Komodakis 2018) with a quarter of its width, for demos."""
    width, side = 32, 4
    layers: list[nn.Module] = []
    for channels in (3, width, width):
        layers += [nn.Conv2d(channels, width, 3, padding=1), norm_layer(width), nn.ReLU()]
        layers += [nn.AvgPool2d(2)]
    layers += [nn.AdaptiveAvgPool2d(side), nn.Flatten(), nn.Linear(width * side**2, num_classes)]
    return nn.Sequential(*layers)


def build_network(name: StudentName, n_classes: int, *, norm: Norm, seed: int) -> nn.Module:
    """Initialise a network as torchvision does; the weights depend on ``seed`` alone."""
    # Imported late: torchvision imports torch's compiler, which takes seconds and some 200 MB.
    from torchvision.models import resnet18, resnet50

    build = {"resnet18": resnet18, "resnet50": resnet50, "convnet": convnet}[name]
    norm_layer = {"batch": nn.BatchNorm2d, "instance": instance_norm}[norm]
    with torch.random.fork_rng(devices=[]):  # constructors draw from the generator of the CPU
        torch.default_generator.manual_seed(seed)
        return build(num_classes=n_classes, norm_layer=norm_layer)


def memory_format_for(norm: Norm, device: torch.device) -> torch.memory_format:
    """Choose the fastest layout: channels last, but for instance norm on a CPU (2.6 x slower)."""
    groups_on_cpu = norm == "instance" and device.type == "cpu"
    return torch.contiguous_format if groups_on_cpu else torch.channels_last


def placed(
    network: nn.Module, device: torch.device, memory_format: torch.memory_format
) -> nn.Module:
    """Move a network to a device, and its weights to a layout."""
    return network.to(device).to(memory_format=memory_format)  # pyright: ignore[reportCallIssue] - not in the stubs
