"""What a protocol is: settings that identify a training, each with its source and certainty."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeAlias

from coreset.engine.models.student_names import TIMM
from coreset.shards.errors import UsageError
from coreset.shards.format.files import digest_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from coreset.engine.data.geometry import Crops
    from coreset.engine.models.networks import Norm

Loss: TypeAlias = Callable[["Tensor"], "Tensor"]
"""Loss of a batch from its logits, float32 of shape (b, classes)."""
Labeller: TypeAlias = Callable[["Tensor"], "Tensor"]
"""Mean logits of teachers, float32 of shape (b, classes), of mixed images (b, 3, s, s) in 0..1."""
Precision: TypeAlias = Literal["float32", "bfloat16"]
Mark: TypeAlias = Literal["S", "C", "R"]
MARKS: Mapping[Mark, str] = {
    "S": "said in the study's text",
    "C": "certain: read in published code, or in the paper of the protocol",
    "R": "reconstructed: the study leaves it open",
}
Sources: TypeAlias = dict[str, tuple[Mark, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol(ABC):
    """Settings of one training for one number of classes and images per class (IPC)."""

    stamp: str
    """Name and version, then the variants; ``+short`` where anything else was changed."""
    n_classes: int
    ipc: int
    epochs: int
    batch: int
    lr: float
    weight_decay: float
    evaluations: int
    norm: "Norm"
    """Norm layers of every student but timm's, which have their own."""
    resize: int
    """Short side of an evaluation image before its central square of ``size`` is cut."""
    size: int = 224
    crop_scale: float = 0.5
    """Least share of the area that a training crop has; at most all."""
    cutmix_alpha: float = 1.0
    val_per_class: int | None = None
    """Validation images of each class, the first by key; None: all."""
    precision: Precision = "float32"
    """Of forward and backward passes; weights, loss and updates are float32."""

    sources: ClassVar[Sources] = {
        "size": ("C", "224 px in the codes of all three protocols"),
        "crop_scale": ("C", "RandomResizedCrop(224, scale=(0.5, 1))"),
        "cutmix_alpha": ("C", "CutMix of every batch with one box, lambda from Beta(1, 1)"),
        "precision": ("C", "no autocast in the codes of all three protocols"),
    }
    """Certainty and source of each setting; protocols add those of their own."""

    @classmethod
    @abstractmethod
    def published(cls, n_classes: int, ipc: int) -> Self:
        """Return the protocol as published for this number of classes and IPC."""

    @abstractmethod
    def optimiser(self, network: "nn.Module") -> "torch.optim.Optimizer":
        """Make the optimiser of a network, at its first learning rate."""

    @abstractmethod
    def schedule(self, steps_per_epoch: int) -> Callable[[int], float]:
        """Return the learning rate by step."""

    @abstractmethod
    def evaluates_after(self, epoch: int) -> bool:
        """Test whether to evaluate after so many epochs; the best of all is reported."""

    @abstractmethod
    def training_batch(
        self, images: "Tensor", labels: "Tensor", draws: "torch.Generator", labeller: Labeller, /
    ) -> "tuple[Tensor, Loss]":
        """Augment and normalise uint8 images (b, 3, h, w); return them and the loss of logits."""

    def prepared(self, network: "nn.Module") -> "nn.Module":
        """Return a new network, changed where the protocol asks for it."""
        return network

    @property
    def crops(self) -> "Crops | None":
        """Crops to cut from the stored images while they are read; None: none are."""
        return None

    @property
    def averaging(self) -> float | None:
        """Share that averaged weights keep at a step; None: weights are not averaged."""
        return None

    def digest(self, teachers: Sequence[str]) -> str:
        """Digest all settings, and what the teachers were (sha256 of their weights)."""
        return digest_of({"protocol": asdict(self), "teachers": list(teachers)})

    def applied_to(self, student: str) -> Self:
        """Return the protocol of a student, stamped if the student's norm layers are its own."""
        return self.changed("timm") if student.startswith(TIMM) else self

    def changed(self, name: str, **changes: Any) -> Self:  # noqa: ANN401 - fields of any type
        """Return the protocol with changes that have a name, which is added to the stamp."""
        return replace(self, stamp=f"{self.stamp}+{name}", **changes)

    def with_kept_labels(self) -> Self:
        """Return the protocol whose soft labels are kept, for any number of students."""
        raise UsageError(f"protocol {self.stamp} has no soft labels to keep; leave out --labels")

    def shortened(self, **changes: int | None) -> Self:
        """Return the protocol with other epochs, size or evaluations, stamped if it differs."""
        given = {name: number for name, number in changes.items() if number}
        if "size" in given:
            given["resize"] = round(given["size"] * self.resize / self.size)
        shorter = replace(self, **given)
        return self if shorter == self else shorter.changed("short")


def told_settings(protocol: Protocol) -> list[tuple[str, str, str, str]]:
    """Return name, value, mark and source of every setting, in the order of the fields."""
    published = protocol.published(protocol.n_classes, protocol.ipc)
    told: list[tuple[str, str, str, str]] = []
    for name in (one.name for one in fields(protocol)):
        ours, theirs = _shown(getattr(protocol, name)), _shown(getattr(published, name))
        mark, source = protocol.sources.get(name, ("", ""))
        if ours != theirs:
            told.append((name, ours, "", f"changed; published: {theirs}"))
        elif mark:
            told.append((name, ours, mark, source))
    return told


def _shown(setting: object) -> str:
    if isinstance(setting, tuple):
        return ", ".join(map(str, setting))  # pyright: ignore[reportUnknownArgumentType] - of any
    return "all" if setting is None else str(setting)
