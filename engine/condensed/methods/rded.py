"""RDED: mosaics of the real crops of which a teacher is surest (Sun et al., CVPR 2024).

Candidates of a class are some of its images, each the best of a few random crops; best means the
smallest cross-entropy of the class. Crops are judged one by one, padded to the image's size.

As github.com/LINs-lab/RDED ``synthesize/main.py`` and ``synthesize/utils.py`` (31f9117), but:

- Cross-entropy is a log-softmax in float64: theirs, the logarithm of a softmax in float32, ties
  crops at 0 and underflows to infinity.
- Teachers get pixels with their own mean and std. The padding is 0 after that, as theirs is.
- Crops are resized in integers, judged within 0.03 levels of theirs, and rounded to be stored;
  theirs are truncated after they were normalised and back.
- A class with fewer images than candidates gives all it has; theirs takes those of the next class.
- Equal losses keep the order of the draw.
"""

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import tyro
from numpy.typing import NDArray

from coreset.engine.condensed.methods.base import Method, Part, Pixels, Size, Synthesis, Task
from coreset.engine.runtime.fields import require_at_least, require_between, require_class_size
from coreset.kernels.seeds import derived_seed, permutation
from coreset.shards.errors import UsageError

if TYPE_CHECKING:
    from coreset.engine.models.teachers import Teacher

Ints = NDArray[np.int64]
Levels = NDArray[np.uint16]
"""Pixels with their fractions: 256 times the levels of uint8."""
_SMALLEST_TILE = 8
_IMAGES_AT_ONCE = 20
"""Images whose crops are judged together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RdedParameters:
    """Parameters of RDED, by default those of its ImageNet-1K sets."""

    size: Size = 224
    factor: Annotated[int, tyro.conf.arg(help="Tiles along a side of a mosaic.")] = 2
    candidates: Annotated[int, tyro.conf.arg(help="Images drawn from each class.")] = 300
    crops: Annotated[int, tyro.conf.arg(help="Random crops of each of them.")] = 5
    stored: Annotated[
        Literal["jpg", "png"], tyro.conf.arg(help="JPEG of quality 75, or PNG without loss.")
    ] = "jpg"

    def __post_init__(self) -> None:
        require_at_least("size", self.size, 32)
        require_between("factor", self.factor, 1, self.size // _SMALLEST_TILE + 1)
        require_at_least("candidates", self.candidates, 1)
        require_at_least("crops", self.crops, 1)


def _prepare(task: Task, parameters: RdedParameters) -> Synthesis:
    from coreset.engine.data.geometry import Geometry
    from coreset.engine.models.teachers import check_on_images

    n_tiles, tiles = task.ipc * parameters.factor**2, "tiles of a class (ipc * factor^2)"
    if n_tiles > parameters.candidates:
        raise UsageError(
            f"candidates must be at least the {tiles}, {n_tiles}, got {parameters.candidates}; "
            "raise --candidates, or lower --ipc or --factor"
        )
    require_class_size(task.dataset, tiles, n_tiles, remedy="lower --ipc or --factor")
    size = parameters.size
    with task.spend("assets"):
        (teacher,) = check_on_images(
            task.teachers, task.dataset, task.open_stream, Geometry(size, size), size=size
        )
    return Synthesis(
        parts=task.class_parts(),
        build=partial(_build, task, teacher, parameters),
        extension=parameters.stored,
    )


def _build(task: Task, teacher: "Teacher", parameters: RdedParameters, part: Part) -> Pixels:
    (label,) = part.labels
    with task.spend("classes"):
        members = np.flatnonzero(task.dataset.labels == label)
        order = permutation(members.size, derived_seed(task.seed, label))
        ids = members[order[: parameters.candidates]]
        crops, losses = best_crops(task, teacher, ids, label, parameters)
        task.advance(ids.size)
    with task.spend("images"):
        return rounded_mosaics(crops, losses, task.ipc, parameters)[None]


def best_crops(
    task: Task, teacher: "Teacher", ids: Ints, label: int, parameters: RdedParameters
) -> tuple[Levels, NDArray[np.float64]]:
    """Return the surest crop of each image, shape (b, s, s, 3), and its loss."""
    from coreset.engine.data.prefetch import prefetch

    best, least = list[Levels](), list[NDArray[np.float64]]()
    with closing(prefetch(_crop_batches(task, ids, label, parameters), 1)) as batches:
        for crops in batches:
            losses = crop_losses(teacher, crops, label, parameters.size)
            rows, chosen = np.arange(len(losses)), losses.argmin(axis=1)  # the first of equal ones
            best.append(crops[rows, chosen])
            least.append(losses[rows, chosen])
    return np.concatenate(best), np.concatenate(least)


def crop_losses(teacher: "Teacher", crops: Levels, label: int, size: int) -> NDArray[np.float64]:
    """Compute the cross-entropy of a class, shape (b, m), of crops (b, m, s, s, 3).

    Crops lie in the middle of ``size`` pixels a side, surrounded by the teacher's mean colour.
    """
    import torch

    device, side = teacher.orders.device, crops.shape[2]
    images = torch.from_numpy(crops).to(device).flatten(0, 1).permute(0, 3, 1, 2)
    colour = torch.tensor(teacher.mean, device=device)[:, None, None]
    shape, edge = (len(images), 3, size, size), (size - side) // 2
    padded = colour.expand(shape).contiguous(memory_format=torch.channels_last)
    padded[:, :, edge : edge + side, edge : edge + side] = images.float() / (256 * 255)
    logits = teacher.logits(padded, size=size).double()
    return -logits.log_softmax(dim=1)[:, label].view(crops.shape[:2]).cpu().numpy()


def _crop_batches(
    task: Task, ids: Ints, label: int, parameters: RdedParameters
) -> Generator[Levels]:
    """Cut the crops of some images at a time: squares of 8 to 100 % of an image's area."""
    from coreset.engine.data.geometry import Crops
    from coreset.engine.data.reader import ShardReader
    from coreset.engine.data.whole_images import cut_crops
    from coreset.engine.runtime.limits import available_cores

    squares, seed = Crops(ratio=(1.0, 1.0)), derived_seed(task.seed, label)
    sides = [task.dataset.ints(name)[ids] for name in ("width", "height")]
    drawn = (squares.boxes(ids, *sides, seed=seed, epoch=n) for n in range(parameters.crops))
    boxes, sizes = np.stack([*drawn], axis=1), np.stack(sides, axis=1)
    side, workers = parameters.size // parameters.factor, task.workers or available_cores()
    with ShardReader(task.dataset) as reader:
        for start in range(0, ids.size, _IMAGES_AT_ONCE):
            some = slice(start, start + _IMAGES_AT_ONCE)
            yield cut_crops(reader, ids[some], sizes[some], boxes[some], side, workers=workers)


