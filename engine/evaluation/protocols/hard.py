"""The hard-label protocol.

Source: MinimaxDiffusion / ManifoldGD ``train.py``, ``argument.py``, ``data.py`` (the study's
section 3.4). Deliberate differences, each of which leaves the recipe as it is: images are resized
and cut to their central square once and held as uint8; on a CPU crops are rounded to whole levels;
augmentation runs in batch on the device; every run is seeded. ImageNet-1K trains 300 epochs (the
published rule would give 2000 or 1500; the study's number was lost).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from coreset.engine.data.crops import crops_on_cpu
from coreset.engine.evaluation.protocols.base import Loss, Protocol, Sources
from coreset.engine.models.networks import IMAGENET_MEAN, IMAGENET_STD, Norm
from coreset.engine.runtime.limits import available_cores
from coreset.engine.training.compilation import compiled_on_gpu
from coreset.engine.training.trainer import sgd, step_schedule
from coreset.kernels.augment import (
    cutmix,
    draw_crops,
    draw_cutmix,
    draw_flips,
    draw_jitter,
    draw_lighting,
    horizontal_flip,
    recoloured,
    resized_crops,
    unit_range,
)

EPOCHS_BY_IPC = ((1, 3000), (10, 2000), (50, 1500), (200, 1000), (500, 500), (math.inf, 300))
"""``ipc_epoch`` of the published code: the first limit that the IPC does not exceed."""
_CODE = "train.py, argument.py"


def published_epochs(n_classes: int, ipc: int) -> int:
    """Return the epochs of ``ipc_epoch``; 100 classes have two thirds of them, in hundreds."""
    epochs = next(epochs for limit, epochs in EPOCHS_BY_IPC if ipc <= limit)
    return epochs * 2 // 3 // 100 * 100 if n_classes == 100 else epochs


@dataclass(frozen=True, slots=True, kw_only=True)
class HardLabels(Protocol):
    """Hard-label protocol, version 1; its defaults are those of at most 100 classes."""

    stamp: str = "hard@1"
    batch: int = 64
    lr: float = 0.01
    weight_decay: float = 5e-4
    momentum: float = 0.9
    lr_factor: float = 0.2
    """Of the learning rate, after two thirds and after five sixths of the epochs."""
    jitter: float = 0.4
    """Most change of brightness, contrast and saturation."""
    lighting: float = 0.1
    """Spread of the amounts of ImageNet's principal components."""
    evaluations: int = 100
    norm: Norm = "instance"
    resize: int = 224

    sources: ClassVar[Sources] = {
        **Protocol.sources,
        "epochs": ("R", "rule of ipc_epoch [C]; over 100 classes 300: one number for both IPCs"),
        "batch": ("C", f"{_CODE}: 64, over 100 classes 128"),
        "lr": ("C", f"{_CODE}: 0.01, over 100 classes 0.1"),
        "weight_decay": ("C", f"{_CODE}: 5e-4, over 100 classes 1e-4, of all weights"),
        "momentum": ("C", f"{_CODE}: SGD without Nesterov"),
        "lr_factor": ("C", f"{_CODE}: MultiStepLR after 2/3 and 5/6 of the epochs"),
        "jitter": ("C", "data.py: ColorJitter, unclamped"),
        "lighting": ("C", "data.py: Lighting, before normalisation"),
        "evaluations": ("C", "train.py: every epochs // 100; the best top-1 is reported"),
        "norm": ("C", "every published command passes --norm_type instance"),
        "resize": ("C", "data.py: Resize(224), CenterCrop(224)"),
        "val_per_class": ("C", "the whole validation folder"),
    }

    @classmethod
    def published(cls, n_classes: int, ipc: int) -> Self:
        """Return the protocol as published; more than 100 classes have settings of their own."""
        if n_classes <= 100:
            return cls(n_classes=n_classes, ipc=ipc, epochs=published_epochs(n_classes, ipc))
        return cls(n_classes=n_classes, ipc=ipc, epochs=300, batch=128, lr=0.1, weight_decay=1e-4)

    def optimiser(self, network: nn.Module) -> torch.optim.SGD:
        """Make SGD that decays all weights."""
        return sgd(network, lr=self.lr, weight_decay=self.weight_decay, momentum=self.momentum)

    def schedule(self, steps_per_epoch: int) -> Callable[[int], float]:
        """Return the learning rate by step: it falls after two thirds and five sixths."""
        drops = (2 * self.epochs // 3, 5 * self.epochs // 6)
        return step_schedule(self.lr, (epoch * steps_per_epoch for epoch in drops), self.lr_factor)

    def evaluates_after(self, epoch: int) -> bool:
        """Evaluate every E // evaluations epochs, and after the last."""
        every = max(1, self.epochs // self.evaluations)
        return epoch % every == 0 or epoch == self.epochs

    def training_batch(
        self, images: Tensor, labels: Tensor, draws: torch.Generator, _labeller: object = None, /
    ) -> tuple[Tensor, Loss]:
        """Augment as ``data.py`` does; a mixed image pays for both labels by their shares."""
        n, _, height, width = images.shape
        boxes = draw_crops(n, height, width, draws, scale=(self.crop_scale, 1.0))
        colours = (
            draw_flips(n, draws),
            draw_jitter(n, draws, self.jitter),
            draw_lighting(n, draws, self.lighting),
        )
        *pasting, share = draw_cutmix(n, (self.size, self.size), draws, self.cutmix_alpha)
        drawn = [each.to(images.device, non_blocking=True) for each in (*colours, *pasting)]
        if images.device.type == "cpu":
            crops = crops_on_cpu(images, boxes, self.size, workers=available_cores())
            mixed = mixed_of(crops, drawn)
        else:
            drawn = [boxes.to(images.device, non_blocking=True), *drawn]
            mixed = compiled_on_gpu(augmented, images.device)(images, drawn, size=self.size)
        partner = drawn[-2]

        def loss(logits: Tensor) -> Tensor:
            own, pasted = cross_entropy(logits, labels), cross_entropy(logits, labels[partner])
            return share * own + (1 - share) * pasted

        return mixed, loss


def augmented(images: Tensor, drawn: Sequence[Tensor], *, size: int) -> Tensor:
    """Apply what was drawn (`coreset.kernels.augment`) to uint8 images of shape (b, 3, h, w)."""
    boxes, *others = drawn
    return mixed_of(resized_crops(unit_range(images), boxes, size), others)


def mixed_of(crops: Tensor, drawn: Sequence[Tensor]) -> Tensor:
    """Mirror, colour, normalise and mix crops of shape (b, 3, s, s), uint8 or in 0..1."""
    flips, jitter, light, partner, box = drawn
    images = unit_range(horizontal_flip(crops, flips))
    return cutmix(recoloured(images, jitter, light, IMAGENET_MEAN, IMAGENET_STD), partner, box)
