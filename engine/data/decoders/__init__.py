"""Contract and choice of decoders: encoded images in, one tensor out, near Pillow's pixels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np

from coreset.engine.data.geometry import Box, Geometry, Ints, Pixels
from coreset.engine.runtime.limits import available_cores
from coreset.shards.errors import DataError, MachineError, UsageError

if TYPE_CHECKING:  # a report decodes with Pillow, without torch
    from torch import Tensor

    from coreset.engine.data.reader import LazyBytes


class DecoderName(StrEnum):
    """Decoder that reads the pixels."""

    AUTO = "auto"
    DALI = "dali"
    TURBO = "turbo"
    FAST = "fast"
    """libjpeg-turbo with its faster, coarser arithmetic; `docs/pixels.md` says how coarse."""
    PILLOW = "pillow"


@dataclass(frozen=True, slots=True)
class EncodedBatch:
    """Stored images of one batch, b = images."""

    data: "Sequence[bytes | Pixels] | LazyBytes"
    """May be read when an item is asked for: ask once."""
    widths: Ints
    """Pixels, shape (b,), as the index promises; an image of another size is refused."""
    heights: Ints
    crops: Ints | None = None
    """Region of each stored image to squash to the square, shape (b, 4): left, top, right, bottom;
    None: what the decoder's geometry says."""

    def __len__(self) -> int:
        return len(self.data)

    def part(self, positions: list[int], data: list[bytes]) -> "EncodedBatch":
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
    """Decodes batches of one geometry."""

    def read_ahead(self, batch: EncodedBatch) -> EncodedBatch:
        """Read what is best read before another batch is decoded; for a thread beside."""
        ...

    def decode(self, batch: EncodedBatch) -> "Tensor":
        """Decode a batch of any length, near the pixels of ``decode_with_pillow``.

        Returns:
            On the decoder's device, of shape (b, 3, s, s): uint8, stored channels last; or with a
            ``Normalisation`` float32, contiguous.

        Raises:
            UndecodableImagesError: After all images were tried, for those that failed alone.
        """
        ...

    def close(self) -> None:
        """End threads and release memory."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """The most levels that each of a decoder's images may differ from ``decode_with_pillow``."""

    largest: int
    mean: float
    edge: int = 0
    """Width in pixels of the border where ``largest_at_edge`` holds instead."""
    largest_at_edge: int = 0

    def difference(self, images: Pixels, expected: Pixels) -> dict[str, float]:
        """Compare decoded images with the reference, both of shape (b, s, s, 3), s > 2 edge.

        Returns ``largest``, ``mean`` (of the image where it is largest) and ``largest_at_edge``.
        """
        levels = np.abs(images.astype(np.int16) - expected)
        size, edge = images.shape[1], self.edge
        inside = np.pad(np.ones((size - 2 * edge,) * 2, np.bool_), edge)
        return {
            "largest": int(levels[:, inside].max(initial=0)),
            "largest_at_edge": int(levels[:, ~inside].max(initial=0)),
            "mean": float(levels[:, inside].mean(axis=(1, 2)).max(initial=0)),
        }

    def exceeded_by(self, difference: Mapping[str, float]) -> tuple[str, ...]:
        """Say in words what of a difference is more than allowed; nothing if all is well."""
        names = {
            "largest": "largest difference",
            "largest_at_edge": f"largest difference in the outer {self.edge} pixels",
            "mean": "mean difference of an image",
        }
        rows = ((text, difference[name], getattr(self, name)) for name, text in names.items())
        return tuple(f"{text} is {v:.3g}, allowed {most:.3g}" for text, v, most in rows if v > most)


# On a CPU. DALI repeats the edge of an image where Pillow shortens the filter; bicubic pixels also
# differ where Pillow clips between its passes (up to 17 levels, 6 in 10,000 of them). The bounds of
# `fast` only tell a coarse image from a wrong one: nothing in its arithmetic implies them.
TOLERANCES: Mapping[DecoderName, Tolerance] = {
    DecoderName.PILLOW: Tolerance(largest=0, mean=0.0),
    DecoderName.TURBO: Tolerance(largest=1, mean=0.25),
    DecoderName.DALI: Tolerance(largest=1, mean=0.25, edge=2, largest_at_edge=32),
    DecoderName.FAST: Tolerance(largest=160, mean=16.0),
}


def choose_decoder(
    name: str, device: str, *, exact: bool = False, bicubic: bool = False
) -> DecoderName:
    """Resolve ``auto``: DALI on a GPU, libjpeg-turbo threads on a CPU; ``exact``: Pillow.

    A ``bicubic`` geometry takes Pillow on a CPU.
    """
    if name not in set(DecoderName):
        raise UsageError(f"decoder must be one of {', '.join(DecoderName)}, got {name}")
    if exact:
        if name not in {DecoderName.AUTO, DecoderName.PILLOW}:
            raise UsageError(
                f"decoder {name} is not exact; leave out --decoder-exact, or choose pillow"
            )
        return DecoderName.PILLOW
    # The compiled kernels of both are bilinear.
    if bicubic and name in {DecoderName.TURBO, DecoderName.FAST}:
        raise UsageError(
            f"decoder {name} resizes bilinearly, the images of this backbone are resized by "
            "bicubic interpolation; leave out --decoder, or choose pillow or dali"
        )
    if name != DecoderName.AUTO:
        return DecoderName(name)
    if device.startswith("cuda"):
        return DecoderName.DALI
    return DecoderName.PILLOW if bicubic else DecoderName.TURBO


def decoder_reason(chosen: DecoderName, device: str) -> str:
    """Explain to people why a decoder was chosen."""
    reasons = {
        DecoderName.DALI: f"decodes on {device}, in hardware where the GPU has JPEG engines",
        DecoderName.TURBO: "the fastest on a CPU, at most 1 level from Pillow",
        DecoderName.FAST: "coarser arithmetic, see docs/pixels.md",
        DecoderName.PILLOW: "the reference, several times slower",
    }
    return f"decoder {chosen}: {reasons[chosen]}"


def make_decoder(
    name: str,
    geometry: Geometry,
    *,
    device: str,
    workers: int,
    exact: bool = False,
    normalisation: Normalisation | None = None,
) -> Decoder:
    """Make the decoder that ``choose_decoder`` chooses; no ``workers``: one per core."""
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise MachineError(f"device {device} is not available here; use --device cpu")
    workers = workers or available_cores()
    chosen = choose_decoder(name, device, exact=exact, bicubic=geometry.bicubic)
    if chosen is DecoderName.DALI:
        from coreset.engine.data.decoders.dali import DaliDecoder

        return DaliDecoder(geometry, device=device, workers=workers, normalisation=normalisation)
    from coreset.engine.data.decoders.threads import ThreadedDecoder

    return ThreadedDecoder(
        geometry, chosen, workers=workers, device=device, normalisation=normalisation
    )
