"""What a decoder is: stored bytes in, one uint8 batch out, the same answer to damaged images."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.decode.geometry import Geometry
from shards.errors import DataError, MachineError, UsageError

FAST_COLOURS = frozenset({"Gray", "YCbCr", "RGB"})


class DecoderName(StrEnum):
    """Which decoder reads the pixels."""

    AUTO = "auto"
    DALI = "dali"
    TURBO = "turbo"


@dataclass(frozen=True, slots=True)
class EncodedBatch:
    """Stored images of one batch, b = images."""

    data: Sequence[bytes]
    widths: NDArray[np.int64]
    """Pixels, shape (b,), as the index promises; an image of another size is refused."""
    heights: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.data)

    def stored_size(self, position: int) -> tuple[int, int]:
        """Width and height of one image."""
        return int(self.widths[position]), int(self.heights[position])

    def is_plain_jpeg(self, position: int) -> bool:
        """Whether a fast decoder takes the image: a grey or colour JPEG of the promised size.

        Reads the header (1 us), so that an image whose header was damaged into a decompression bomb
        is never decoded. PNG, WebP and CMYK go to Pillow.
        """
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(self.data[position])
        except ValueError:
            return False
        return colours in FAST_COLOURS and (width, height) == self.stored_size(position)


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
            uint8 of shape (b, 3, s, s), stored channels last, on the decoder's device; as close to
            ``decode_with_pillow`` as the decoder's module states.

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


def choose_decoder(name: str, device: str) -> DecoderName:
    """Resolve ``auto``: DALI's hardware decoders on a GPU, libjpeg-turbo threads on a CPU.

    Raises:
        UsageError: There is no decoder of that name.
    """
    if name not in set(DecoderName):
        raise UsageError(f"decoder must be one of {', '.join(DecoderName)}, got {name}")
    if name != DecoderName.AUTO:
        return DecoderName(name)
    return DecoderName.DALI if torch.device(device).type == "cuda" else DecoderName.TURBO


def make_decoder(name: str, geometry: Geometry, *, device: str, workers: int) -> Decoder:
    """Build the decoder ``choose_decoder(name, device)``; ``workers`` 0 means one thread per core.

    Raises:
        UsageError: There is no decoder of that name.
        MachineError: DALI is not installed, or ``device`` is a GPU that is not there.
    """
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise MachineError(f"device {device} is not available here; use --device cpu")
    workers = workers or available_cores()
    if choose_decoder(name, device) is DecoderName.DALI:
        from engine.decode.dali import DaliDecoder

        return DaliDecoder(geometry, device=device, workers=workers)
    from engine.decode.turbo import TurboDecoder

    return TurboDecoder(geometry, workers=workers)
