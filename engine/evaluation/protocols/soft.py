"""What the two soft-label protocols share: crops of stored images, CutMix, AdamW, rates by epoch.

Deliberate differences from both published codes, which leave the recipes as they are: images are
decoded once; crops are rounded to whole levels, by at most half of one; augmentation runs in batch;
every run is seeded, and its draws depend on the seed alone, whatever the student.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from threading import Lock
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn

from coreset.engine.data.geometry import Crops, Pixels
from coreset.engine.evaluation.protocols.base import Labeller, Loss, Protocol, Sources
from coreset.engine.models.networks import IMAGENET_MEAN, IMAGENET_STD, Norm
from coreset.engine.runtime.device import seeded_torch
from coreset.engine.training.compilation import compiled_on_gpu
from coreset.engine.training.trainer import adamw
from coreset.kernels.augment import (
    cutmix,
    draw_cutmix,
    draw_flips,
    horizontal_flip,
    normalised,
    unit_range,
)

LEAST_TEACHER_SIZE = 128
_one_at_a_time = Lock()  # torchvision draws from the global generator


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftLabels(Protocol):
    """Settings that RDED's and EDC's protocol both have."""

    epochs: int = 300
    lr: float = 1e-3
    weight_decay: float = 0.01
    norm: Norm = "batch"
    resize: int = 256
    teachers: tuple[str, ...]
    """Architectures of the teachers, whose mean logits are the labels."""
    teacher_size: int = 0
    """Least side in pixels of the images that teachers see; smaller ones are enlarged."""
    labels: Literal["float32", "float16"] = "float32"
    """Type of the logits, float16 where they are kept."""
    shuffle: int = 1
    """Blocks along each axis of a stored image that are shuffled before the crop; 1: none are."""
    randaugment: bool = False
    """RandAugment of the stored image (two operations of magnitude 9) before the crop."""

    sources: ClassVar[Sources] = {
        **Protocol.sources,
        "lr": ("C", "AdamW at 0.001 for ResNets"),
        "weight_decay": ("C", "of weights of more than one dimension"),
        "norm": ("C", "torchvision's networks with batch norm"),
        "resize": ("C", "Resize(256), CenterCrop(224)"),
        "teacher_size": ("C", "teachers see the student's images; 0 enlarges none"),
        "randaugment": ("R", "none; ImageNet-10 branch of EDC: RandAugment()"),
    }

    def shortened(self, **changes: int | None) -> Self:
        """Shorten as other protocols; teachers, which learnt 224 px, see at least 128."""
        shorter: Self = Protocol.shortened(self, **changes)  # pyright: ignore[reportAssignmentType] - of this class
        least = LEAST_TEACHER_SIZE if shorter.size < LEAST_TEACHER_SIZE else 0
        return replace(shorter, teacher_size=least)

    @property
    def crops(self) -> Crops:
        """Crops of the stored images."""
        return Crops(scale=(self.crop_scale, 1.0))

    @property
    def transform(self) -> Callable[[Pixels, int], Pixels] | None:
        """Change of the stored images before they are cropped, with a seed of its draws."""
        return randaugmented if self.randaugment else None

    def with_kept_labels(self) -> Self:
        """Return the protocol with labels as they are kept."""
        return replace(self, labels="float16")

    def optimiser(self, network: nn.Module) -> torch.optim.AdamW:
        """Make AdamW that decays weights of more than one dimension alone."""
        return adamw(network, lr=self.lr, weight_decay=self.weight_decay)

    def schedule(self, steps_per_epoch: int) -> Callable[[int], float]:
        """Return the learning rate by step, which changes by epoch alone."""
        return lambda step: self.lr * self.lr_share(step // steps_per_epoch)

    @abstractmethod
    def lr_share(self, epoch: int) -> float:
        """Return the learning rate of an epoch, from 0, as a share of that at the start."""

    @abstractmethod
    def loss_of(self, logits: Tensor, soft: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of float32 logits (b, classes) by logits of teachers and by labels."""

    def training_batch(
        self, images: Tensor, labels: Tensor, draws: torch.Generator, labeller: Labeller, /
    ) -> tuple[Tensor, Loss]:
        """Mirror and mix crops (b, 3, s, s), and let the teachers label the mixed images."""
        flips = draw_flips(len(images), draws)
        partner, box, _ = draw_cutmix(len(images), (self.size, self.size), draws, self.cutmix_alpha)
        drawn = [each.to(images.device, non_blocking=True) for each in (flips, partner, box)]
        mixed = compiled_on_gpu(mixed_of, images.device)(images, *drawn)
        soft = labeller(mixed)
        inputs = normalised(mixed, IMAGENET_MEAN, IMAGENET_STD)
        return inputs, lambda logits: self.loss_of(logits, soft, labels)


def mixed_of(images: Tensor, flips: Tensor, partner: Tensor, box: Tensor) -> Tensor:
    """Mirror and mix uint8 images (b, 3, s, s) as drawn; return them in 0..1."""
    return unit_range(cutmix(horizontal_flip(images, flips), partner, box))


def randaugmented(image: Pixels, seed: int) -> Pixels:
    """Apply torchvision's RandAugment to an image, uint8 of shape (h, w, 3)."""
    from torchvision.transforms import RandAugment

    with _one_at_a_time, seeded_torch(seed, torch.device("cpu")):
        changed = RandAugment()(torch.from_numpy(image).permute(2, 0, 1))
    return np.ascontiguousarray(changed.permute(1, 2, 0).numpy())
