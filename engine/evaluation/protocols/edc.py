"""EDC's protocol: mean logits of four teachers, averaged weights.

Source: shaoshitong/EDC ``Branch_full_ImageNet_1k/relabel``, ``train/train_FKD_parallel.py``, and
the paper's Tables 6 and 7. Deliberate difference: teachers label on the fly what the published code
labels beforehand and replays; both see the same images.
"""

from dataclasses import dataclass
from math import cos, pi
from typing import ClassVar, Literal, Self

from torch import Tensor
from torch.nn.functional import cross_entropy, mse_loss

from coreset.engine.evaluation.protocols.base import Sources
from coreset.engine.evaluation.protocols.soft import SoftLabels


@dataclass(frozen=True, slots=True, kw_only=True)
class Edc(SoftLabels):
    """EDC's protocol, version 1."""

    stamp: str = "edc@1"
    batch: int = 100
    evaluations: int = 11
    teachers: tuple[str, ...] = (
        "resnet18",
        "mobilenet_v2",
        "efficientnet_b0",
        "shufflenet_v2_x0_5",
    )
    ce_weight: float = 0.025
    """Weight of the cross-entropy on the label of the base image alone, though images are mixed."""
    ema: float = 0.99
    """Share that averaged parameters keep at a step; they are evaluated, with the running
    statistics of the student."""
    rates: Literal["cosine", "linear", "ssrs"] = "cosine"
    """Learning rates; all but ssrs end at half of the first."""

    sources: ClassVar[Sources] = {
        **SoftLabels.sources,
        "epochs": ("R", "300 (EDC, Table 6 [C]); its ImageNet-10 branch takes 1000"),
        "batch": ("C", "100 (EDC, Table 6); 50 for a set of 100 images, as its ImageNet-10 branch"),
        "evaluations": ("C", "after epochs 0, 30 ... 270, 299, of averaged weights"),
        "val_per_class": ("C", "the whole validation folder"),
        "teachers": ("S", "ResNet-18, MobileNet, EfficientNet, ShuffleNet; the code has AlexNet"),
        "labels": ("C", "logits averaged as they are; the published code keeps float16"),
        "shuffle": ("C", "listed in the code, without effect"),
        "ce_weight": ("S", "0.025, with the label of the base image [C]"),
        "ema": ("C", "0.99 at every step, parameters only"),
        "rates": ("R", "cosine with zeta 2 (EDC, Table 6 [C]); the published code runs linear"),
    }

    @classmethod
    def published(cls, n_classes: int, ipc: int) -> Self:
        """Return the protocol as published, for 100 images with half of the batch."""
        batch = 50 if n_classes * ipc <= 100 else 100
        return cls(n_classes=n_classes, ipc=ipc, batch=batch)

    @property
    def averaging(self) -> float:
        """Share that averaged weights keep at a step."""
        return self.ema

    def evaluates_after(self, epoch: int) -> bool:
        """Evaluate after the first epoch, evenly from there, and after the last."""
        every = max(1, self.epochs // max(1, self.evaluations - 1))
        return (epoch - 1) % every == 0 or epoch == self.epochs

    def lr_share(self, epoch: int) -> float:
        """Fall to a half: along a cosine, in a line; ssrs (EDC, equation 33) to nothing."""
        passed = epoch / self.epochs
        if self.rates == "linear":
            return 1 - passed / 2
        if self.rates == "ssrs" and passed > 5 / 6:
            return 0.5 * (1 + cos(pi * 5 / 12)) * (1 - passed)
        return 0.5 * (1 + cos(pi * passed / 2))

    def loss_of(self, logits: Tensor, soft: Tensor, labels: Tensor) -> Tensor:
        """Return the mean squared error to the teachers' logits, and some cross-entropy."""
        return mse_loss(logits, soft) + self.ce_weight * cross_entropy(logits, labels)
