"""Contract of the decoders: encoded images in, one tensor out, within a tolerance of Pillow."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from coreset.engine.data.geometry import Box
from coreset.shards.errors import DataError

if TYPE_CHECKING:  # a report decodes with Pillow, without torch
    from torch import Tensor


class DecoderName(StrEnum):
    """Which decoder reads the pixels."""

    AUTO = "auto"
    DALI = "dali"
    TURBO = "turbo"
    FAST = "fast"
    """libjpeg-turbo with its faster, coarser arithmetic; `docs/pixels.md` says how coarse."""
    PILLOW = "pillow"
    """The reference itself."""


@dataclass(frozen=True, slots=True)
class EncodedBatch:
    """Stored images of one batch, b = images."""

    data: Sequence[bytes]
    """May be read from storage when an item is asked for: ask once."""
    widths: NDArray[np.int64]
    """Pixels, shape (b,), as the index promises; an image of another size is refused."""
    heights: NDArray[np.int64]
    crops: NDArray[np.int64] | None = None
    """Region of each stored image to squash to the square, shape (b, 4): left, top, right, bottom;
    None: what the decoder's geometry says."""

    def __len__(self) -> int:
        return len(self.data)

    def part(self, positions: list[int], data: Sequence[bytes]) -> "EncodedBatch":
        """Select some of the images, whose bytes are ``data``."""
        crops = None if self.crops is None else self.crops[positions]
        return EncodedBatch(data, self.widths[positions], self.heights[positions], crops)

    def stored_size(self, position: int) -> tuple[int, int]:
        """Return width and height of one image."""
        return int(self.widths[position]), int(self.heights[position])

    def crop(self, position: int) -> Box | None:
        """Return the region of one image to squash, if the batch has crops."""
        return None if self.crops is None else cast("Box", tuple(self.crops[position].tolist()))


@dataclass(frozen=True, slots=True)
class Normalisation:
    """Batches of float32, ``(pixel / 255 - mean) / std`` per channel."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class UndecodableImagesError(DataError):
    """Some images of a batch cannot be decoded: ``reasons`` by position; the others are kept."""

    def __init__(self, reasons: Mapping[int, str], images: "Tensor") -> None:
        super().__init__(f"{len(reasons)} images cannot be decoded: {dict(reasons)}")
        self.reasons = reasons
        self.images = images


class Decoder(Protocol):
    """Decodes batches of one geometry; the only contract between files and models."""

    def decode(self, batch: EncodedBatch) -> "Tensor":
        """Decode a batch of any length.

        Returns:
            On the decoder's device, as close to ``decode_with_pillow`` as `docs/pixels.md` states:
            uint8 of shape (b, 3, s, s), stored channels last; or with a ``Normalisation`` float32
            of the same shape, contiguous.

        Raises:
            UndecodableImagesError: After all images were tried, for those that failed alone.
        """
        ...

    def close(self) -> None:
        """End threads and release memory."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Distance of decoded images from the reference, absolute, in levels (0 to 255)."""

    largest: int
    """Away from the edge."""
    largest_at_edge: int
    mean: float
    """Away from the edge, of the image where it is largest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """The most that each of a decoder's images may differ from ``decode_with_pillow``."""

    largest: int
    mean: float
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

    def exceeded_by(self, difference: Difference) -> tuple[str, ...]:
        """Say in words what of a difference is more than allowed; nothing if all is well."""
        at_edge = f"largest difference in the outer {self.edge} pixels"
        rows = (
            ("largest difference", difference.largest, self.largest),
            (at_edge, difference.largest_at_edge, self.largest_at_edge),
            ("mean difference of an image", difference.mean, self.mean),
        )
        return tuple(
            f"{name} is {value:.3g}, allowed {allowed:.3g}"
            for name, value, allowed in rows
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
