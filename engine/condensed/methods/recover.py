"""Images recovered from what classifiers know: SRe2L, CDA, FADRM and FADRM+."""

from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import numpy as np
import tyro

from coreset.engine.condensed.condensed_set import require_same_classes
from coreset.engine.condensed.methods.base import Method, Part, Pixels, Size, Synthesis, Task
from coreset.engine.runtime.fields import class_too_small, require_at_least
from coreset.shards.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from coreset.engine.condensed.methods.recovery import Recovery

_LEAST_SIZE = 32  # of a side; networks halve it five times

Iterations: TypeAlias = Annotated[
    int,
    tyro.conf.arg(
        help="Steps of the optimiser for each image; released for fadrm and fadrm+: 2000 in four "
        "stages, at 200/224, 1, 200/224 and 1 of --size.",
        help_behavior_hint="(default: 4000; 2000 for fadrm and fadrm+)",
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoverParameters:
    """Parameters of SRe2L and CDA, as released for ImageNet-1K."""

    size: Size = 224
    iterations: Iterations = 4000
    lr: Annotated[float, tyro.conf.arg(help="Learning rate of Adam, before it falls to 0.")] = 0.25
    r_bn: Annotated[
        float, tyro.conf.arg(help="Weight of batch norm statistics beside the cross entropy.")
    ] = 0.01
    batch_classes: Annotated[
        int, tyro.conf.arg(help="Classes that have an image in one batch, and share statistics.")
    ] = 100
    precision: Annotated[
        Literal["float32", "bfloat16"], tyro.conf.arg(help="Number format of the teachers' pass.")
    ] = "float32"

    def __post_init__(self) -> None:
        require_at_least("size", self.size, _LEAST_SIZE)
        require_at_least("iterations", self.iterations, 1)
        require_at_least("lr", self.lr, 0)
        require_at_least("r_bn", self.r_bn, 0)
        require_at_least("batch_classes", self.batch_classes, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidualParameters(RecoverParameters):
    """Parameters of FADRM, as released for ImageNet-1K and its parts."""

    iterations: Iterations = 2000
    alpha: Annotated[
        float, tyro.conf.arg(help="Share of an image when it is mixed with its mosaic; 1: all.")
    ] = 0.5

    def __post_init__(self) -> None:
        RecoverParameters.__post_init__(self)  # slots make a new class, which `super()` misses
        if not 0 <= self.alpha <= 1:
            raise UsageError(f"alpha must be in [0, 1], got {self.alpha}")


def _prepare(task: Task, parameters: RecoverParameters, *, curriculum: bool = False) -> Synthesis:
    from coreset.engine.condensed.methods.recovery import Recovery, batch_norms
    from coreset.engine.data.geometry import Geometry, stored_side
    from coreset.engine.models.teachers import check_on_images

    _require_patches(task)
    for teacher in task.teachers:
        batch_norms(teacher)
    size, n_classes = parameters.size, len(task.dataset.classes)
    with task.spend("assets"):
        teachers = check_on_images(
            task.teachers, task.dataset, task.open_stream, Geometry(size, stored_side(size)),
            size=size,
        )  # fmt: skip
    recovery = Recovery(
        teachers=teachers,
        parameters=parameters,
        sizes=(size,) if task.patches is None else (round(size * 200 / 224), size) * 2,
        alpha=getattr(parameters, "alpha", 1.0),
        curriculum=curriculum,
    )
    firsts = range(0, n_classes, parameters.batch_classes)
    groups = [tuple(range(n_classes)[first:][: parameters.batch_classes]) for first in firsts]
    parts = [Part(group, range(slot, slot + 1)) for slot in range(task.ipc) for group in groups]
    extension = "jpg" if task.patches is None else "png"
    return Synthesis(parts=parts, build=partial(_build, task, recovery), extension=extension)


def _require_patches(task: Task) -> None:
    """Raise ``UsageError`` unless there are mosaics for all images, if the method takes some."""
    if task.patches is None:
        return
    require_same_classes(task.patches, task.dataset)
    sizes = task.patches.info.per_class
    if (size := min(sizes)) < task.ipc:
        name = task.dataset.classes[sizes.index(size)]
        remedy = f"lower --ipc, or name a larger set than {task.patches.path} with --patches"
        raise class_too_small(name, size, "ipc", task.ipc, remedy=remedy)


def _build(task: Task, recovery: "Recovery", part: Part) -> Pixels:
    """Recover an image of each class; the draws depend on the seed, the classes and the slot."""
    import torch

    from coreset.engine.runtime.device import generator_for

    with task.spend("images"):
        labels = torch.tensor(part.labels, device=recovery.teachers[0].orders.device)
        mosaics = _mosaics(task, part, recovery.sizes[-1])
        generator = generator_for(task.seed, part.labels[0], part.slots[0])
        images = recovery.run(labels, generator, mosaics)
        task.advance(len(labels) * recovery.parameters.iterations)
        return images.permute(0, 2, 3, 1)[:, None].cpu().numpy()


def _mosaics(task: Task, part: Part, size: int) -> "Tensor | None":
    """Decode a mosaic of each class: uint8 of shape (b, 3, s, s), squashed to a square."""
    from coreset.engine.data.geometry import Geometry
    from coreset.engine.data.images import load_into_memory

    if task.patches is None:
        return None
    of_set, (slot,) = task.patches.labels, part.slots
    ids = np.array([task.patches.ids[of_set == label][slot] for label in part.labels])
    with closing(task.open_stream(task.patches.dataset, Geometry(size), ids)) as stream:
        return load_into_memory(stream).images


SRE2L = Method(
    summary="noise is optimised until a classifier sees the class, and at every batch norm the "
    "mean and variance of real images",
    prepare=_prepare,
    parameters=RecoverParameters,
    teachers=range(1, 2),
)
CDA = replace(
    SRE2L,
    summary="as sre2l, on crops that begin with the whole image and shrink",
    prepare=partial(_prepare, curriculum=True),
)
FADRM = replace(
    SRE2L,
    summary="as sre2l, from mosaics of real images (--patches), which are mixed in again between "
    "stages of two sizes",
    parameters=ResidualParameters,
    patches=True,
)
FADRM_PLUS = replace(
    FADRM,
    summary="as fadrm, by several classifiers in turn; released with ResNet-18, DenseNet-121, "
    "ShuffleNetV2 and MobileNetV2",
    teachers=range(2, 9),
)
