"""Small files that hold a decoder up for long: each is refused by a reason, or its work is bounded.

The first list of libjpeg-turbo's own ("Two Issues with the JPEG Standard") are many scans and large
images in few bytes; the others are their like in what surrounds the pixels.
"""

import zlib
from collections.abc import Callable
from struct import pack
from unittest.mock import Mock

import numpy as np
import pytest

from coreset.bench.robustness import crafted
from coreset.bench.robustness.crafted import (
    ARITHMETIC_PROGRESSIVE,
    BASELINE,
    COMMENT,
    riff,
    segment,
)
from coreset.bench.robustness.faults import chunk, encoded, jpeg, photo, png_bomb
from coreset.engine.data.decoders.pillow import decode_with_pillow
from coreset.engine.data.geometry import Geometry
from coreset.shards.images.flags import Reason, Refusal
from coreset.shards.images.pillow import opened
from coreset.shards.images.probe import probe

MEGABYTE = 1 << 20
RESTART = segment(0xDD, b"\0\1")


Make = Callable[[], bytes]


def zeros(n_bytes: int) -> bytes:
    return zlib.compress(bytes(n_bytes), 9)


def texts(n: int) -> bytes:
    packed = zeros(MEGABYTE - 10)
    return b"".join(chunk(b"zTXt", b"text %d\0\0" % at + packed) for at in range(n))


def rows_beyond_the_last() -> bytes:
    whole = encoded(photo(0), "PNG")
    rows = zlib.decompress(whole[whole.index(b"IDAT") + 4 : whole.index(b"IEND") - 8])
    more = zlib.compress(rows + bytes(8 * MEGABYTE))
    return whole[:33] + chunk(b"IDAT", more) + chunk(b"IEND", b"")


def restarts_without_data() -> bytes:
    one_scan = crafted.many_scans(1, 3000, BASELINE)
    at = one_scan.index(b"\xff\xda")
    return one_scan[:at] + RESTART + one_scan[at:]


def filled_before_its_end() -> bytes:
    whole = jpeg()
    return whole[:-2] + b"\xff" * MEGABYTE + whole[-2:]


REFUSED: dict[str, tuple[Make, Reason]] = {
    "JPEG: 4,000 arithmetic scans of 9,000 x 9,000 in 44 kB": (
        lambda: crafted.many_scans(4000, 9000, ARITHMETIC_PROGRESSIVE), Reason.TOO_MANY_SCANS),
    "JPEG: a component 4,000 times, baseline": (
        lambda: crafted.many_scans(4000, 9000, BASELINE), Reason.TOO_MANY_SCANS),
    "JPEG: comments without number": (
        lambda: crafted.jpeg_with(segment(COMMENT) * 250_000), Reason.TOO_MANY_SEGMENTS),
    "JPEG: Huffman tables without number": (
        lambda: crafted.jpeg_with(segment(0xC4, bytes([3, 1, *[0] * 16])) * 50_000),
        Reason.TOO_MANY_SEGMENTS),
    "JPEG: Exif blocks without number, which Pillow joins one by one": (
        lambda: crafted.jpeg_with(segment(0xE1, b"Exif\0\0" + bytes(2000)) * 1000),
        Reason.TOO_MANY_SEGMENTS),
    "JPEG: a megabyte between two markers": (
        lambda: crafted.jpeg_with(b"\xff" * MEGABYTE), Reason.TOO_MANY_SEGMENTS),
    "JPEG: a restart after every block, none there": (restarts_without_data, Reason.UNDECODABLE),
    "PNG: 20,000 x 20,000 pixels of one colour": (png_bomb, Reason.TOO_LARGE),
    "PNG: a second header, larger": (
        lambda: crafted.png_with(chunk(b"IHDR", pack(">IIBBBBB", 9000, 9000, 8, 2, 0, 0, 0))),
        Reason.UNDECODABLE),
    "PNG: text that unpacks to 8 MB": (
        lambda: crafted.png_with(chunk(b"zTXt", b"text\0\0" + zeros(8 * MEGABYTE))),
        Reason.UNDECODABLE),
    "PNG: international text that unpacks to 8 MB": (
        lambda: crafted.png_with(chunk(b"iTXt", b"t\0\1\0\0\0" + zeros(8 * MEGABYTE))),
        Reason.UNDECODABLE),
    "PNG: a colour profile that unpacks to 8 MB": (
        lambda: crafted.png_with(chunk(b"iCCP", b"p\0\0" + zeros(8 * MEGABYTE))),
        Reason.UNDECODABLE),
    "PNG: 65 texts that unpack to a megabyte each": (
        lambda: crafted.png_with(texts(65)), Reason.UNDECODABLE),
    "PNG: 900 colour profiles that unpack to a megabyte each": (
        lambda: crafted.png_with(chunk(b"iCCP", b"p\0\0" + zeros(MEGABYTE - 10)) * 900),
        Reason.TOO_MANY_SEGMENTS),
    "PNG: chunks without number": (
        lambda: crafted.png_with(chunk(b"teSt", b"") * 80_000), Reason.TOO_MANY_SEGMENTS),
    "PNG: pixels in chunks without number": (
        lambda: crafted.png_with(chunk(b"IDAT", b"") * 80_000), Reason.TOO_MANY_SEGMENTS),
    "WebP: chunks without number": (
        lambda: crafted.webp_with(riff(b"test") * 80_000), Reason.TOO_MANY_SEGMENTS),
}  # fmt: skip
BOUNDED: dict[str, Make] = {
    "by the pixels, at most MAX_PIXELS: a JPEG of 3,000 x 3,000 pixels in 100 bytes":
        lambda: crafted.many_scans(1, 3000, ARITHMETIC_PROGRESSIVE),
    "by MAX_SCANNED_PIXELS: a JPEG of as many scans as are allowed, two to three plain images":
        lambda: crafted.many_scans(100, 300, ARITHMETIC_PROGRESSIVE),
    "by its bytes, which Pillow gets at once: a JPEG with a megabyte of filling before its end":
        filled_before_its_end,
    "by the end, which nobody reads beyond: a JPEG with scans in what follows it":
        lambda: jpeg() + b"\xff\xda\0\x08" * 50_000,
    "by the last row, where Pillow stops: a PNG of 8 MB of rows beyond": rows_beyond_the_last,
    "by its bytes, as each entry is looked at once: a PNG with an Exif block of 65,535 entries":
        lambda: crafted.png_with(chunk(b"eXIf", b"II*\0\x08\0\0\0\xff\xff" + bytes(12 * 65_535))),
    "by the pixels, at most MAX_PIXELS: a WebP of 1,000 x 1,000 pixels of one colour":
        lambda: encoded(photo(0).resize((1, 1)).resize((1000, 1000)), "WEBP", lossless=True),
}  # fmt: skip


