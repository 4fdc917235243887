"""What an image file is, found out before it is stored: format, size and flags, or a refusal.

The format is told by content, never by name. Dimensions come from the header, before a pixel is
decoded, because neither DALI nor libjpeg-turbo guards against decompression bombs. Then the image
is decoded in full: a file that passes here cannot break a batch later. JPEG is decoded by
simplejpeg (releases the GIL) with recoverable errors as errors, PNG and WebP by Pillow. Stored as
they are, and flagged: CMYK, 16 bits per channel, a format that the extension denies. Refused:
animations, and formats that the decoders of this project do not read.
"""

import re
import struct
import zlib
from dataclasses import dataclass, replace
from enum import StrEnum
from io import BytesIO

import simplejpeg
from PIL import Image

from shards.dataset import Flag

MAX_PIXELS = 89_478_485
"""256 MiB of RGB; where Pillow begins to warn of a decompression bomb."""
MAX_FILE_BYTES = 1 << 28

FORMAT_OF_EXTENSION = {"jpg": "jpg", "jpeg": "jpg", "png": "png", "webp": "webp"}

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_ORIENTATION = 0x0112
_UPRIGHT = 1
# Start-of-frame markers (ITU T.81 table B.1) without DHT, JPG and DAC, which lie between them.
_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE_MARKERS = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_MARKERS_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})
# Content of other kinds, by its first bytes, for the refusal to name.
_FOREIGN = (
    (b"GIF8", "image/gif"),
    (b"BM", "image/bmp"),
    (b"II*\0", "image/tiff"),
    (b"MM\0*", "image/tiff"),
    (b"\0\0\0\x0cJXL ", "image/jxl"),
    (b"\xff\x0a", "image/jxl"),
    (b"\0\0\0\x0cjP  ", "image/jp2"),
)


class Reason(StrEnum):
    """Why a file was not packed; stable, written to ``quarantine.parquet``."""

    EMPTY = "empty"
    NOT_A_FILE = "not-a-file"
    NOT_AN_IMAGE = "not-an-image"
    UNSUPPORTED_FORMAT = "unsupported-format"
    TRUNCATED = "truncated"
    UNDECODABLE = "undecodable"
    TOO_LARGE = "too-large"


