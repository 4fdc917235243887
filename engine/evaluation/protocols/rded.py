"""RDED's protocol: labels of one teacher.

Source: LINs-lab/RDED ``argument.py``, ``validation/main.py``, ``validation/utils.py``,
``synthesize/utils.py`` (the study's section 3.4). Deliberate difference: the published loop runs a
second forward pass in training mode on each mixed batch, to print an accuracy, which also updates
the running statistics of batch norm a second time; here they are updated once, as far as twice.
"""

from dataclasses import dataclass
from math import cos, pi
from typing import ClassVar, Self

from torch import Tensor, nn
from torch.nn.functional import kl_div

from coreset.engine.evaluation.protocols.base import Sources
from coreset.engine.evaluation.protocols.soft import SoftLabels


@dataclass(frozen=True, slots=True, kw_only=True)
class Rded(SoftLabels):
    """RDED's protocol, version 1."""

    stamp: str = "rded@1"
    evaluations: int = 6
    val_per_class: int | None = 50
    teachers: tuple[str, ...] = ("resnet18",)
    temperature: float = 20.0
    shuffle: int = 2
    statistics_updates: int = 2
    """Updates of the running statistics of batch norm by each batch."""

    sources: ClassVar[Sources] = {
        **SoftLabels.sources,
        "epochs": ("R", "300, argument.py [C]; the study gives no number, VLCP's scripts take 500"),
        "batch": ("C", "argument.py: 10, 50, 100 up to IPC 1, 10, 50; twice that over 10 classes"),
        "evaluations": ("C", "after epochs 249, 259 ... 299; the best top-1 is reported"),
        "val_per_class": ("C", "val_ipc = 50"),
        "teachers": ("S", "a single ResNet-18"),
        "labels": ("C", "on the fly"),
        "temperature": ("C", "20 for CutMix; KL divergence, batchmean, without its square"),
        "shuffle": ("C", "ShufflePatches(factor 2), also on whole images"),
        "statistics_updates": ("C", "a second forward pass in training mode"),
    }

    @classmethod
    def published(cls, n_classes: int, ipc: int) -> Self:
        """Return the protocol as published; a batch is at most the set."""
        batch = (10 if ipc == 1 else 50 if ipc <= 10 else 100) * (1 if n_classes <= 10 else 2)
        return cls(n_classes=n_classes, ipc=ipc, batch=min(batch, ipc * n_classes))

    def evaluates_after(self, epoch: int) -> bool:
        """Evaluate ``evaluations`` times in the last fifth, after the last epoch for the last."""
        every = max(1, self.epochs // 5 // self.evaluations)
        is_late = epoch > 0.8 * self.epochs + 1 or epoch == self.epochs
        return is_late and (self.epochs - epoch) % every == 0

    def lr_share(self, epoch: int) -> float:
        """Fall along half of a cosine, to a half."""
        return 0.5 * (1 + cos(pi * epoch / (2 * self.epochs)))

    def prepared(self, network: nn.Module) -> nn.Module:
        """Give batch norm the momentum that updates running statistics as far as all updates."""
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d) and layer.momentum is not None:
                layer.momentum = 1 - (1 - layer.momentum) ** self.statistics_updates
        return network

    def loss_of(self, logits: Tensor, soft: Tensor, labels: Tensor) -> Tensor:  # noqa: ARG002 - of the protocol
        """Return the KL divergence of softened probabilities, averaged over images."""
        ours = (logits / self.temperature).log_softmax(dim=1)
        return kl_div(ours, (soft / self.temperature).softmax(dim=1), reduction="batchmean")
