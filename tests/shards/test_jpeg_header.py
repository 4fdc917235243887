"""Sizes, kinds, samplings and scans by the markers, beside what libjpeg-turbo and Pillow find."""

from contextlib import suppress
from io import BytesIO
from itertools import product

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from coreset.bench.robustness import crafted
from coreset.bench.robustness.crafted import (
    ARITHMETIC,
    ARITHMETIC_PROGRESSIVE,
    COMMENT,
    PROGRESSIVE,
    segment,
)
from coreset.bench.robustness.faults import encoded, photo
from coreset.shards.images.flags import MAX_SEGMENTS, Flag, Reason, Refusal
from coreset.shards.images.jpeg_header import MAX_SCANS, read_header
from coreset.shards.images.probe import glance, probe

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
