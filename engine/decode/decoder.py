"""What a decoder is: stored bytes in, one uint8 batch out, the same answer to damaged images."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, cast

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.decode.geometry import Box, Geometry, Placement
from shards.errors import DataError, MachineError, UsageError

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


def available_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0))


def choose_decoder(name: str, device: str, *, exact: bool = False) -> DecoderName:
    """Resolve ``auto``: DALI's hardware decoders on a GPU, libjpeg-turbo threads on a CPU.

    Args:
        name: One of ``DecoderName``.
        device: Where batches are wanted.
        exact: Pixels equal to the reference, whatever they cost: ``auto`` becomes ``pillow``.

    Raises:
        UsageError: There is no decoder of that name, or it is not exact.
    """
    if name not in set(DecoderName):
        raise UsageError(f"decoder must be one of {', '.join(DecoderName)}, got {name}")
    if exact and name not in {DecoderName.AUTO, DecoderName.PILLOW}:
        raise UsageError(
            f"decoder {name} is not exact; leave out --decoder-exact, or choose pillow"
        )
    if exact:
        return DecoderName.PILLOW
    if name != DecoderName.AUTO:
        return DecoderName(name)
    return DecoderName.DALI if torch.device(device).type == "cuda" else DecoderName.TURBO


def reason_for(chosen: DecoderName, device: str) -> str:
    """What was picked and why, for people."""
    reasons = {
        DecoderName.DALI: f"decodes on {device}, in hardware where the GPU has JPEG engines",
        DecoderName.TURBO: "the fastest on a CPU, at most 1 level from Pillow",
        DecoderName.FAST: "coarser arithmetic, see docs/pixels.md",
        DecoderName.PILLOW: "the reference, several times slower",
    }
    return f"decoder {chosen}: {reasons[chosen]}"


def told_choice(name: str, device: str, *, exact: bool) -> tuple[str, ...]:
    """What ``auto`` comes to, as a line for people; none where it was named."""
    chosen = choose_decoder(name, device, exact=exact)
    return (reason_for(chosen, device),) if name == DecoderName.AUTO else ()


def make_decoder(
    name: str,
    geometry: Geometry,
    *,
    device: str,
    workers: int,
    exact: bool = False,
    normalisation: Normalisation | None = None,
) -> Decoder:
    """Build the decoder ``choose_decoder(name, device, exact=exact)``.

    Args:
        name: One of ``DecoderName``.
        geometry: Size of the output.
        device: Where the decoder's output lies, for those that decode on a device.
        workers: Threads; 0 means one per core.
        exact: See ``choose_decoder``.
        normalisation: Hand over float32 instead of uint8.

    Raises:
        UsageError: There is no decoder of that name, or it is not exact.
        MachineError: DALI is not installed, or ``device`` is a GPU that is not there.
    """
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise MachineError(f"device {device} is not available here; use --device cpu")
    workers = workers or available_cores()
    chosen = choose_decoder(name, device, exact=exact)
    if chosen is DecoderName.DALI:
        from engine.decode.dali import DaliDecoder

        return DaliDecoder(geometry, device=device, workers=workers, normalisation=normalisation)
    from engine.decode.threads import ThreadedDecoder

    return ThreadedDecoder(geometry, chosen, workers=workers, normalisation=normalisation)
