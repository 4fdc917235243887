"""Networks that are trained here.

A proxy has batch norm. Students have instance norm, as in the hard-label protocol of
MinimaxDiffusion: training and evaluation behave alike. Those of timm keep the norm layers that
they come with.
"""

from collections.abc import Callable
from difflib import get_close_matches
from typing import Literal, TypeAlias

import torch
from torch import nn

from coreset.engine.models.resnetap import resnetap10
from coreset.engine.models.student_names import TIMM
from coreset.engine.runtime.device import seeded_torch
from coreset.shards.errors import UsageError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Norm: TypeAlias = Literal["batch", "instance"]


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


def build_network(name: str, n_classes: int, *, norm: Norm, seed: int) -> nn.Module:
    """Initialise a network as its library does; the weights depend on ``seed`` alone."""
    # Imported late: torchvision imports torch's compiler, which takes seconds and some 200 MB.
    from torchvision.models import resnet18, resnet50

    own = {
        "resnet18": resnet18,
        "resnet50": resnet50,
        "resnetap10": resnetap10,
        "convnet": convnet,
    }
    norm_layer = {"batch": nn.BatchNorm2d, "instance": instance_norm}[norm]
    with seeded_torch(seed, torch.device("cpu")):
        if name.startswith(TIMM):
            return timm_model(name, n_classes)
        return own[name](num_classes=n_classes, norm_layer=norm_layer)


def timm_model(name: str, n_classes: int, option: str = "student") -> nn.Module:
    """Build the untrained model of timm behind ``timm:NAME``, with its own norm layers."""
    import timm

    model, known = name.removeprefix(TIMM), timm.list_models()
    if model not in known:
        close = ", ".join(TIMM + one for one in get_close_matches(model, known) or ["resnet18"])
        raise UsageError(f"{option} must be a timm model, got {name}; near it: {close}")
    return timm.create_model(model, pretrained=False, num_classes=n_classes)


def require_trainable(
    name: str, n_classes: int, *, images: int, size: int, option: str = "student"
) -> None:
    """Refuse a model of timm that cannot train on so many images of this size at once.

    Runs it on the meta device: shapes without numbers. Many models take a single size of images,
    and batch norm of a single pixel needs more than one image.
    """
    if not name.startswith(TIMM):
        return
    with torch.device("meta"):
        network = timm_model(name, n_classes, option)
        inputs = torch.empty((images, 3, size, size))
    try:
        logits = network.train()(inputs)
        reason = "" if logits.shape == (images, n_classes) else "it is no classifier"
    except (AssertionError, AttributeError, IndexError, RuntimeError, TypeError, ValueError) as bad:
        reason = str(bad) or type(bad).__name__
    if reason:
        what = f"{option} {name} does not train on {images} images of {size} pixels ({reason})"
        raise UsageError(f"{what}; choose another --size or --{option}")


def memory_format_for(norm: Norm, device: torch.device) -> torch.memory_format:
    """Choose the fastest layout: channels last, but for instance norm on a CPU (2.6 x slower)."""
    groups_on_cpu = norm == "instance" and device.type == "cpu"
    return torch.contiguous_format if groups_on_cpu else torch.channels_last


def placed(
    network: nn.Module, device: torch.device, memory_format: torch.memory_format
) -> nn.Module:
    """Move a network to a device, and its weights to a layout."""
    return network.to(device).to(memory_format=memory_format)  # pyright: ignore[reportCallIssue] - not in the stubs
