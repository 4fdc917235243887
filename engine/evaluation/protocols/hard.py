"""The hard-label protocol.

Source: MinimaxDiffusion / ManifoldGD ``train.py``, ``argument.py``, ``data.py`` (the study's
section 3.4). Deliberate differences, each of which leaves the recipe as it is: images are resized
and cut to their central square once and held as uint8; augmentation runs in batch on the device;
arithmetic is bfloat16 where the device is fast at it; every run is seeded. ImageNet-1K trains 300
epochs (the published rule would give 2000 or 1500; the study's number was lost).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from coreset.engine.evaluation.students import Protocol
from coreset.engine.models.networks import IMAGENET_MEAN, IMAGENET_STD, Norm
from coreset.engine.training.trainer import compiled_on_gpu, sgd, step_schedule
from coreset.kernels.augment import (
    color_jitter,
    cutmix,
    draw_crops,
    draw_cutmix,
    draw_flips,
    draw_jitter,
    draw_lighting,
    horizontal_flip,
    lighting,
    normalised,
    resized_crops,
    unit_range,
)

LR_FACTOR = 0.2
EPOCHS_BY_IPC = ((1, 3000), (10, 2000), (50, 1500), (200, 1000), (500, 500), (math.inf, 300))
"""``ipc_epoch`` of the published code: the first limit that the IPC does not exceed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HardLabels(Protocol):
    """Hard-label protocol, version 1, for one number of classes and images per class."""

    stamp: str = "hard@1"
    norm: ClassVar[Norm] = "instance"

    @classmethod
    def published(cls, n_classes: int, ipc: int) -> Self:
        """Return the protocol as published; 100 classes have two thirds of the epochs."""
        epochs = next(epochs for limit, epochs in EPOCHS_BY_IPC if ipc <= limit)
        if n_classes == 100:
            epochs = epochs * 2 // 3 // 100 * 100  # in hundreds
        return cls(n_classes=n_classes, ipc=ipc, epochs=300 if n_classes > 100 else epochs)

    @property
    def large(self) -> bool:
        """Test whether the rules for more than 100 classes apply."""
        return self.n_classes > 100

    @property
    def batch(self) -> int:
        """Images per step."""
        return 128 if self.large else 64

    @property
    def lr(self) -> float:
        """Learning rate at the start."""
        return 0.1 if self.large else 0.01

    def optimiser(self, network: nn.Module) -> torch.optim.SGD:
        """Make SGD with momentum 0.9 that decays all weights."""
        return sgd(network, lr=self.lr, weight_decay=1e-4 if self.large else 5e-4)

    def schedule(self, steps_per_epoch: int) -> Callable[[int], float]:
        """Return the learning rate by step: it falls after two thirds and five sixths."""
        drops = (2 * self.epochs // 3, 5 * self.epochs // 6)
        return step_schedule(self.lr, (epoch * steps_per_epoch for epoch in drops), LR_FACTOR)

    def training_batch(
        self, images: Tensor, labels: Tensor, draws: torch.Generator
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Augment as ``data.py`` does; a mixed image pays for both labels by their shares."""
        n, _, height, width = images.shape
        boxes = draw_crops(n, height, width, draws, scale=(0.5, 1.0))
        colours = draw_flips(n, draws), draw_jitter(n, draws), draw_lighting(n, draws)
        *pasting, share = draw_cutmix(n, (self.size, self.size), draws)
        moved = [each.to(images.device, non_blocking=True) for each in (boxes, *colours, *pasting)]
        mixed = compiled_on_gpu(augmented, images.device)(images, moved, size=self.size)
        partner = moved[-2]

        def loss(logits: Tensor) -> Tensor:
            own, pasted = cross_entropy(logits, labels), cross_entropy(logits, labels[partner])
            return share * own + (1 - share) * pasted

        return mixed, loss


def augmented(images: Tensor, drawn: Sequence[Tensor], *, size: int) -> Tensor:
    """Apply what was drawn (`coreset.kernels.augment`) to uint8 images of shape (b, 3, h, w)."""
    boxes, flips, jitter, light, partner, box = drawn
    flipped = horizontal_flip(resized_crops(unit_range(images), boxes, size), flips)
    coloured = lighting(color_jitter(flipped, jitter), light)
    return cutmix(normalised(coloured, IMAGENET_MEAN, IMAGENET_STD), partner, box)
