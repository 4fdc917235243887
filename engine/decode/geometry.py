"""From stored size to batch size: target size and crop, computed without decoding.

The rules are those of torchvision's ``Resize(resize)`` followed by ``CenterCrop(size)``
(torchvision/transforms/functional.py, ``_compute_resized_output_size`` and ``center_crop``).
"""

from dataclasses import dataclass
from typing import NamedTuple

from shards.errors import UsageError


class Placement(NamedTuple):
    """An image is resized to ``width`` x ``height``, then cut at (``left``, ``top``)."""

    width: int
    height: int
    left: int
    top: int


@dataclass(frozen=True, slots=True)
class Geometry:
    """Square output of ``size`` pixels; bilinear with antialiasing."""

    size: int
    resize: int | None = None
    """Length of the short side before the central ``size`` x ``size`` crop; None squashes the whole
    image to the square."""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UsageError(f"size must be at least 1 pixel, got {self.size}")
        if self.resize is not None and self.resize < self.size:
            raise UsageError(
                f"resize must be at least size ({self.size}), got {self.resize}: "
                "the crop would reach beyond the image"
            )

    def place(self, width: int, height: int) -> Placement:
        """Target size and crop offsets of an image of ``width`` x ``height`` pixels."""
        if self.resize is None:
            return Placement(self.size, self.size, 0, 0)
        longest = int(self.resize * max(width, height) / min(width, height))
        target_width, target_height = (
            (self.resize, longest) if width <= height else (longest, self.resize)
        )
        # Python's round, halves to even, as in torchvision.
        return Placement(
            target_width,
            target_height,
            round((target_width - self.size) / 2.0),
            round((target_height - self.size) / 2.0),
        )
