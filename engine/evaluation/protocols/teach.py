"""The training of a teacher on a whole data set: CCS's ImageNet recipe.

Source: haizhongzheng/Coverage-centric-coreset-selection ``train_imagenet.py``, as `coreset score
--recipe full` runs it (``engine.scoring.recipes``). Deliberate differences: crops are taken from
squares of 8/7 of their size, decoded once where they fit; a batch is at most the data set; the
weights are those of the last epoch, and validation images are looked at once, after it.

EDC's own recipe for teachers is not taken: its 20 epochs at a rate of 0.01 start from weights
trained on ImageNet, with which no teacher would be needed; from random weights they would leave it
half trained. Its code cannot run as published, either.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from coreset.engine.evaluation.protocols.base import Loss, Protocol, Sources
from coreset.engine.models.networks import Norm
from coreset.engine.scoring.proxy import inputs_on
from coreset.engine.training.trainer import cosine_schedule, sgd
from coreset.kernels.augment import draw_crops, draw_flips

_CODE = "CCS train_imagenet.py"


@dataclass(frozen=True, slots=True, kw_only=True)
class Teach(Protocol):
    """Training of a teacher, version 1; no student is trained by it."""

    stamp: str = "teach@1"
    ipc: int = 0
    epochs: int = 60
    batch: int = 256
    lr: float = 0.1
    min_lr: float = 1e-4
    """Learning rate after the last step."""
    weight_decay: float = 1e-4
    momentum: float = 0.9
    evaluations: int = 1
    """1: after the last epoch; 0: none, for want of validation images."""
    norm: Norm = "batch"
    resize: int = 256
    """Side of the squares from which training crops are taken, and short side of an evaluation
    image before its central square of ``size`` is cut."""
    crop_scale: float = 0.08
    cutmix_alpha: float = 0.0

    sources: ClassVar[Sources] = {
        **Protocol.sources,
        "ipc": ("R", "none: the whole data set"),
        "epochs": ("C", f"{_CODE}: 60"),
        "batch": ("C", f"{_CODE}: 256, at most the data set [R]"),
        "lr": ("C", f"{_CODE}: 0.1"),
        "min_lr": ("C", f"{_CODE}: cosine at every step, to 1e-4"),
        "weight_decay": ("C", f"{_CODE}: 1e-4, of all weights"),
        "momentum": ("C", f"{_CODE}: SGD without Nesterov"),
        "evaluations": ("R", "once, at the end: no epoch is chosen by validation images"),
        "norm": ("C", f"{_CODE}: torchvision's networks with batch norm"),
        "resize": ("C", f"{_CODE}: Resize(256), CenterCrop(224); training crops of such squares"),
        "size": ("C", f"{_CODE}: 224 px"),
        "crop_scale": ("C", f"{_CODE}: RandomResizedCrop(224), of 0.08 to 1 of the area"),
        "cutmix_alpha": ("C", f"{_CODE}: images are not mixed"),
        "val_per_class": ("C", "the whole validation set"),
        "precision": ("R", "float32, as students"),
    }

    @classmethod
    def published(cls, n_classes: int, ipc: int = 0) -> Self:
        """Return the recipe, which is the same for all data sets."""
        return cls(n_classes=n_classes, ipc=ipc)

    def optimiser(self, network: nn.Module) -> torch.optim.SGD:
        """Make SGD that decays all weights."""
        return sgd(network, lr=self.lr, weight_decay=self.weight_decay, momentum=self.momentum)

    def schedule(self, steps_per_epoch: int) -> Callable[[int], float]:
        """Return the learning rate by step, along a cosine."""
        return cosine_schedule(self.lr, self.min_lr, self.epochs * steps_per_epoch)

    def evaluates_after(self, epoch: int) -> bool:
        """Evaluate after the last epoch, if at all."""
        return self.evaluations > 0 and epoch == self.epochs

    def training_batch(
        self, images: Tensor, labels: Tensor, draws: torch.Generator, _labeller: object = None, /
    ) -> tuple[Tensor, Loss]:
        """Crop, mirror and normalise squares; the loss is the cross-entropy."""
        n, _, height, width = images.shape
        boxes = draw_crops(n, height, width, draws, scale=(self.crop_scale, 1.0))
        inputs = inputs_on(images.device, images, boxes, draw_flips(n, draws), self.size)
        return inputs, lambda logits: cross_entropy(logits, labels)
