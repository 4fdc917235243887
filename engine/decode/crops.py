"""Random resized crops that every decoder takes alike: boxes drawn per sample, seed and epoch."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kernels.crops import crop_boxes
from kernels.seeds import derived_seed
from shards.errors import UsageError


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

    def boxes(
        self,
        ids: NDArray[np.int64],
        widths: NDArray[np.int64],
        heights: NDArray[np.int64],
        *,
        seed: int,
        epoch: int,
    ) -> NDArray[np.int64]:
        """The region of each image, int64 of shape (b, 4): left, top, right, bottom.

        A pure function of (seed, epoch, id, size): neither the batch nor the rank matters.
        """
        return crop_boxes(ids, widths, heights, derived_seed(seed, epoch), self.scale, self.ratio)
