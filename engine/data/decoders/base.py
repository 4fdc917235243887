"""What a decoder is: stored bytes in, one uint8 batch out, the same answer to damaged images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, cast

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from torch import Tensor

from coreset.engine.data.geometry import Box, Geometry, Placement
from coreset.shards.errors import DataError

FAST_COLOURS = frozenset({"Gray", "YCbCr", "RGB"})
FAST_SAMPLINGS = frozenset({"Gray", "444", "422", "440", "420", "411"})


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
        """Some of the images, whose bytes are ``data``."""
        crops = None if self.crops is None else self.crops[positions]
        return EncodedBatch(data, self.widths[positions], self.heights[positions], crops)

    def stored_size(self, position: int) -> tuple[int, int]:
        """Width and height of one image."""
        return int(self.widths[position]), int(self.heights[position])

    def placement(self, geometry: Geometry, position: int) -> Placement:
        """Where the output of one image comes from."""
        crop = None if self.crops is None else cast("Box", tuple(self.crops[position].tolist()))
        return geometry.place(*self.stored_size(position), crop)


def is_plain_jpeg(data: bytes, size: tuple[int, int]) -> bool:
    """Whether a fast decoder takes an image: a grey or colour JPEG of ``size`` (width, height).

    Reads the header (1 us), so that an image whose header was damaged into a decompression bomb is
    never decoded. PNG, WebP, CMYK and odd samplings of the colours go to Pillow.
    """
    try:
        height, width, colours, sampling = simplejpeg.decode_jpeg_header(data)
    except (ValueError, KeyError):  # KeyError: 4:4:1, which libjpeg-turbo knows and simplejpeg not
        return False
    return colours in FAST_COLOURS and sampling in FAST_SAMPLINGS and (width, height) == size


@dataclass(frozen=True, slots=True)
class Normalisation:
    """Batches of float32, ``(pixel / 255 - mean) / std`` per channel."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class UndecodableImagesError(DataError):
    """Some images of a batch cannot be decoded; the others are in ``images``.

    ``reasons`` maps the position in the batch to what is wrong; these rows of ``images`` are
    undefined.
    """

    def __init__(self, reasons: Mapping[int, str], images: Tensor) -> None:
        super().__init__(f"{len(reasons)} images cannot be decoded: {dict(reasons)}")
        self.reasons = reasons
        self.images = images


class Decoder(Protocol):
    """Decodes batches of one geometry; the only contract between files and models."""

    def decode(self, batch: EncodedBatch) -> Tensor:
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
