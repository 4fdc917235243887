"""What every decoder hands over."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """Decoded images of one batch, b = images, s = size in pixels.

    ``images`` are uint8 RGB of shape (b, 3, s, s), stored channels last, for normalisation and
    augmentation on the device; or contiguous float32 where a normalisation was asked for.
    ``labels`` and ``ids`` are int64 of shape (b,). A padded batch has label and id -1 in the added
    rows; nobody pads unless asked.
    """

    images: Tensor
    labels: Tensor
    ids: Tensor
