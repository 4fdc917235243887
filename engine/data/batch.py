"""Batch of decoded images with their labels and sample ids."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """Decoded images of one batch, b = images, s = size in pixels.

    ``images`` are uint8 RGB of shape (b, 3, s, s), stored channels last; or contiguous float32
    where a normalisation was asked for. ``labels`` and ``ids`` are int64 of shape (b,). A batch
    that was padded, on request only, has label and id -1 in the added rows. A batch unpacks:
    ``images, labels, ids = batch``.
    """

    images: Tensor
    labels: Tensor
    ids: Tensor

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.images, self.labels, self.ids))
