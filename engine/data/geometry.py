"""From stored size to batch size: what is cut, resized and cut again, computed without decoding.

The rules are those of torchvision's ``Resize(resize)`` followed by ``CenterCrop(size)``
(torchvision/transforms/functional.py, ``_compute_resized_output_size`` and ``center_crop``).
"""

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from coreset.kernels.seeds import crop_boxes, derived_seed
from coreset.shards.errors import UsageError

Box: TypeAlias = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels; right and bottom excluded."""
Ints: TypeAlias = NDArray[np.int64]
Pixels: TypeAlias = NDArray[np.uint8]


class Placement(NamedTuple):
    """A region of the stored image is resized to ``width`` x ``height``, of which ``box`` stays."""

    region: Box
    width: int
    height: int
    box: Box

    def within(self, left: int, top: int) -> "Placement":
        """Return the same in a part of the image that begins at ``left``, ``top``."""
        x_0, y_0, x_1, y_1 = self.region
        return self._replace(region=(x_0 - left, y_0 - top, x_1 - left, y_1 - top))


@dataclass(frozen=True, slots=True)
class Geometry:
    """Square output of ``size`` pixels; resized with antialiasing."""

    size: int
    resize: int | None = None
    """Length of the short side before the central ``size`` x ``size`` crop; None squashes the whole
    image to the square."""
    bicubic: bool = False
    """Resize by bicubic interpolation (a = -0.5) instead of bilinear; Pillow and DALI alone do."""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UsageError(f"size must be at least 1 pixel, got {self.size}")
        if self.resize is not None and self.resize < self.size:
            raise UsageError(
                f"resize must be at least size ({self.size}), got {self.resize}: "
                "the crop would reach beyond the image"
            )

    def place(self, width: int, height: int, crop: Box | None = None) -> Placement:
        """Return where the output comes from in an image of ``width`` x ``height`` pixels.

        A ``crop`` is squashed to the square instead, as in random resized crops.
        """
        size, whole = self.size, (0, 0, width, height)
        if crop is not None or self.resize is None:
            return Placement(crop or whole, size, size, (0, 0, size, size))
        longest = int(self.resize * max(width, height) / min(width, height))
        sides = self.resize, longest
        target_width, target_height = sides if width <= height else sides[::-1]
        # Python's round, halves to even, as in torchvision.
        left, top = round((target_width - size) / 2.0), round((target_height - size) / 2.0)
        return Placement(whole, target_width, target_height, (left, top, left + size, top + size))

    def regions(
        self, widths: Ints, heights: Ints, crops: Ints | None = None
    ) -> NDArray[np.float64]:
        """Return what of each stored image fills the output: (top, left), (bottom, right).

        Shape (b, 2, 2), in pixels of the stored images; ``crops`` of shape (b, 4) as in `place`.
        """
        if crops is not None:
            return crops.reshape(-1, 2, 2)[:, :, ::-1].astype(np.float64)
        extents, targets = self._resized(widths, heights)
        first = np.rint((targets - self.size) / 2)
        # Multiplied first: a square that covers everything ends exactly where the image ends.
        return np.stack((first, first + self.size), axis=1) * extents[:, None] / targets[:, None]

    def needs_no_resize(self, widths: Ints, heights: Ints) -> tuple[NDArray[np.bool_], Ints, Ints]:
        """Return which images `place` cuts without resampling, and left and top of the square."""
        extents, targets = self._resized(widths, heights)
        # Halves to even, as in `place`.
        left, top = (np.rint((side - self.size) / 2).astype(np.int64) for side in (widths, heights))
        return (extents == targets).all(axis=1), left, top

    def _resized(self, widths: Ints, heights: Ints) -> tuple[Ints, Ints]:
        """Return height and width of each stored image, and of what `place` resizes it to."""
        extents = np.stack((heights, widths), axis=1)
        if self.resize is None:
            return extents, np.full_like(extents, self.size)
        shorts = extents.min(axis=1, keepdims=True)
        return extents, (self.resize * extents / shorts).astype(np.int64)  # truncated, as there


def stored_side(size: int) -> int:
    """Return the side of the square from which crops of ``size`` are taken: 256 for 224."""
    return round(size * 8 / 7)


@dataclass(frozen=True, slots=True, kw_only=True)
class Crops:
    """The law of torchvision's ``RandomResizedCrop``."""

    scale: tuple[float, float] = (0.08, 1.0)
    """Share of the area, uniform between the two."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width over height, its logarithm uniform between the two."""

    def __post_init__(self) -> None:
        for name, (low, high) in (("scale", self.scale), ("ratio", self.ratio)):
            if not 0 < low <= high:
                raise UsageError(f"{name} must be 0 < low <= high, got {low} and {high}")
        if self.scale[1] > 1:
            raise UsageError(f"scale must end at 1 at most, got {self.scale[1]}")

    def boxes(self, ids: Ints, widths: Ints, heights: Ints, *, seed: int, epoch: int) -> Ints:
        """Draw the box of each image, int64 of shape (b, 4): left, top, right, bottom.

        A pure function of (seed, epoch, id, size): neither the batch nor the rank matters.
        """
        return crop_boxes(ids, widths, heights, derived_seed(seed, epoch), self.scale, self.ratio)
