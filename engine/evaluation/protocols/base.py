"""Evaluation protocol: the training and the evaluations that students of every method share."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from coreset.engine.models.backbones import IMAGENET_MEAN, IMAGENET_STD
from coreset.engine.models.networks import Norm
from coreset.kernels.augment import normalised


class TrainingBatch(NamedTuple):
    """Input of one training step."""

    inputs: Tensor
    """Augmented and normalised images, (b, 3, size, size)."""
    loss: Callable[[Tensor], Tensor]
    """Loss of the logits (b, classes) against the targets of these images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol(ABC):
    """Settings of one training; its fields identify the students trained under it."""

    n_classes: int
    ipc: int
    epochs: int
    size: int = 224
    evaluations: int = 100
    """About this many evaluations, evenly over the epochs; best top-1 is the best of them."""
    stamp: str
    """Name and version, ``+short`` where the protocol is not the published one."""
    norm: ClassVar[Norm]
    """Norm of the students."""

    @classmethod
    @abstractmethod
    def published(cls, n_classes: int, ipc: int) -> Self:
        """Return the protocol as published for this number of classes and IPC."""

    @property
    @abstractmethod
    def batch(self) -> int:
        """Images per step."""

    @abstractmethod
    def optimiser(self, network: nn.Module) -> torch.optim.SGD:
        """Make the optimiser of a network, at its first learning rate."""

    @abstractmethod
    def schedule(self, steps_per_epoch: int) -> Callable[[int], float]:
        """Return the learning rate by step."""

    @abstractmethod
    def training_batch(
        self, images: Tensor, labels: Tensor, draws: torch.Generator
    ) -> TrainingBatch:
        """Augment one batch and bind its targets.

        Args:
            images: uint8 (b, 3, s, s) on the device.
            labels: int64 (b,).
            draws: Source of all randomness.
        """

    def evaluation_inputs(self, images: Tensor) -> Tensor:
        """Prepare uint8 images (b, 3, s, s) for an evaluation."""
        return normalised(images, IMAGENET_MEAN, IMAGENET_STD)

    def shortened(self, *, epochs: int | None, size: int | None, evaluations: int | None) -> Self:
        """Return the protocol with other epochs, size or evaluations, stamped if it differs."""
        changed = replace(
            self,
            epochs=epochs or self.epochs,
            size=size or self.size,
            evaluations=evaluations or self.evaluations,
        )
        return self if changed == self else replace(changed, stamp=f"{self.stamp}+short")

    def evaluates_after(self, epoch: int) -> bool:
        """Test whether to evaluate after so many epochs: every E // evaluations, and the last."""
        every = max(1, self.epochs // self.evaluations)
        return epoch % every == 0 or epoch == self.epochs
