"""A part of a JPEG, decoded alone, beside the same part of the whole image."""

import ctypes
import io

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from coreset.engine.data.decoders import libjpeg
from coreset.engine.data.decoders import regions as parts
from coreset.engine.data.decoders.regions import decode_region, worth_cropping
from coreset.engine.data.decoders.turbo import decode_jpeg
from coreset.engine.data.geometry import Geometry

WIDTH, HEIGHT = 301, 227
KINDS = {
    "4:2:0": {"subsampling": 2},
    "4:2:2": {"subsampling": 1},
    "4:4:4": {"subsampling": 0},
    "grey": {},
    "RGB": {"keep_rgb": True},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_rows": 1},
    "coarse": {"quality": 20},
}


@pytest.fixture(scope="module")
def stored(images):
    """A photograph of every kind that plain JPEGs come in."""

    def jpeg(name: str) -> bytes:
        photo = images.photo(WIDTH, HEIGHT, 3)
        buffer = io.BytesIO()
        photo.convert("L" if name == "grey" else "RGB").save(buffer, "JPEG", **KINDS[name])
        return buffer.getvalue()

    return {name: jpeg(name) for name in KINDS} | {
        f"4:{name[1:]}": simplejpeg.encode_jpeg(
            np.asarray(images.photo(WIDTH, HEIGHT, 3)), colorsubsampling=name
        )
        for name in ("440", "411")
    }


def span(rng: np.random.Generator, length: int) -> tuple[int, int]:
    """Beginning and end of some of ``length`` pixels, often of one."""
    n = 1 if rng.random() < 0.2 else int(rng.integers(1, length + 1))
    begin = int(rng.integers(0, length - n + 1))
    return begin, begin + n


def part_of(data: bytes, part, *, coarse: bool = False) -> np.ndarray:
    decoded = decode_region(data, part, coarse=coarse)
    assert decoded is not None
    pixels, first = decoded
    return pixels[:, part[0] - first : part[2] - first]


@pytest.mark.parametrize("coarse", [False, True], ids=["exact", "coarse"])
@pytest.mark.parametrize("kind", [*KINDS, "4:40", "4:11"])
def test_a_part_holds_the_pixels_of_the_whole_image(stored, kind, coarse):
    whole = simplejpeg.decode_jpeg(stored[kind], fastdct=coarse, fastupsample=coarse)
    rng = np.random.default_rng(0)
    for _ in range(300):
        left, right = span(rng, WIDTH)
        top, bottom = span(rng, HEIGHT)
        np.testing.assert_array_equal(
            part_of(stored[kind], (left, top, right, bottom), coarse=coarse),
            whole[top:bottom, left:right],
        )


@pytest.mark.parametrize(
    ("geometry", "crop"),
    [
        (Geometry(64, 72), None),
        (Geometry(227, 227), None),
        (Geometry(64), (20, 30, 120, 110)),
        (Geometry(100), (10, 20, 110, 120)),
        (Geometry(5), (3, 3, 203, 223)),
    ],
    ids=["centre", "centre, not resized", "crop", "crop, not resized", "many pixels into one"],
)
def test_batches_hold_the_same_with_and_without_the_decoder_of_parts(
    stored, monkeypatch, geometry, crop
):
    data, size = stored["4:2:0"], (WIDTH, HEIGHT)
    placement = geometry.place(*size, crop)
    outputs = np.zeros((2, geometry.size, geometry.size, 3), np.uint8)
    monkeypatch.setattr(parts, "_MOST_TAKEN", 1)
    taken: list[object] = []
    monkeypatch.setattr(
        "coreset.engine.data.decoders.turbo.decode_region",
        lambda *those, **how: taken.append(decode_region(*those, **how)) or taken[-1],
    )
    decode_jpeg(data, size, placement, outputs[0])
    assert len(taken) == 1
    assert taken[0] is not None
    monkeypatch.setattr(libjpeg, "_version", lambda: None)
    decode_jpeg(data, size, placement, outputs[1])
    assert len(taken) == 1
    np.testing.assert_array_equal(outputs[0], outputs[1])


def test_the_rotation_flag_is_ignored(images):
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    images.photo(80, 60, 1).save(buffer, "JPEG", exif=exif)
    whole = simplejpeg.decode_jpeg(buffer.getvalue())
    np.testing.assert_array_equal(part_of(buffer.getvalue(), (5, 6, 70, 30)), whole[6:30, 5:70])


