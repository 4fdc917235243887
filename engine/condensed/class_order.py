"""Order of a set's classes, checked by a classifier that knows them."""

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np
import torch

from coreset.engine.condensed.imported import ORDERS
from coreset.engine.data.geometry import Geometry, Ints
from coreset.engine.data.order import BatchOrder, first_by_key
from coreset.engine.models.teachers import (
    CHECKED_PER_CLASS,
    LEAST_ACCURACY,
    Teacher,
    load_teachers,
)
from coreset.kernels.augment import unit_range
from coreset.shards.errors import DataError
from coreset.shards.format.classes import recognise
from coreset.shards.format.dataset import Dataset
from coreset.shards.layouts import LaidSet

if TYPE_CHECKING:
    from coreset.engine.data.stream import ImageStream

SIZE = 224
_IMAGES_AT_ONCE = 64


def checked_order(
    spec: str,
    images: Dataset,
    laid: LaidSet,
    *,
    order: str,
    open_stream: "Callable[[Dataset, Geometry, Ints], ImageStream]",
    device: torch.device,
) -> str:
    """Say how right a teacher is about the first images of each class of an imported set.

    Raises ``DataError`` if it is right only where classes are numbered in another known order.
    """
    (teacher,) = load_teachers((spec,), images.classes, device)
    some = first_by_key(images, CHECKED_PER_CLASS)
    with closing(open_stream(images, Geometry(SIZE), some)) as stream:
        batches = list(_predictions(teacher, stream))
    predicted, labels = (np.concatenate(column) for column in zip(*batches, strict=True))
    accuracy = 100 * float((predicted == labels).mean())
    told = f"teacher {teacher.name}: top-1 {accuracy:.1f} % of {labels.size:,} images"
    if accuracy >= LEAST_ACCURACY or not laid.numbered:
        return told
    for other, theirs in _labels_by_order(laid, order):
        fitting = 100 * float((predicted == theirs[labels]).mean())
        if fitting >= LEAST_ACCURACY:
            raise DataError(
                f"{told}, and of {fitting:.1f} % if the classes are numbered in the order {other}, "
                f"not {order}; use --order {other}"
            )
    return f"warning: {told}; no known order of classes fits better"


def _predictions(teacher: Teacher, stream: "ImageStream") -> Iterator[tuple[Ints, Ints]]:
    for batch in stream.epoch(BatchOrder(batch=_IMAGES_AT_ONCE)):
        pixels = unit_range(batch.images.to(teacher.orders.device))
        yield teacher.logits(pixels, size=SIZE).argmax(dim=1).cpu().numpy(), batch.labels.numpy()


def _labels_by_order(laid: LaidSet, order: str) -> Iterator[tuple[str, Ints]]:
    """Yield other known orders, and the label by them of each label, -1 if not in the set."""
    names = tuple(sorted(laid.numbered))
    label_of = {name: label for label, name in enumerate(laid.source.classes)}
    for other, arrange in ORDERS.items():
        if other == order or (other == "cmc" and recognise(names) != "imagenet-100"):
            continue
        renamed = dict(zip(laid.numbered, arrange(names), strict=True))
        yield other, np.array([label_of.get(renamed[name], -1) for name in laid.source.classes])
