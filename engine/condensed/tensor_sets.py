"""Condensed sets in files of tensors, as many codes keep sets of small images."""

import shutil
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from coreset.engine.models.weights import read_weights
from coreset.shards.errors import UsageError

_IMAGES, _LABELS = ("images", "data", "image", "x"), ("labels", "targets", "label", "y")
_MOST_CLASSES = 100_000  # names of five digits


def write_tensor_images(path: Path, folder: Path) -> None:
    """Write the images of a file as PNG, in the layout rded: by the numbers of their classes.

    The file holds images, (n, 3, h, w) of uint8 or of 0 to 1, and whole numbers as labels, (n,).
    """
    tensors = read_weights(path, "a .pt or .safetensors file of images and labels")
    images, labels = _pick(tensors, _IMAGES, path), _pick(tensors, _LABELS, path)
    fits = images.ndim == 4 and images.shape[1] == 3 and labels.shape == images.shape[:1]
    if not fits or not images.numel() or images.is_complex():
        raise UsageError(
            f"{path} holds images of shape {tuple(images.shape)} ({images.dtype}) and labels of "
            f"shape {tuple(labels.shape)}; expected (n, 3, height, width) and (n,)"
        )
    numbers = [] if labels.is_floating_point() or labels.is_complex() else labels.long().tolist()
    if not numbers or min(numbers) < 0 or max(numbers) >= _MOST_CLASSES:
        wrong = next((one for one in numbers if not 0 <= one < _MOST_CLASSES), labels[0].item())
        raise UsageError(
            f"{path} has labels such as {wrong}; expected class numbers from 0 to "
            f"{_MOST_CLASSES - 1}"
        )
    shutil.rmtree(folder, ignore_errors=True)
    slots = np.zeros(max(numbers) + 1, np.int64)
    for image, label in zip(_levels(images, path), numbers, strict=True):
        place = folder / f"{label:05d}"
        place.mkdir(parents=True, exist_ok=True)
        name = f"class{label:05d}_id{slots[label]:05d}.png"
        Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(place / name)
        slots[label] += 1


def _pick(tensors: dict[str, Tensor], names: tuple[str, ...], path: Path) -> Tensor:
    found = [tensors[name] for name in names if name in tensors]
    if len(found) != 1:
        raise UsageError(
            f"{path} holds {', '.join(tensors) or 'nothing'}; expected one tensor called "
            f"{' or '.join(names)}"
        )
    return found[0]


def _levels(images: Tensor, path: Path) -> Tensor:
    """Return images as uint8: those of uint8 as they are, 0 to 1 as levels of 255."""
    from torch import uint8

    if images.dtype == uint8:
        return images
    images = images.float()
    low, high = float(images.min()), float(images.max())
    if not (low >= 0 and high <= 1):  # also NaN
        raise UsageError(
            f"{path} has pixels from {low:.3g} to {high:.3g}; expected uint8, or 0 to 1: undo the "
            "normalisation before the images are saved"
        )
    return (images * 255).round().to(uint8)
