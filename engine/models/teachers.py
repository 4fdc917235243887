"""Teachers: frozen classifiers whose logits label the crops that students see.

A teacher is named as the folder that `coreset teach` made, or as NAME or NAME=FILE with the name of
a network of torchvision (first) or timm. Nothing is downloaded: without FILE the weights are those
that torchvision and timm keep on this machine, or those of the extra ``offline``.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from coreset.engine.artifacts.provenance import Provenance
from coreset.engine.artifacts.writer import output_digest
from coreset.engine.data.geometry import Geometry, Ints
from coreset.engine.data.order import BatchOrder, first_by_key
from coreset.engine.data.stream import ImageStream
from coreset.engine.models.backbones import Colour
from coreset.engine.models.classifiers import (
    TRAIN_ONE,
    classifier,
    load_classifier,
    possible_orders,
    weights_here,
)
from coreset.engine.models.networks import IMAGENET_MEAN, IMAGENET_STD
from coreset.engine.models.weights import USUAL_FILES
from coreset.engine.runtime.device import memory_shortage
from coreset.engine.runtime.progress import say
from coreset.engine.training.trainer import WEIGHTS_NAME
from coreset.kernels.augment import normalised, unit_range
from coreset.shards.errors import DataError, StoreError, UsageError
from coreset.shards.format.dataset import Dataset
from coreset.shards.format.files import build, missing, parse, sha256_of_file

TEACHER_NAME = "teacher.json"
LEAST_ACCURACY = 50.0
CHECKED_PER_CLASS = 10
_CHECKED_AT_ONCE = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherDocument:
    """``teacher.json``, beside the weights that `coreset teach` trained."""

    arch: str
    classes: tuple[str, ...]
    """Classes in the order of the outputs."""
    accuracy: float | None = None
    """Top-1 in percent of validation images, if there were some."""
    format_version: int = 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Teacher:
    """A frozen classifier in evaluation mode; its weights are in ``source``."""

    name: str
    source: Path
    digest: str
    """sha256 of the weights file."""
    network: nn.Module = field(repr=False)
    mean: Colour
    std: Colour
    orders: Tensor = field(repr=False)
    """Outputs of the set's C classes, int64 of shape (k, C): in k orders until it is checked."""
    accuracy: float | None = None
    """Top-1 in percent of the validation images that it was checked on."""

    def logits(self, images: Tensor, *, size: int) -> Tensor:
        """Return logits of the set's classes, float32 of shape (b, C), as of `outputs`."""
        return self.outputs(images, size=size)[:, self.orders[0]]

    @torch.no_grad()
    def outputs(self, images: Tensor, *, size: int) -> Tensor:
        """Return all outputs in the network's own order, without a gradient.

        Images (b, 3, s, s) are in 0..1; smaller ones are enlarged bilinearly to ``size`` pixels.
        """
        if images.shape[-1] < size:
            images = interpolate(images, size=(size, size), mode="bilinear")
        return self.network(normalised(images, self.mean, self.std)).float()


def mean_logits(teachers: Sequence[Teacher], images: Tensor, *, size: int) -> Tensor:
    """Average the raw logits of teachers, as EDC does; they run one after another."""
    logits = [teacher.logits(images, size=size) for teacher in teachers]
    return torch.stack(logits).mean(dim=0)


def load_teachers(
    specs: Sequence[str], classes: Sequence[str], device: torch.device
) -> tuple[Teacher, ...]:
    """Load teachers for the classes of a set, in the order of its labels, or refuse one.

    Raises ``UsageError``, or ``MachineError`` where its weights are not on this machine.
    """
    return tuple(_load(spec, tuple(classes), device) for spec in specs)


def check_on_images(
    teachers: Sequence[Teacher],
    dataset: Dataset,
    open_stream: Callable[[Dataset, Geometry, Ints], ImageStream],
    geometry: Geometry,
    *,
    size: int,
) -> tuple[Teacher, ...]:
    """Check teachers on the first images of each class of a data set, and tell how right they are.

    Arguments and errors are those of `check_teachers`.
    """
    some = first_by_key(dataset, CHECKED_PER_CLASS)
    with closing(open_stream(dataset, geometry, some)) as stream:
        examples = (
            (unit_range(batch.images), batch.labels.to(teachers[0].orders.device))
            for batch in stream.epoch(BatchOrder(batch=_CHECKED_AT_ONCE))
        )
        checked = check_teachers(teachers, examples, size=size)
    for one in checked:
        say(f"teacher {one.name}: top-1 {one.accuracy:.1f} % of {some.size} images")
    return checked