def rounded_mosaics(
    crops: Levels, losses: NDArray[np.float64], ipc: int, parameters: RdedParameters
) -> Pixels:
    """Lay the best crops, in the order of their losses, into ``ipc`` images."""
    ranked = np.argsort(losses, kind="stable")[: ipc * parameters.factor**2]
    tiles = ((crops[ranked] + 128) >> 8).astype(np.uint8)
    return mosaics(tiles, parameters.factor, parameters.size)


def mosaics(tiles: Pixels, factor: int, size: int) -> Pixels:
    """Lay tiles (n * factor^2, s, s, 3) into n images of ``size`` pixels a side.

    The first n fill the top left place, the next n that to its right, and so on. Where ``factor``
    does not divide ``size``, the first rows and columns of tiles are a pixel longer: they begin
    with that pixel twice, as of torch's ``interpolate(mode="nearest")``.
    """
    side, longer = divmod(size, factor)
    sides = np.full(factor, side) + (np.arange(factor) < longer)
    tile = np.repeat(np.arange(factor), sides)
    inner = np.arange(size) - (np.cumsum(sides) - side)[tile]
    inner = inner.clip(0)  # -1 is the added pixel
    placed = tiles.reshape(factor, factor, -1, side, side, 3)
    # Pixel (row, column), then image: indexed axes come first.
    pixels = placed[tile[:, None], tile, :, inner[:, None], inner]
    return np.ascontiguousarray(pixels.transpose(2, 0, 1, 3))


RDED = Method(
    summary="of some images of a class, the random crops that a teacher is surest of, four to an "
    "image (--factor 2); published as RDED",
    prepare=_prepare,
    parameters=RdedParameters,
    teachers=range(1, 2),
)