def test_what_ends_early_is_noticed_unless_it_ends_below_the_part(stored, capfd):
    data = stored["4:2:0"]
    cut, into = data[: len(data) // 2], np.zeros((64, 64, 3), np.uint8)
    assert decode_region(cut, (0, 0, 50, HEIGHT)) is None
    assert decode_region(b"<html>", (0, 0, 50, 20)) is None
    np.testing.assert_array_equal(
        part_of(cut, (0, 0, 50, 20)), simplejpeg.decode_jpeg(data)[:20, :50]
    )
    assert capfd.readouterr() == ("", "")
    with pytest.raises(ValueError, match="Premature end"):
        decode_jpeg(cut, (WIDTH, HEIGHT), Geometry(64, 72).place(WIDTH, HEIGHT), into)


@pytest.mark.parametrize("kind", KINDS)
def test_damage_anywhere_costs_the_image_alone(stored, kind, capfd):
    """Whatever libjpeg stumbles over, in the middle of its work, the next image is decoded."""
    data, rng, refused = stored[kind], np.random.default_rng(1), 0
    part = (40, 30, 240, 200)
    expected = part_of(data, part).copy()
    for number in range(200):
        damaged = bytearray(data)
        for at in rng.integers(2, len(data) if number % 2 else 700, 3):
            damaged[at] = rng.integers(256)
        refused += decode_region(bytes(damaged), part) is None
        np.testing.assert_array_equal(part_of(data, part), expected)
    assert refused > 20
    assert capfd.readouterr() == ("", "")


def test_a_part_outside_of_the_image_is_refused(stored):
    for part in (
        (0, 0, 10, HEIGHT + 1),
        (WIDTH + 50, 0, WIDTH + 60, 5),
        (0, HEIGHT, 5, HEIGHT + 5),
    ):
        assert decode_region(stored["4:2:0"], part) is None


def test_a_part_is_decoded_alone_where_that_saves_time(monkeypatch):
    assert worth_cropping((500, 375), (86, 23, 414, 352))  # 0.58 of it
    assert worth_cropping((256, 256), (16, 16, 240, 240))
    assert not worth_cropping((500, 375), (0, 0, 450, 340))
    assert not worth_cropping((120, 120), (50, 50, 80, 80))
    monkeypatch.setattr(libjpeg, "_version", lambda: None)
    assert not worth_cropping((500, 375), (86, 23, 414, 352))


@pytest.fixture
def _asked_anew():
    libjpeg._version.cache_clear()
    yield
    libjpeg._version.cache_clear()


@pytest.mark.usefixtures("_asked_anew")
@pytest.mark.parametrize("library", ["", "none.so"], ids=["without libjpeg", "not there"])
def test_without_the_library_nothing_is_decoded_in_parts(monkeypatch, library):
    monkeypatch.setattr(libjpeg, "_library", lambda: ctypes.CDLL(library or None))
    assert not worth_cropping((500, 375), (100, 50, 350, 300))
    assert decode_region(b"", (0, 0, 16, 16)) is None


@pytest.mark.usefixtures("_asked_anew")
def test_the_environment_can_switch_region_decoding_off(monkeypatch):
    monkeypatch.setenv(libjpeg.SWITCH, "0")
    assert not worth_cropping((500, 375), (100, 50, 350, 300))
    assert decode_region(b"", (0, 0, 16, 16)) is None


@pytest.mark.usefixtures("_asked_anew")
def test_a_version_of_another_layout_is_not_used(monkeypatch):
    monkeypatch.setattr(libjpeg, "VERSIONS", (80,) if libjpeg._version() == 62 else (62,))
    libjpeg._version.cache_clear()
    assert not worth_cropping((500, 375), (100, 50, 350, 300))


@pytest.mark.usefixtures("_asked_anew")
def test_a_version_with_other_pixels_is_not_used(monkeypatch):
    def one_off(decoder, data, part, into):
        found = decode(decoder, data, part, into)
        into[:] ^= 1
        return found

    decode = libjpeg.RegionDecoder.decode
    monkeypatch.setattr(libjpeg.RegionDecoder, "decode", one_off)
    assert not worth_cropping((500, 375), (100, 50, 350, 300))
