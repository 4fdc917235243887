"""Identification of an image file before it is stored: format, size and flags, or a refusal.

The format follows from the content, never from the name. Dimensions come from the header, before a
pixel is decoded: neither DALI nor libjpeg-turbo guards against decompression bombs. Then the image
is decoded in full: a file that passes here cannot break a batch later.
"""

import re
import struct
import warnings
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BytesIO

import numpy as np
import simplejpeg
from PIL import Image

from coreset.shards.images.flags import (
    MAX_FILE_BYTES,
    MAX_SEGMENTS,
    Flag,
    Reason,
    Refusal,
    exif_flag,
    read_header,
    refusing,
    require_few,
    require_size,
)

FORMAT_OF_EXTENSION = {"jpg": "jpg", "jpeg": "jpg", "png": "png", "webp": "webp"}

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MOST_IDAT = MAX_FILE_BYTES >> 12
"""Chunks with pixels of a PNG, which Pillow reads in Python; libpng writes 8 KiB into each."""
_PNG_COLOURS = {0: Flag.GREY, 3: Flag.PALETTE, 4: Flag.GREY | Flag.ALPHA, 6: Flag.ALPHA}
_REDUCTION = 8
# First bytes of other formats, which the refusal names.
_OTHER_FORMATS = {
    b"GIF8": "gif", b"BM": "bmp", b"II*\0": "tiff", b"MM\0*": "tiff", b"\xff\x0a": "jxl",
    b"\0\0\0\x0cJXL ": "jxl", b"\0\0\0\x0cjP  ": "jp2",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Probe:
    """Format, size and flags of a valid image."""

    format: str
    """jpg, png or webp: also the extension of its member."""
    width: int
    height: int
    flags: Flag


@refusing
def probe(data: bytes) -> Probe:
    """Identify and decode one image file; refuse what not every decoder here reads in full."""
    image = _described(data)
    if _is_plain_jpeg(image):
        _require_same(image, decode_jpeg(data), reduced=_REDUCTION)
    else:
        with opened(data, (image.width, image.height)) as opened_image:
            opened_image.load()
    return image


@refusing
def glance(data: bytes) -> Probe:
    """Identify one image file by its header, without decoding a pixel (of PNG: all checksums)."""
    image = _described(data)
    if _is_plain_jpeg(image):
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
        _require_same(image, (int(width), int(height)))
    return image


@refusing
def decode_jpeg(data: bytes) -> tuple[int, int]:
    """Decode a JPEG at 1/8 of its size, and return the width and height of the result.

    It reads every bit in two thirds of the time. Never for a lossless JPEG, which cannot be scaled:
    simplejpeg would write beyond its memory.
    """
    pixels = simplejpeg.decode_jpeg(
        data, "RGB", min_height=1, min_width=1, min_factor=_REDUCTION, strict=True
    )
    return pixels.shape[1], pixels.shape[0]


def extension_of(name: str) -> str:
    """Return the extension of a path in lower case, without the dot; empty if there is none."""
    _, dot, extension = name.rpartition("/")[2].rpartition(".")
    return extension.lower() if dot else ""


def is_image_name(name: str) -> bool:
    """Test for the extension of an image format."""
    return extension_of(name) in FORMAT_OF_EXTENSION


def without_extension(name: str) -> str:
    """Drop the extension of an image format, not any other."""
    return name.rpartition(".")[0] if is_image_name(name) else name


def misnamed(image: Probe, name: str) -> Probe:
    """Add ``Flag.MISNAMED`` if the extension of ``name`` is that of another format."""
    is_other = FORMAT_OF_EXTENSION.get(extension_of(name), image.format) != image.format
    return replace(image, flags=image.flags | Flag.MISNAMED) if is_other else image


def _described(data: bytes) -> Probe:
    if not data:
        raise Refusal(Reason.EMPTY, "0 bytes")
    if data.startswith(b"\xff\xd8\xff"):
        return Probe("jpg", *read_header(data))
    if data.startswith(_PNG_SIGNATURE):
        return _png_header(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _webp_header(data)
    for magic, kind in _OTHER_FORMATS.items():
        if data.startswith(magic):
            raise Refusal(Reason.UNSUPPORTED_FORMAT, f"image/{kind}")
    if data[4:8] == b"ftyp" and data[8:12] in {b"avif", b"avis", b"heic", b"heix", b"mif1"}:
        raise Refusal(Reason.UNSUPPORTED_FORMAT, "image/heif")
    if data[:256].lstrip().lower().startswith((b"<!doctype html", b"<html")):
        raise Refusal(Reason.NOT_AN_IMAGE, "text/html")
    raise Refusal(Reason.NOT_AN_IMAGE, f"begins with {data[:8].hex(' ')}")


def _is_plain_jpeg(image: Probe) -> bool:
    return image.format == "jpg" and Flag.ODD_SAMPLING not in image.flags


def _require_same(image: Probe, size: tuple[int, int], *, reduced: int = 1) -> None:
    """Refuse an image whose size the decoder reads differently: our limits would guard nothing."""
    if size != (-(-image.width // reduced), -(-image.height // reduced)):
        detail = f"{image.width} x {image.height} pixels, to the decoder {size[0]} x {size[1]}"
        raise Refusal(Reason.UNDECODABLE, detail)


def _png_header(data: bytes) -> Probe:
    """Check every chunk (PNG, 5.3): Pillow passes over a missing end and some checksums."""
    chunks = _png_chunks(data)
    (kind, header), kinds = chunks[0], [kind for kind, _ in chunks]
    if kind != b"IHDR" or len(header) != 13 or kinds.count(b"IHDR") > 1:
        raise Refusal(Reason.UNDECODABLE, "the first chunk is not the only IHDR")
    require_few(kinds.count(b"iCCP"), 1, "colour profiles")  # a megabyte is unpacked for each
    width, height, depth, colour = struct.unpack_from(">IIBB", header)
    require_size(width, height)
    if b"acTL" in kinds:
        raise Refusal(Reason.UNSUPPORTED_FORMAT, "animated image/png")
    flags = Flag.DEEP if depth > 8 else Flag(0)
    flags |= _PNG_COLOURS.get(colour, Flag(0))
    for kind, content in chunks:
        flags |= Flag.ALPHA if kind == b"tRNS" else Flag(0)
        flags |= exif_flag(content) if kind == b"eXIf" else Flag(0)
    return Probe("png", width, height, flags)


def _png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    chunks: list[tuple[bytes, bytes]] = []
    at, n_idat = len(_PNG_SIGNATURE), 0
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        kind, end = data[at + 4 : at + 8], at + 8 + length
        if end + 4 > len(data):
            break
        if zlib.crc32(memoryview(data)[at + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            raise Refusal(Reason.UNDECODABLE, f"chunk {kind!r} at byte {at} fails its checksum")
        if kind == b"IDAT":
            n_idat += 1
            require_few(n_idat, _MOST_IDAT, "chunks of pixels")
        else:
            chunks.append((kind, data[at + 8 : end]))
            require_few(len(chunks), MAX_SEGMENTS, "chunks")
        if kind == b"IEND":
            return chunks
        at = end + 4
    raise Refusal(Reason.TRUNCATED, f"ends at byte {len(data)}, before the end chunk")


def _webp_header(data: bytes) -> Probe:
    riff_bytes = int.from_bytes(data[4:8], "little") + 8
    if riff_bytes > len(data) or len(data) < 30:
        raise Refusal(Reason.TRUNCATED, f"{len(data):,} bytes of {riff_bytes:,}")
    kind, flags = data[12:16], Flag(0)
    if kind == b"VP8X":
        if data[20] & 0x02:
            raise Refusal(Reason.UNSUPPORTED_FORMAT, "animated image/webp")
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
        flags = Flag.ALPHA if data[20] & 0x10 else flags
    elif kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        flags = Flag.ALPHA if bits >> 28 & 1 else flags
    elif kind == b"VP8 ":
        width, height = (int.from_bytes(data[at : at + 2], "little") & 0x3FFF for at in (26, 28))
    else:
        raise Refusal(Reason.UNDECODABLE, f"unknown first chunk {kind!r}")
    require_size(width, height)
    exif = _webp_exif(data, riff_bytes)
    if kind == b"VP8X" and data[20] & 0x08:
        flags |= exif_flag(exif)
    return Probe("webp", width, height, flags)


def _webp_exif(data: bytes, end: int) -> bytes:
    """Read all chunks up to ``end``; the content of the first with an Exif block, or nothing."""
    exif, at, n = b"", 12, 0
    while at + 8 <= end:
        n += 1
        require_few(n, MAX_SEGMENTS, "chunks")
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        if data[at : at + 4] == b"EXIF":
            exif = exif or data[at + 8 : at + 8 + length].removeprefix(b"Exif\0\0")
        at += 8 + length + length % 2
    return exif


@contextmanager
def opened(data: bytes, size: tuple[int, int] | None = None) -> Generator[Image.Image]:
    """Open a JPEG, PNG or WebP file with Pillow, without warnings and without decoding a pixel.

    ``size`` is the width and height that it must have, so that nothing larger is decoded.

    Raises:
        ValueError: The file has another size, or Pillow cannot read it; also from within the block.
    """
    # For good, not in catch_warnings, which is not thread safe; setting it again changes nothing.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        with Image.open(BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as image:
            _require_pixels(image, size)
            # Read at once: of a file that comes in pieces, what lies between two markers is
            # searched from its beginning with every piece.
            image.decodermaxblock = len(data)  # pyright: ignore[reportAttributeAccessIssue] - not in the stubs
            yield image
    except MemoryError:
        raise
    except Exception as error:
        # The address of the buffer differs from run to run.
        text = re.sub(r"<_io\.BytesIO object at 0x[0-9a-f]+>", "", str(error)).strip()
        if not text or not isinstance(error, OSError | SyntaxError | ValueError):
            text = f"{type(error).__name__} {text}".strip()
        raise ValueError(text) from error


def as_rgb(image: Image.Image) -> Image.Image:
    """Convert a Pillow image to 8-bit RGB.

    Grey is repeated, palettes are resolved, alpha is dropped (not blended), CMYK is converted as
    Pillow does. Unlike ``convert("RGB")``, which saturates, 16-bit grey is scaled to 8 bits.
    """
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    return image.convert("RGB")


def _require_pixels(image: Image.Image, size: tuple[int, int] | None) -> None:
    if size is not None and image.size != size:
        raise ValueError(f"it has {image.size} pixels, the index says {size}")