class Refusal(Exception):  # noqa: N818 - not a fault of the program: the file is listed and packing goes on
    """A file that is not packed."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Probe:
    """A valid image."""

    format: str
    """jpg, png or webp: also the extension of its member."""
    width: int
    height: int
    flags: Flag


def probe(data: bytes) -> Probe:
    """Identify and decode one image file.

    Raises:
        Refusal: The file is not an image that every decoder of this project reads in full.
    """
    image = glance(data)
    if image.format == "jpg":
        decode_jpeg(data)
    else:
        _decode_with_pillow(data, image.format.upper())
    return image


def glance(data: bytes) -> Probe:
    """Identify one image file by its header, without decoding a pixel (of PNG: all checksums).

    Raises:
        Refusal: The header says that the file is not an image, or not one that is packed.
    """
    if not data:
        raise Refusal(Reason.EMPTY, "0 bytes")
    if data.startswith(b"\xff\xd8\xff"):
        return _jpeg_header(data)
    if data.startswith(_PNG_SIGNATURE):
        return _png_header(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _webp_header(data)
    raise _foreign(data)


def misnamed(image: Probe, name: str) -> Probe:
    """The image with ``Flag.MISNAMED`` if the extension of ``name`` is that of another format."""
    extension = name.rpartition(".")[2].lower()
    other = FORMAT_OF_EXTENSION.get(extension, image.format) != image.format
    return replace(image, flags=image.flags | Flag.MISNAMED) if other else image


def refuse_long_file(size: int) -> None:
    """Refuse a file by its length, before it is read.

    Raises:
        Refusal: It is longer than ``MAX_FILE_BYTES``.
    """
    if size > MAX_FILE_BYTES:
        raise Refusal(Reason.TOO_LARGE, f"{size:,} bytes, limit {MAX_FILE_BYTES:,}")


def _foreign(data: bytes) -> Refusal:
    for magic, kind in _FOREIGN:
        if data.startswith(magic):
            return Refusal(Reason.UNSUPPORTED_FORMAT, kind)
    if data[4:8] == b"ftyp" and data[8:12] in {b"avif", b"avis", b"heic", b"heix", b"mif1"}:
        return Refusal(Reason.UNSUPPORTED_FORMAT, "image/heif")
    text = data[:256].lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return Refusal(Reason.NOT_AN_IMAGE, "text/html")
    return Refusal(Reason.NOT_AN_IMAGE, f"begins with {data[:8].hex(' ')}")


def _require_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise Refusal(Reason.TOO_LARGE, f"{width} x {height} pixels, limit {MAX_PIXELS:,} pixels")
    if width * height == 0:
        raise Refusal(Reason.UNDECODABLE, f"{width} x {height} pixels")


def _jpeg_header(data: bytes) -> Probe:
    flags = _jpeg_flags(data)
    try:
        # The decoder's own reading of the size: another scan might differ and guard nothing.
        height, width = map(int, simplejpeg.decode_jpeg_header(data)[:2])
    except ValueError as error:
        raise _jpeg_refusal(error) from error
    _require_size(width, height)
    return Probe("jpg", width, height, flags)


def decode_jpeg(data: bytes) -> None:
    """Decode a JPEG at 1/8 of its size: reads every bit of the file in two thirds of the time.

    libjpeg-turbo finds damage while it reads markers and Huffman codes, before any scaling; the
    inverse cosine transform cannot fail. A test compares the verdicts with those at full size.

    Raises:
        Refusal: libjpeg-turbo warns of damage, recoverable or not.
    """
    try:
        simplejpeg.decode_jpeg(data, "RGB", min_height=1, min_width=1, min_factor=8, strict=True)
    except ValueError as error:
        raise _jpeg_refusal(error) from error


def _jpeg_refusal(error: ValueError) -> Refusal:
    truncated = "premature end of jpeg file" in str(error).lower()
    reason = Reason.TRUNCATED if truncated else Reason.UNDECODABLE
    return Refusal(reason, pillow_fact(error))


def _jpeg_flags(data: bytes) -> Flag:
    """Read the markers up to the frame header (ITU T.81 B.1.1)."""
    flags, at = Flag(0), 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            raise Refusal(Reason.UNDECODABLE, f"no marker at byte {at}")
        marker = data[at + 1]
        if marker == 0xFF or marker in _MARKERS_WITHOUT_LENGTH:  # fill byte, or a marker alone
            at += 1 if marker == 0xFF else 2
            continue
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        segment = data[at + 4 : at + 2 + length]
        if marker in _FRAME_MARKERS and len(segment) >= 6:
            return flags | _frame_flags(marker, segment)
        if marker == 0xE1 and segment.startswith(b"Exif\0\0"):
            flags |= _exif_flag(segment[6:])
        at += 2 + length
    raise Refusal(Reason.TRUNCATED, f"ends at byte {len(data)}, before the frame header")


def _frame_flags(marker: int, segment: bytes) -> Flag:
    precision, channels = segment[0], segment[5]
    flags = {1: Flag.GREY, 4: Flag.CMYK}.get(channels, Flag(0))
    if marker in _PROGRESSIVE_MARKERS:
        flags |= Flag.PROGRESSIVE
    return flags | Flag.DEEP if precision > 8 else flags


def _exif_flag(tiff: bytes) -> Flag:
    """``Flag.EXIF_ROTATED`` if the first directory of an Exif block (TIFF 6.0) turns the image.

    Damaged blocks are common and harmless: they count as upright (Pillow's reader would warn).
    """
    byte_order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if byte_order is None or len(tiff) < 8:
        return Flag(0)
    (directory,) = struct.unpack_from(byte_order + "I", tiff, 4)
    if directory + 2 > len(tiff):
        return Flag(0)
    (n_entries,) = struct.unpack_from(byte_order + "H", tiff, directory)
    for at in range(directory + 2, min(directory + 2 + 12 * n_entries, len(tiff) - 11), 12):
        tag, _, _, value = struct.unpack_from(byte_order + "HHIH", tiff, at)
        if tag == _ORIENTATION:
            return Flag.EXIF_ROTATED if _UPRIGHT < value <= 8 else Flag(0)
    return Flag(0)


def _png_header(data: bytes) -> Probe:
    """Check every chunk's length and checksum (PNG, third edition, 5.3).

    Pillow passes over a missing end chunk and over checksums after the pixels.
    """
    chunks = _png_chunks(data)
    kind, header = chunks[0]
    if kind != b"IHDR" or len(header) != 13:
        raise Refusal(Reason.UNDECODABLE, "the first chunk is not IHDR")
    width, height, depth, colour = struct.unpack_from(">IIBB", header)
    _require_size(width, height)
    if any(kind == b"acTL" for kind, _ in chunks):
        raise Refusal(Reason.UNSUPPORTED_FORMAT, "animated image/png")
    flags = Flag.DEEP if depth > 8 else Flag(0)
    flags |= {0: Flag.GREY, 3: Flag.PALETTE, 4: Flag.GREY | Flag.ALPHA, 6: Flag.ALPHA}.get(
        colour, Flag(0)
    )
    for kind, content in chunks:
        flags |= Flag.ALPHA if kind == b"tRNS" else Flag(0)
        flags |= _exif_flag(content) if kind == b"eXIf" else Flag(0)
    return Probe("png", width, height, flags)


def _png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """Type and content of each chunk; the pixels' content is left out."""
    chunks: list[tuple[bytes, bytes]] = []
    at = len(_PNG_SIGNATURE)
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        kind, end = data[at + 4 : at + 8], at + 8 + length
        if end + 4 > len(data):
            break
        if zlib.crc32(memoryview(data)[at + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            raise Refusal(Reason.UNDECODABLE, f"chunk {kind!r} at byte {at} fails its checksum")
        chunks.append((kind, b"" if kind == b"IDAT" else data[at + 8 : end]))
        if kind == b"IEND":
            return chunks
        at = end + 4
    raise Refusal(Reason.TRUNCATED, f"ends at byte {len(data)}, before the end chunk")


def _webp_header(data: bytes) -> Probe:
    """Read the first chunk (RFC 9649, sections 2.5 to 2.7)."""
    riff_bytes = int.from_bytes(data[4:8], "little") + 8
    if riff_bytes > len(data) or len(data) < 30:
        raise Refusal(Reason.TRUNCATED, f"{len(data):,} bytes of {riff_bytes:,}")
    width, height, flags = _webp_size(data)
    _require_size(width, height)
    if flags & Flag.EXIF_ROTATED:
        flags = (flags & ~Flag.EXIF_ROTATED) | _exif_flag(_webp_exif(data[:riff_bytes]))
    return Probe("webp", width, height, flags)


def _webp_size(data: bytes) -> tuple[int, int, Flag]:
    """Width, height, and flags; EXIF_ROTATED stands for an Exif chunk that is still to be read."""
    kind = data[12:16]
    if kind == b"VP8X":
        if data[20] & 0x02:
            raise Refusal(Reason.UNSUPPORTED_FORMAT, "animated image/webp")
        flags = Flag.ALPHA if data[20] & 0x10 else Flag(0)
        flags |= Flag.EXIF_ROTATED if data[20] & 0x08 else Flag(0)
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
        return width, height, flags
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        alpha = Flag.ALPHA if bits >> 28 & 1 else Flag(0)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, alpha
    if kind == b"VP8 ":
        width, height = (int.from_bytes(data[at : at + 2], "little") & 0x3FFF for at in (26, 28))
        return width, height, Flag(0)
    raise Refusal(Reason.UNDECODABLE, f"unknown first chunk {kind!r}")


def _webp_exif(data: bytes) -> bytes:
    at = 12
    while at + 8 <= len(data):
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        if data[at : at + 4] == b"EXIF":
            return data[at + 8 : at + 8 + length].removeprefix(b"Exif\0\0")
        at += 8 + length + length % 2
    return b""


def _decode_with_pillow(data: bytes, format_name: str) -> None:
    try:
        with Image.open(BytesIO(data), formats=(format_name,)) as image:
            image.load()
    # Pillow's plugins raise these, and zlib's or struct's own errors, for damaged files.
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:
        truncated = "truncated" in str(error)
        reason = Reason.TRUNCATED if truncated else Reason.UNDECODABLE
        raise Refusal(reason, pillow_fact(error)) from error


def pillow_fact(error: Exception) -> str:
    """Pillow's message without the address of the buffer, which differs from run to run."""
    return re.sub(r"<_io\.BytesIO object at 0x[0-9a-f]+>", "", str(error)).strip()
