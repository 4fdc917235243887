"""Images made smaller once, when they are packed: short side resized, then encoded as JPEG.

Reading a data set of original images is bound by decoding them; at a short side of 256 they decode
several times as fast, and evaluation (resize to 256, crop) sees the same geometry. The price is one
more lossy generation, so what is small enough already keeps its bytes.

Pixels are those of torchvision's ``Resize(short_side)`` on a Pillow image, within 1 level
(`kernels.resample`), before the encoding.
"""

from dataclasses import dataclass

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from shards.dataset import Flag
from shards.errors import UsageError
from shards.pillow import as_rgb, opened
from shards.probe import Probe
from shards.refusal import Reason, Refusal, refusing
from shards.scratch import pixel_memory

MAX_JPEG_SIDE = 65_500
"""``JPEG_MAX_DIMENSION`` of libjpeg-turbo (``jmorecfg.h``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reencoded:
    """An image as it is stored: what `shards.probe.probe` would say of ``data``, without a scan."""

    data: bytes
    format: str
    """Always jpg."""
    width: int
    height: int
    flags: Flag
    """What is true of ``data``, not of the source: a re-encoded image has no EXIF block, no alpha,
    no palette and 8 bits; grey stays grey."""


@refusing
def reencode(data: bytes, image: Probe, *, short_side: int, quality: int) -> Reencoded:
    """Bring an image to a short side of at most ``short_side`` pixels, as a JPEG.

    A plain JPEG (grey or colour) that is small enough is returned as it is, byte by byte. PNG,
    WebP, CMYK and odd samplings are encoded at any size. EXIF orientation is ignored, as by
    torchvision's ``ImageFolder``, and lost: the stored image is turned like its pixels. The bytes
    depend on the arguments and the version of libjpeg-turbo alone. Thread safe; releases the GIL.

    Args:
        data: A JPEG, PNG or WebP file.
        image: What `shards.probe.probe` found in ``data``.
        short_side: Pixels, at least 1; smaller images are not enlarged.
        quality: Of libjpeg, 1 .. 100; chroma is subsampled 4:2:0.

    Raises:
        UsageError: ``short_side`` or ``quality`` outside its range.
        Refusal: ``data`` cannot be decoded, or is too long for a JPEG.
    """
    _require_settings(short_side, quality)
    if min(image.width, image.height) <= short_side and _is_plain_jpeg(image):
        return Reencoded(
            data=data, format="jpg", width=image.width, height=image.height, flags=image.flags
        )
    width, height = target_size(image.width, image.height, short_side)
    if max(width, height) > MAX_JPEG_SIDE:
        limit = f"limit {MAX_JPEG_SIDE:,} a side as JPEG"
        raise Refusal(Reason.TOO_LARGE, f"{width} x {height} pixels, {limit}")
    encoded = _encoded(resized_pixels(data, image, short_side=short_side), quality)
    flags = image.flags & Flag.GREY
    return Reencoded(data=encoded, format="jpg", width=width, height=height, flags=flags)


@refusing
def resized_pixels(data: bytes, image: Probe, *, short_side: int) -> NDArray[np.uint8]:
    """Decode ``data`` and shrink it as `reencode` does: uint8, (h, w, 3), or (h, w, 1) if grey.

    The pixels hold until this thread calls it again.

    Raises:
        Refusal: ``data`` cannot be decoded.
    """
    # Numba takes a second to import, which only those pay who resize.
    from kernels.resample import resize

    pixels_hwc = _decoded(data, image)
    height, width, _ = pixels_hwc.shape
    target = target_size(width, height, short_side)
    return pixels_hwc if target == (width, height) else resize(pixels_hwc, *target)


def target_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Width and height by the rule of torchvision's ``Resize(short_side)``, never enlarged.

    The long side is rounded down: ``int(short_side * long / short)``.
    """
    short = min(width, height)
    if short <= short_side:
        return width, height
    if width <= height:
        return short_side, int(short_side * height / width)
    return int(short_side * width / height), short_side


def _require_settings(short_side: int, quality: int) -> None:
    if short_side < 1:
        raise UsageError(f"short_side must be at least 1 pixel, got {short_side}")
    if not 1 <= quality <= 100:
        raise UsageError(f"quality must be in [1, 100], got {quality}")


def _is_plain_jpeg(image: Probe) -> bool:
    return image.format == "jpg" and not image.flags & (Flag.CMYK | Flag.ODD_SAMPLING)


def _decoded(data: bytes, image: Probe) -> NDArray[np.uint8]:
    grey = bool(image.flags & Flag.GREY)
    if _is_plain_jpeg(image):
        memory = pixel_memory(image.width * image.height * (1 if grey else 3))
        colours = "GRAY" if grey else "RGB"
        return simplejpeg.decode_jpeg(data, colours, buffer=memory, strict=True)
    with opened(data, (image.width, image.height)) as opened_image:
        pixels_hwc = np.array(as_rgb(opened_image))
    return pixels_hwc[:, :, :1].copy() if grey else pixels_hwc


def _encoded(pixels_hwc: NDArray[np.uint8], quality: int) -> bytes:
    if pixels_hwc.shape[2] == 1:
        return simplejpeg.encode_jpeg(pixels_hwc, quality, "GRAY", "Gray")
    return simplejpeg.encode_jpeg(pixels_hwc, quality, "RGB", "420")
