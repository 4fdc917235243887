"""Students as the published codes train them: images one by one, in a ``DataLoader``.

Restated from what MinimaxDiffusion's ``data.py`` and ``train.py`` (hard labels: squares in memory
as tensors) and RDED's ``validation/main.py`` (soft labels: whole images in memory, by Pillow) do.
Neither decodes after the start. No worker processes: they would add copies, and here take the cores
from the training.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset

from coreset.engine.models.networks import IMAGENET_MEAN, IMAGENET_STD

Transform: TypeAlias = Callable[[Any], Any]
Labelled: TypeAlias = tuple[Path, int]
Mixed: TypeAlias = tuple[Tensor, Tensor, Tensor, float]
"""Inputs, labels, labels of the pasted images, share of the own label."""
_GREY = torch.tensor((0.299, 0.587, 0.114)).view(3, 1, 1)
_EIGENVALUES = torch.tensor((0.2175, 0.0188, 0.0045))
_EIGENVECTORS = torch.tensor(
    ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
)


class LabelledImages(Dataset[tuple[Tensor, int]]):
    """Images in memory that are transformed one by one."""

    def __init__(self, images: Sequence[Any], labels: Sequence[int], transform: Transform) -> None:
        """Hold images that ``transform`` takes."""
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        return self.transform(self.images[position]), self.labels[position]


def hard_loader(files: Iterable[Labelled], size: int, batch: int) -> DataLoader[Any]:
    """Hold squares; crop, mirror, jitter, light and normalise each."""
    from torchvision import transforms

    square = [transforms.Resize(size), transforms.CenterCrop(size), transforms.ToTensor()]
    augment = [*_crop(size), colour_jitter, lighting, _normalise()]
    return _loader(files, square, augment, batch)


def soft_loader(files: Iterable[Labelled], size: int, batch: int) -> DataLoader[Any]:
    """Hold whole images; shuffle the quarters of each, crop, mirror and normalise it."""
    from torchvision.transforms import ToTensor

    augment = [ToTensor(), shuffled_halves, *_crop(size), _normalise()]
    return _loader(files, [], augment, batch)


def colour_jitter(image: Tensor) -> Tensor:
    """Change brightness, contrast and saturation by up to 0.4, in random order, unclamped."""
    for change in torch.randperm(3):
        amount = float(torch.empty(()).uniform_(-0.4, 0.4))
        grey = (image * _GREY).sum(dim=0, keepdim=True)
        reference = (torch.zeros(()), grey.mean(), grey)[change]
        image = (1 - amount) * image + amount * reference
    return image


def lighting(image: Tensor) -> Tensor:
    """Add noise along the principal components of ImageNet's colours."""
    amounts = 0.1 * torch.randn(3) * _EIGENVALUES
    return image + (_EIGENVECTORS @ amounts).view(3, 1, 1)


def shuffled_halves(image: Tensor) -> Tensor:
    """Shuffle two blocks of columns, then two of rows; the last takes the remainder."""
    for axis in (2, 1):
        half = image.shape[axis] // 2
        parts = image.split([half, image.shape[axis] - half], dim=axis)
        image = torch.cat([parts[i] for i in torch.randperm(2)], dim=axis)
    return image


def mixed_batches(loader: Iterable[Any]) -> Iterator[Mixed]:
    """Paste one box of another image into each image of a batch, in place."""
    for images, labels in loader:
        side, cut = images.shape[-1], float(torch.rand(())) ** 0.5
        half = int(side * cut) // 2
        y, x = torch.randint(side, (2,)).tolist()
        rows, columns = slice(max(y - half, 0), y + half), slice(max(x - half, 0), x + half)
        partner = torch.randperm(len(images))
        images[:, :, rows, columns] = images[partner, :, rows, columns]
        share = 1 - images[0, 0, rows, columns].numel() / side**2
        yield images, labels, labels[partner], share


def hard_epoch(
    network: nn.Module, optimiser: torch.optim.Optimizer, loader: DataLoader[Any]
) -> float:
    """Train for one epoch of hard labels and return its mean loss."""
    losses: list[float] = []
    network.train()
    for images, labels, pasted, share in mixed_batches(loader):
        logits = network(images)
        loss = share * cross_entropy(logits, labels) + (1 - share) * cross_entropy(logits, pasted)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses += [loss.item()] * len(labels)
    return sum(losses) / len(losses)


def _loader(
    files: Iterable[Labelled],
    held: Sequence[Transform],
    augment: Sequence[Transform],
    batch: int,
) -> DataLoader[Any]:
    """Load images transformed by ``held`` at the start, and by ``augment`` in every epoch."""
    from torchvision.transforms import Compose

    first = Compose(held)
    pairs = [(first(Image.open(path).convert("RGB")), label) for path, label in files]
    images, labels = zip(*pairs, strict=True)
    return DataLoader(LabelledImages(images, labels, Compose(augment)), batch, shuffle=True)


def _crop(size: int) -> list[Transform]:
    from torchvision.transforms import RandomHorizontalFlip, RandomResizedCrop

    return [RandomResizedCrop(size, scale=(0.5, 1.0), antialias=True), RandomHorizontalFlip()]


def _normalise() -> Transform:
    from torchvision.transforms import Normalize

    return Normalize(IMAGENET_MEAN, IMAGENET_STD)
