"""Condensed sets as the published codes build them, one image at a time.

Restated from what RDED's ``synthesize/main.py`` and ``synthesize/utils.py`` do, except that boxes
are given. No worker processes, as in ``peers/students.py``.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, pad, softmax

Logits = Callable[[Tensor], Tensor]


class Normaliser:
    """Pixels as a teacher wants them, and back."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Take the mean and spread of each channel."""
        self.mean, self.std = (torch.tensor(values)[:, None, None] for values in (mean, std))

    def __call__(self, images: Tensor) -> Tensor:
        """Normalise images in 0..1."""
        return (images - self.mean) / self.std

    def levels(self, images: Tensor) -> Tensor:
        """Return the levels, 0..255, of normalised images."""
        return (images * self.std + self.mean) * 255


def float_crops(file: Path, boxes: NDArray[np.int64], side: int, normalise: Normaliser) -> Tensor:
    """Decode an image to a float tensor and resize each of its boxes: (m, 3, side, side)."""
    from torchvision.transforms.functional import resized_crop, to_tensor

    image = to_tensor(Image.open(file).convert("RGB"))
    crops = [
        resized_crop(image, top, left, bottom - top, right - left, [side, side], antialias=True)
        for left, top, right, bottom in boxes.tolist()
    ]
    return normalise(torch.stack(crops))


@torch.no_grad()
def surest_crops(
    logits: Logits, crops: Tensor, label: int, size: int, batch: int
) -> tuple[Tensor, Tensor]:
    """Return of each image (n, m, 3, s, s) the crop of least loss, and its loss."""
    n, m, _, side, _ = crops.shape
    before, after = (size - side) // 2, size - side - (size - side) // 2
    padded = pad(crops.flatten(0, 1), (before, after, before, after))
    outputs = torch.cat([logits(some) for some in padded.split(batch)])
    losses = -torch.log(softmax(outputs, dim=1)[:, label]).view(n, m)
    least, chosen = losses.min(dim=1)
    return crops[torch.arange(n), chosen], least


def mixed(crops: Tensor, losses: Tensor, factor: int, size: int, ipc: int) -> Tensor:
    """Lay the best crops (n, 3, s, s) into images (ipc, 3, size, size)."""
    tiles = crops[torch.argsort(losses)[: ipc * factor**2]].split(ipc)
    images, side = torch.zeros((ipc, 3, size, size)), size // factor
    for place, tile in enumerate(tiles):
        top, left = (at * side for at in divmod(place, factor))
        images[:, :, top : top + side, left : left + side] = interpolate(tile, size=(side, side))
    return images
