"""Headers of JPEGs beside libjpeg-turbo's, and small files that hold a decoder up for long."""

import zlib
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from itertools import product
from struct import pack
from unittest.mock import Mock

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from coreset.bench.robustness import crafted
from coreset.bench.robustness.crafted import (
    ARITHMETIC,
    ARITHMETIC_PROGRESSIVE,
    BASELINE,
    COMMENT,
    PROGRESSIVE,
    riff,
    segment,
)
from coreset.bench.robustness.faults import chunk, encoded, jpeg, photo, png_bomb
from coreset.engine.data.decoders.pillow import decode_with_pillow
from coreset.engine.data.geometry import Geometry
from coreset.shards.images.flags import MAX_SCANS, MAX_SEGMENTS, Flag, Reason, Refusal, read_header
from coreset.shards.images.probe import glance, opened, probe

COMMON = [
    *(((h, v), (1, 1), (1, 1)) for h, v in ((1, 1), (2, 1), (1, 2), (2, 2), (4, 1))),
    ((2, 2), (1, 2), (1, 2)),
    ((2, 2), (2, 1), (2, 1)),
    *(((h, v),) * 3 for h, v in ((2, 1), (1, 2), (3, 1), (1, 3))),
    ((1, 1),),
    ((2, 2), (1, 1), (1, 1), (2, 2)),
]


def pillow_pixels(data):
    with Image.open(BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("factors", [*COMMON, *crafted.odd_samplings()], ids=str)
def test_samplings_are_flagged_unless_simplejpeg_decodes_them_like_pillow(factors):
    data, flag = crafted.sampled_jpeg(70, 50, factors), Flag(0)
    if factors not in COMMON:
        flag = Flag.ODD_SAMPLING
    elif len(factors) < 4:  # CMYK is converted by Pillow alone
        np.testing.assert_array_equal(simplejpeg.decode_jpeg(data, "RGB"), pillow_pixels(data))
    assert probe(data).flags & Flag.ODD_SAMPLING == glance(data).flags & Flag.ODD_SAMPLING == flag
    assert (probe(data).width, probe(data).height) == (70, 50)
    assert pillow_pixels(data).shape == (50, 70, 3)


def test_the_flag_tells_exactly_which_samplings_simplejpeg_does_not_know():
    whole = crafted.sampled_jpeg(70, 50, ((1, 1),) * 3)
    frame = whole.index(b"\xff\xc0") + 11
    for factors in product(range(1, 5), repeat=6):
        sampled = bytearray(whole)
        sampled[frame : frame + 9 : 3] = (np.reshape(factors, (3, 2)) @ (16, 1)).tolist()
        try:
            known = simplejpeg.decode_jpeg_header(bytes(sampled))[3] != "441"
        except (KeyError, ValueError):
            known = False
        assert (Flag.ODD_SAMPLING in read_header(bytes(sampled))[2]) != known, factors


def test_a_cut_odd_sampling_and_one_that_nobody_decodes_are_refused():
    data = crafted.sampled_jpeg(70, 50, ((1, 4), (1, 1), (1, 1)))
    with pytest.raises(Refusal, match=r"^truncated: "):
        probe(data[: len(data) * 2 // 3])
    with pytest.raises(Refusal, match=r"^undecodable: "):
        probe(crafted.sampled_jpeg(70, 50, ((3, 1), (2, 1), (1, 1))))


@pytest.mark.parametrize(
    ("kind", "most", "size"),
    [(PROGRESSIVE, MAX_SCANS, 64), (ARITHMETIC_PROGRESSIVE, MAX_SCANS, 64),
     (ARITHMETIC_PROGRESSIVE, 22, 9000), (ARITHMETIC, 3, 64)],
    ids=["progressive", "arithmetic", "large images fewer", "of a sequential one each once"],
)  # fmt: skip
def test_scans_are_counted(kind, most, size):
    flags = read_header(crafted.many_scans(most, size, kind))[2]
    assert (Flag.PROGRESSIVE in flags) is (kind != ARITHMETIC)
    with pytest.raises(Refusal, match=rf"^too-many-scans: more than {most} scans of {size} x"):
        read_header(crafted.many_scans(most + 1, size, kind))


def test_what_only_looks_like_scans_is_not_counted():
    whole = encoded(photo(0), progressive=True)
    comment = segment(COMMENT, b"\xff\xda\0\x08" * 5000)
    probe(whole[:2] + comment + whole[2:] + comment)


def test_segments_and_bytes_between_them_are_counted():
    comments = segment(COMMENT) * MAX_SEGMENTS
    with pytest.raises(Refusal, match=r"^too-many-segments: more than 1,000 segments"):
        probe(crafted.jpeg_with(comments))
    probe(crafted.jpeg_with(comments[: len(comments) // 2]))
    with pytest.raises(Refusal, match=r"^too-many-segments: more than 65,536 bytes between"):
        probe(crafted.jpeg_with(b"\xff" * 100_000))
    for filling in (b"\xff", b"\xff" * 2, b"\xff" * 3, b"\xff\x01", b"\xff\xd0\xff\xff\xff"):
        probe(crafted.jpeg_with(filling))


@pytest.mark.parametrize("stray", [b"\xff\x00", b"\xff\x02\x00\x02"], ids=bytes.hex)
def test_bytes_that_are_no_marker_are_refused_where_libjpeg_refuses_them(stray):
    with pytest.raises(ValueError, match=r"."):
        simplejpeg.decode_jpeg_header(crafted.jpeg_with(stray))
    with pytest.raises(Refusal, match=r"^undecodable: no marker at byte 2"):
        probe(crafted.jpeg_with(stray))


@pytest.mark.parametrize("n_components", [1, 3])
def test_a_lossless_jpeg_never_reaches_a_decoder_at_part_of_its_size(n_components):
    """simplejpeg would write it in full into memory for an eighth."""
    with pytest.raises(Refusal, match=r"^unsupported-format: lossless image/jpeg"):
        probe(crafted.lossless_jpeg(100, 60, n_components))


def test_a_second_frame_header_does_not_change_the_size():
    whole = encoded(photo(0))
    at = whole.index(b"\xff\xc0")
    larger = whole[at : at + 5] + b"\x20\x00\x20\x00" + whole[at + 9 : at + 19]
    for doubled in (whole[: at + 19] + larger + whole[at + 19 :], whole[:-2] + larger + whole[-2:]):
        with pytest.raises(Refusal) as caught:
            probe(doubled)
        assert caught.value.reason in {Reason.UNDECODABLE, Reason.TRUNCATED}


def test_a_frame_of_any_other_kind_is_described_or_refused():
    """One flipped bit makes a progressive frame a lossless one."""
    for whole in (encoded(photo(0)), encoded(photo(0), progressive=True)):
        at = max(whole.find(b"\xff\xc0"), whole.find(b"\xff\xc2"))
        for marker in range(0xC0, 0x100):
            with suppress(Refusal):
                image = probe(whole[: at + 1] + bytes((marker,)) + whole[at + 2 :])
                assert (image.width, image.height) == photo(0).size


# Files that cost much: each is refused by a reason, or its work is bounded.


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
    "JPEG: Huffman tables without number": (
        lambda: crafted.jpeg_with(segment(0xC4, bytes([3, 1, *[0] * 16])) * 50_000),
        Reason.TOO_MANY_SEGMENTS),
    "JPEG: Exif blocks without number, which Pillow joins one by one": (
        lambda: crafted.jpeg_with(segment(0xE1, b"Exif\0\0" + bytes(2000)) * 1000),
        Reason.TOO_MANY_SEGMENTS),
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
