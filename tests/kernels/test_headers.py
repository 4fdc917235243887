"""Headers of JPEGs, beside what simplejpeg reads in them."""

import struct
from contextlib import suppress

import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from coreset.bench.robustness.faults import encoded
from coreset.engine.data.decoders.turbo import is_plain_jpeg
from coreset.kernels.jpeg.headers import addresses_of, as_arrays, plain_jpegs

SIZE = (37, 22)
NOISE = np.random.default_rng(0).integers(0, 256, (22, 37, 3), np.uint8)
PHOTO = Image.fromarray(NOISE)


def made() -> dict[str, bytes]:
    sampled = {
        name: simplejpeg.encode_jpeg(NOISE, colorsubsampling=name)
        for name in ("444", "422", "440", "420", "411")
    }
    return sampled | {
        "grey": encoded(PHOTO.convert("L")),
        "RGB": encoded(PHOTO, keep_rgb=True),
        "progressive": encoded(PHOTO, progressive=True),
        "restarts": encoded(PHOTO, restart_marker_rows=1),
        "comment": encoded(PHOTO, comment=b"x" * 70),
        "filled": encoded(PHOTO).replace(b"\xff\xdb", b"\xff\xff\xff\xdb", 1),
        "CMYK": encoded(PHOTO.convert("CMYK")),
        "PNG": encoded(PHOTO, "PNG"),
        "none": b"",
        "text": b"<html>",
    }


def plain(*files: bytes, size: tuple[int, int] = SIZE) -> list[bool]:
    arrays = as_arrays(files)
    lengths = np.array([len(data) for data in arrays])
    sizes = np.full((2, len(files)), np.reshape(size, (2, 1)))
    return plain_jpegs(addresses_of(arrays), lengths, *sizes).tolist()


def frame_at(data: bytes) -> int:
    return max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))


def test_every_kind_is_told_as_simplejpeg_tells_it():
    files = made()
    expected = {name: is_plain_jpeg(data, SIZE) for name, data in files.items()}
    assert dict(zip(files, plain(*files.values()), strict=True)) == expected
    assert sum(expected.values()) == 11
    assert not any(plain(*files.values(), size=(37, 23)))
    assert not any(plain(*files.values(), size=(36, 22)))


@pytest.mark.parametrize("marker", [c for c in range(0xC3, 0xD0) if c not in {0xC4, 0xCC}])
def test_lossless_differential_and_arithmetic_frames_are_not_plain(marker):
    data = bytearray(made()["420"])
    data[frame_at(bytes(data)) + 1] = marker
    assert plain(bytes(data)) == [False]


def test_a_second_frame_deep_pixels_odd_factors_and_a_missing_scan_are_not_plain():
    data = made()["420"]
    at = frame_at(data)
    frame = data[at : at + 19]
    bomb = frame[:5] + struct.pack(">HH", 65500, 65500) + frame[9:]
    scan = data.find(b"\xff\xda")
    deep = data[: at + 4] + b"\x0c" + data[at + 5 :]
    factors = data[: at + 11] + b"\x14" + data[at + 12 :]  # 4:1:0's
    shorter = data[: at + 3] + b"\x0e" + data[at + 4 :]
    files = [data[:at] + bomb + data[at:], data[:scan] + bomb + data[scan:], deep, factors]
    assert plain(*files, data[:scan], shorter, data) == [False] * 6 + [True]


@given(st.sampled_from(sorted(made())), st.data())
def test_damage_is_never_read_past_the_end_and_never_changes_the_size(name, draw):
    data = bytearray(made()[name])
    for _ in range(draw.draw(st.integers(0, 3))):
        if data:
            data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    cut = bytes(data[: draw.draw(st.integers(0, len(data)))])
    found = plain(cut)
    followed = as_arrays([cut + rest for rest in (bytes(99), bytes(data), b"\xff" * 99)])
    sizes = (np.full(3, side) for side in (len(cut), *SIZE))
    assert plain_jpegs(addresses_of(followed), *sizes).tolist() == found * 3
    if found[0]:
        with suppress(ValueError):  # of damage that a decoder meets
            height, width, *_ = simplejpeg.decode_jpeg_header(cut)
            assert (width, height) == SIZE