def check_teachers(
    teachers: Sequence[Teacher], examples: Iterable[tuple[Tensor, Tensor]], *, size: int
) -> tuple[Teacher, ...]:
    """Measure teachers on labelled images, and keep the right one of their orders of classes.

    ``examples`` are batches of (images as `Teacher.outputs` takes them, labels). Raises
    ``DataError`` for a teacher that is right for less than ``LEAST_ACCURACY``, ``UsageError`` for
    one that does not take images of this size.
    """
    seen, hits = 0, [torch.zeros_like(teacher.orders[:, 0]) for teacher in teachers]
    for images, labels in examples:
        for teacher, count in zip(teachers, hits, strict=True):
            outputs = _outputs_or_refusal(teacher, images, size)
            right = outputs[:, teacher.orders].argmax(dim=-1) == labels[:, None]
            count.add_(right.sum(dim=0))
        seen += len(labels)
    return tuple(_judged(*pair, seen) for pair in zip(teachers, hits, strict=True))


def _load(spec: str, classes: tuple[str, ...], device: torch.device) -> Teacher:
    if (Path(spec) / TEACHER_NAME).is_file():
        document = read_document(Path(spec), classes)
        name, path, orders = document.arch, Path(spec) / WEIGHTS_NAME, [document.classes]
        mean, std = IMAGENET_MEAN, IMAGENET_STD
    else:
        name, path, mean, std = _published(spec)
        orders = []
    network, n_outputs = load_classifier(name, path, device)
    orders = orders or possible_orders(name, n_outputs, classes)
    rows = [[order.index(label) for label in classes] for order in dict.fromkeys(orders)]
    return Teacher(
        name=name,
        source=path,
        digest=sha256_of_file(path),
        network=network,
        mean=mean,
        std=std,
        orders=torch.tensor(rows, device=device),
    )


def _published(spec: str) -> tuple[str, Path, Colour, Colour]:
    """Return what NAME or NAME=FILE names: network, weights, and mean and spread of its pixels."""
    name, is_named, file = spec.partition("=")
    try:
        _, mean, std, _ = classifier(name)
    except UsageError as error:
        remedy = f"name a teacher made by `coreset teach`, or a network ({error})"
        raise missing(Path(spec), remedy, otherwise="is no teacher") from error
    path = Path(file) if is_named else weights_here(name)
    if not path.is_file():
        raise UsageError(f"weights {path} of teacher {name} do not exist; name {USUAL_FILES}")
    return name, path, mean, std


def read_document(folder: Path, classes: tuple[str, ...] = ()) -> TeacherDocument:
    """Read and check what `coreset teach` wrote; ``classes`` must be among the teacher's."""
    if Provenance.read(folder).digest != output_digest(folder):
        raise StoreError(f"{folder} holds other files than were made; make the teacher again")
    try:
        document = build(TeacherDocument, parse((folder / TEACHER_NAME).read_bytes()))
    except (OSError, ValueError) as error:
        raise StoreError(f"{folder} cannot be read ({error}); make the teacher again") from error
    if absent := sorted(set(classes) - set(document.classes)):
        raise UsageError(
            f"teacher {folder} has no class {absent[0]!a} (it lacks {len(absent)} of the set's "
            f"{len(classes)}); {TRAIN_ONE}"
        )
    return document


def _outputs_or_refusal(teacher: Teacher, images: Tensor, size: int) -> Tensor:
    try:
        return teacher.outputs(images, size=size)
    except (AssertionError, RuntimeError, ValueError) as error:
        if memory_shortage(error):
            raise
        side, reason = max(size, images.shape[-1]), " ".join(str(error).split())
        fact = f"teacher {teacher.name} does not take images of {side} pixels ({reason})"
        raise UsageError(f"{fact}; choose another size or teacher") from error


def _judged(teacher: Teacher, hits: Tensor, seen: int) -> Teacher:
    best = int(hits.argmax())
    accuracy = 100 * int(hits[best]) / max(seen, 1)
    if accuracy < LEAST_ACCURACY:
        tried = f" in the best of {len(hits)} orders" if len(hits) > 1 else ""
        remedy = f"class order? Name weights in the order of the set's classes, or {TRAIN_ONE}"
        if teacher.source.with_name(TEACHER_NAME).is_file():  # its order is known
            remedy = "teach it with more --epochs or more images"
        raise DataError(
            f"teacher {teacher.name} ({teacher.source}) is right for {accuracy:.1f} % of {seen} "
            f"images{tried}, less than {LEAST_ACCURACY:.0f} %: {remedy}"
        )
    return replace(teacher, orders=teacher.orders[best : best + 1], accuracy=accuracy)
