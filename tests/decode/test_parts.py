"""A part of a JPEG, decoded alone, beside the same part of the whole image."""

import io
from threading import local

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from engine.decode import parts
from engine.decode.geometry import Geometry
from engine.decode.parts import LEAST_SIDE, decode_part, pays
from engine.decode.turbo import decode_jpeg

pytestmark = pytest.mark.skipif(parts._codec() is None, reason="no nvImageCodec")
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
    """Beginning and end of some of ``length`` pixels, of the fewest that are decoded often."""
    n = LEAST_SIDE if rng.random() < 0.2 else int(rng.integers(LEAST_SIDE, length + 1))
    begin = int(rng.integers(0, length - n + 1))
    return begin, begin + n


def part_of(data: bytes, part) -> np.ndarray:
    left, top, right, bottom = part
    into = np.zeros((bottom - top, right - left, 3), np.uint8)
    assert decode_part(data, part, into)
    return into


@pytest.mark.parametrize("kind", [*KINDS, "4:40", "4:11"])
def test_a_part_holds_the_pixels_of_the_whole_image(stored, kind):
    whole, rng = simplejpeg.decode_jpeg(stored[kind]), np.random.default_rng(0)
    for _ in range(300):
        left, right = span(rng, WIDTH)
        top, bottom = span(rng, HEIGHT)
        np.testing.assert_array_equal(
            part_of(stored[kind], (left, top, right, bottom)), whole[top:bottom, left:right]
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
    monkeypatch.setattr(parts, "_LEAST_PIXELS", 1)
    monkeypatch.setattr(parts, "_MOST_TAKEN", 1)
    taken: list[bool] = []
    monkeypatch.setattr(
        "engine.decode.turbo.decode_part",
        lambda *those: taken.append(decode_part(*those)) or taken[-1],
    )
    decode_jpeg(data, size, placement, outputs[0])
    assert taken == [True]
    monkeypatch.setattr(parts, "_codec", lambda: None)
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
    data, into = data[: len(data) // 2], np.zeros((HEIGHT, 50, 3), np.uint8)
    assert not decode_part(data, (0, 0, 50, HEIGHT), into)
    assert decode_part(data, (0, 0, 50, 20), into[:20])
    assert not decode_part(b"<html>", (0, 0, 50, 20), into[:20])
    assert capfd.readouterr() == ("", "")
    with pytest.raises(ValueError, match="Premature end"):
        decode_jpeg(data, (WIDTH, HEIGHT), Geometry(64, 72).place(WIDTH, HEIGHT), into[:64, :64])


def test_a_part_is_decoded_alone_where_that_saves_much(monkeypatch):
    assert pays((500, 375), (100, 50, 350, 300))
    assert not pays((500, 375), (86, 23, 414, 352))  # 0.58 of it
    assert not pays((341, 256), (50, 50, 80, 80))
    assert not pays((500, 375), (0, 0, 15, 375))
    monkeypatch.setattr(parts, "_codec", lambda: None)
    assert not pays((500, 375), (100, 50, 350, 300))


@pytest.fixture
def _asked_anew():
    parts._codec.cache_clear()
    yield
    parts._codec.cache_clear()


@pytest.mark.usefixtures("_asked_anew")
@pytest.mark.parametrize("lacks", ["Region", "as_image", "Decoder"])
def test_a_version_without_what_is_used_is_not_used(monkeypatch, lacks):
    from nvidia import nvimgcodec

    monkeypatch.delattr(nvimgcodec, lacks)
    monkeypatch.setattr(parts, "_of_thread", local())
    assert not pays((500, 375), (100, 50, 350, 300))
    assert not decode_part(b"", (0, 0, 16, 16), np.zeros((16, 16, 3), np.uint8))


@pytest.mark.usefixtures("_asked_anew")
def test_a_version_with_other_pixels_is_not_used(monkeypatch):
    def one_off(codec, data, part, into):
        return decode(codec, data, part, into) and into.put(0, into.flat[0] ^ 1) is None

    decode = parts._decode
    monkeypatch.setattr(parts, "_decode", one_off)
    assert not pays((500, 375), (100, 50, 350, 300))
