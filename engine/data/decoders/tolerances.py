"""How far each decoder may be from the reference: the numbers that `docs/pixels.md` states.

The reference is ``decode_with_pillow``, which equals torchvision's transforms on Pillow images. A
difference is absolute, in levels (0 to 255), and of one channel of one pixel.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from coreset.engine.data.decoders.base import DecoderName


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What separates decoded images from the reference."""

    largest: int
    """Away from the edge."""
    largest_at_edge: int
    mean: float
    """Away from the edge, of the image where it is largest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """The most that a decoder's images may differ, each of them."""

    largest: int
    """Away from the edge."""
    mean: float
    """Over an image away from the edge."""
    edge: int = 0
    """Width in pixels of the border where ``largest_at_edge`` holds instead."""
    largest_at_edge: int = 0

    def difference(self, images: NDArray[np.uint8], expected: NDArray[np.uint8]) -> Difference:
        """Compare decoded images with the reference, both of shape (b, s, s, 3), s > 2 edge."""
        levels = np.abs(images.astype(np.int16) - expected)
        size, edge = images.shape[1], self.edge
        inside = np.zeros((size, size), np.bool_)
        inside[edge : size - edge, edge : size - edge] = True
        return Difference(
            largest=int(levels[:, inside].max(initial=0)),
            largest_at_edge=int(levels[:, ~inside].max(initial=0)),
            mean=float(levels[:, inside].mean(axis=(1, 2)).max(initial=0)),
        )

    def exceeded_by(self, found: Difference) -> tuple[str, ...]:
        """What of ``found`` is more than allowed, in words; nothing if all is well."""
        names = {
            "largest": "largest difference",
            "largest_at_edge": f"largest difference in the outer {self.edge} pixels",
            "mean": "mean difference of an image",
        }
        pairs = {name: (getattr(found, name), getattr(self, name)) for name in names}
        return tuple(
            f"{names[name]} is {value:.3g}, allowed {allowed:.3g}"
            for name, (value, allowed) in pairs.items()
            if value > allowed
        )


# On a CPU. DALI repeats the edge of an image where Pillow shortens the filter. The bounds of `fast`
# only tell a coarse image from a wrong one: nothing in its arithmetic implies them.
TOLERANCES: Mapping[DecoderName, Tolerance] = MappingProxyType(
    {
        DecoderName.PILLOW: Tolerance(largest=0, mean=0.0),
        DecoderName.TURBO: Tolerance(largest=1, mean=0.25),
        DecoderName.DALI: Tolerance(largest=1, mean=0.25, edge=2, largest_at_edge=32),
        DecoderName.FAST: Tolerance(largest=160, mean=16.0),
    }
)
