"""Students of the benchmark of students, and comparisons of what they see and become."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from coreset.bench.peers.students import Labelled, hard_epoch, hard_loader
from coreset.engine.data.geometry import Geometry
from coreset.engine.data.images import load_into_memory
from coreset.engine.data.order import BatchOrder
from coreset.engine.data.whole_images import WholeImages
from coreset.engine.evaluation.protocols import named_protocol
from coreset.engine.evaluation.protocols.base import Protocol
from coreset.engine.evaluation.protocols.rded import Rded
from coreset.engine.evaluation.soft_labels import KeptLabels, SoftLabels
from coreset.engine.evaluation.students import Images, Student
from coreset.engine.models.networks import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    build_network,
    memory_format_for,
    placed,
)
from coreset.engine.models.teachers import Teacher
from coreset.engine.runtime.device import generator_for
from coreset.engine.stages.options import Decoding
from coreset.shards.format.dataset import Dataset

CPU, IPC, RESNET = torch.device("cpu"), 10, "resnet18"
LOGIT_SCALE = 300.0  # at temperature 20
IMAGE_SPREAD = 0.5
"""Standard deviation of an image's mean under draws; that of RDED's inputs is a quarter of it."""


@dataclass(frozen=True, slots=True)
class SmallSet:
    """The images of a condensed set, as files and packed."""

    files: list[Labelled]
    dataset: Dataset

    def protocol(self, name: str, size: int) -> Protocol:
        """Return a protocol as published but for its size."""
        return named_protocol(name, len(self.dataset.classes), IPC).shortened(size=size)

    def student(
        self, protocol: Protocol, name: str = RESNET, kept: KeptLabels | None = None
    ) -> Student:
        """Make a student that is trained and evaluated on these images."""
        ids, size = np.arange(len(self.dataset)), protocol.size
        with Decoding(device="cpu").stream(
            self.dataset, Geometry(size, protocol.resize), ids
        ) as stream:
            val = load_into_memory(stream)
        images = Images(val, val)
        if isinstance(protocol, Rded):
            train = WholeImages(
                self.dataset, ids, size=size, device=CPU, shuffle_factor=protocol.shuffle
            )
            teachers = (random_teacher(protocol.n_classes),)
            images = Images(train, val, SoftLabels(teachers, CPU, protocol.teacher_size, kept=kept))
        return Student(images, protocol, name, seed=0, device=CPU, compile_mode="off")


def random_teacher(n_classes: int) -> Teacher:
    """Make a ResNet-18 that knows nothing, with logits that are large enough to learn from."""
    network = build_network(RESNET, n_classes, norm="batch", seed=1)
    network = placed(network, CPU, memory_format_for("batch", CPU)).eval()
    network.requires_grad_(requires_grad=False)
    network.get_parameter("fc.weight").mul_(LOGIT_SCALE)
    return Teacher(
        name=RESNET, source=Path(), digest="", network=network, mean=IMAGENET_MEAN,
        std=IMAGENET_STD, orders=torch.arange(n_classes)[None],
    )  # fmt: skip


def inputs_of(student: Student, epochs: Iterator[int]) -> Iterator[Tensor]:
    """Make the inputs of the next epoch as `Student.train_epoch` does; teachers do nothing."""
    protocol, epoch = student.protocol, next(epochs)
    order = BatchOrder(batch=protocol.batch, epoch=epoch, shuffle=True, crops=protocol.crops)
    draws = generator_for(0, epoch)
    for batch in student.images.train.epoch(order):
        inputs, _ = protocol.training_batch(batch.images, batch.labels, draws, lambda mixed: mixed)
        yield inputs.contiguous(memory_format=student.layout)


def epochs_of(student: Student) -> Callable[[], float]:
    """Return what trains for the next epoch and returns its loss."""
    epochs = iter(count())
    return lambda: student.train_epoch(next(epochs))


def published_epochs(few: SmallSet, protocol: Protocol, name: str) -> Callable[[], float]:
    """Return the same by the published structure, which draws otherwise."""
    network = build_network(name, protocol.n_classes, norm=protocol.norm, seed=0)
    loader = hard_loader(few.files, protocol.size, protocol.batch)
    return partial(hard_epoch, network, protocol.optimiser(network), loader)


@torch.no_grad()
def pass_before(network: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Run the forward pass of a network, before it is called, as RDED does for an accuracy."""
    network.forward(*inputs)


def unlike(ours: Tensor, theirs: Tensor) -> str:
    """Compare images (n, 3, s, s) by channel: means, and logarithms of spread and sharpness.

    They may differ by four standard errors of the difference of means.
    """
    if ours.shape != theirs.shape:
        return f"images {tuple(ours.shape)}, the peer's {tuple(theirs.shape)}"
    far = float((_statistics(ours) - _statistics(theirs)).abs().max())
    within = 4 * IMAGE_SPREAD * (2 / len(ours)) ** 0.5
    return f"statistics of images differ by {far:.2f}" if not far <= within else ""


def _statistics(images: Tensor) -> Tensor:
    steps = images.diff(dim=3).abs().mean((0, 2, 3))
    return torch.stack((images.mean((0, 2, 3)), images.std((0, 2, 3)).log(), steps.log()))


def losses_alike(peer: str, within: float) -> Callable[[str, float], str]:
    """Check that the loss of an epoch is that of the peer, who comes first, but for a share."""
    losses = dict[str, float]()

    def check(way: str, loss: float) -> str:
        losses[way] = loss
        far = not abs(loss / losses[peer] - 1) <= within
        return f"loss {loss:.4f}, the peer's {losses[peer]:.4f}" if far else ""

    return check


def difference(first: nn.Module, second: nn.Module) -> float:
    """Return the largest difference of weights and statistics, as a share of each one's largest."""
    theirs = second.state_dict()
    return max(
        float((tensor - theirs[name]).abs().max() / theirs[name].abs().max().clamp(min=1e-3))
        for name, tensor in first.state_dict().items()
        if tensor.is_floating_point()
    )