@pytest.mark.parametrize(("make", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_a_file_that_costs_too_much_is_refused_by_a_stable_reason(make, reason):
    data = make()
    assert len(data) < 2 * MEGABYTE
    with pytest.raises(Refusal) as caught:
        probe(data)
    assert caught.value.reason is reason


@pytest.mark.parametrize("make", BOUNDED.values(), ids=BOUNDED.keys())
def test_a_file_whose_cost_is_bounded_is_packed_and_decoded(make):
    data = make()
    image = probe(data)
    pixels = decode_with_pillow(data, Geometry(32, 32), (image.width, image.height))
    assert pixels.shape == (32, 32, 3)


def test_pillow_gets_a_file_at_once():
    """In pieces of 64 kB, what fills a JPEG before its end is searched again with each."""
    data = filled_before_its_end()
    with opened(data) as image:
        reads: list[int] = []
        load_read = image.load_read  # pyright: ignore[reportAttributeAccessIssue] - no stub
        image.load_read = lambda n: reads.append(n) or load_read(n)  # pyright: ignore[reportAttributeAccessIssue] - no stub
        image.load()
    assert len(reads) == 1
    np.testing.assert_array_equal(
        decode_with_pillow(data, Geometry(64, 64)), decode_with_pillow(jpeg(), Geometry(64, 64))
    )


@pytest.mark.parametrize(
    "error",
    [KeyError(6), RuntimeError("odd"), AssertionError(), RecursionError("deep")],
    ids=repr,
)
def test_whatever_a_codec_raises_is_the_refusal_of_the_file(error, monkeypatch):
    for codec in ("simplejpeg.decode_jpeg", "PIL.Image.open"):
        monkeypatch.setattr(codec, Mock(side_effect=error))
    for data in (jpeg(), encoded(photo(0), "PNG"), encoded(photo(0), "WEBP")):
        with pytest.raises(Refusal, match=f"^undecodable: {type(error).__name__}"):
            probe(data)
        with pytest.raises(ValueError, match=type(error).__name__):
            decode_with_pillow(data, Geometry(32, 32))


def test_memory_that_runs_out_is_not_the_fault_of_a_file(monkeypatch):
    for codec in ("simplejpeg.decode_jpeg", "PIL.Image.open"):
        monkeypatch.setattr(codec, Mock(side_effect=MemoryError))
    for data in (jpeg(), encoded(photo(0), "PNG")):
        with pytest.raises(MemoryError):
            probe(data)
