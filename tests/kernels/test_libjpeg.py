"""libjpeg called from a kernel; its pixels are compared in tests/data/test_regions.py."""

import ctypes
import gc

import numba
import numpy as np
import pytest
import simplejpeg
from PIL import _imaging

from coreset.kernels.jpeg import batch as jpeg_batches
from coreset.kernels.jpeg import libjpeg
from coreset.kernels.jpeg.libjpeg import MOST_ADDED, VERSIONS, Functions, PartDecoder


@pytest.fixture(scope="module")
def grey():
    """A grey image of 64 x 48 pixels, and its file."""
    pixels = np.tile(np.arange(64, dtype=np.uint8)[None, :, None], (48, 1, 1))
    return simplejpeg.encode_jpeg(pixels, 100, "GRAY", "Gray")


@pytest.fixture
def decoder(grey):
    """By the one version that is the library's; the others decode nothing."""
    into = np.empty(64 * 48 * 3, np.uint8)
    made = [PartDecoder(ctypes.CDLL(_imaging.__file__), version) for version in VERSIONS]
    (works,) = [one for one in made if one.decode(grey, (0, 0, 64, 48), into) == (0, 64)]
    return works


def test_rows_lie_one_after_the_other(decoder, grey):
    into = np.full(64 * 48 * 3, 255, np.uint8)
    first, n = decoder.decode(grey, (30, 10, 40, 14), into)
    assert first <= 30
    assert 40 <= first + n <= 40 + MOST_ADDED
    rows = into[: 4 * n * 3].reshape(4, n, 3)
    whole = simplejpeg.decode_jpeg(grey)
    np.testing.assert_array_equal(rows, whole[10:14, first : first + n])
    assert (into[rows.size :] == 255).all()


def test_nothing_is_written_where_there_is_no_room(decoder, grey):
    into = np.full(100, 255, np.uint8)
    assert decoder.decode(grey, (30, 10, 40, 14), into)[1] == 0
    assert (into == 255).all()
    assert decoder.decode(grey, (30, 10, 40, 11), np.empty(3 * 64, np.uint8))[1] > 0


def test_what_ends_before_its_last_row_is_refused(decoder, grey):
    into = np.empty(64 * 48 * 3, np.uint8)
    assert decoder.decode(grey[: len(grey) - 40], (0, 0, 64, 48), into)[1] == 0
    assert decoder.decode(grey, (0, 0, 64, 48), into) == (0, 64)


def test_other_libraries_are_not_called():
    with pytest.raises(AttributeError):
        PartDecoder(ctypes.CDLL(None), next(iter(VERSIONS)))
    gc.collect()  # also what was not finished ends quietly


FUNCTIONS = Functions(*range(1, 14))
SQUARE = jpeg_batches._Square((1, 1), 1, 1, 1, 1)
HOW = jpeg_batches._How(1, stream=True, coarse=False)
PLACES = jpeg_batches._Places(1, 1, 1)
PART = libjpeg._Wanted(1, 1, 1, 1, coarse=True)


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (libjpeg._decode_part, (FUNCTIONS, (1, 1), PART, (1, 1), 1)),
        (jpeg_batches._decode_one, (FUNCTIONS, SQUARE, HOW, PLACES, None)),
        (jpeg_batches._decode_one, (FUNCTIONS, SQUARE, HOW, PLACES, 1)),
    ],
    ids=["part", "bytes", "floats"],
)
def test_what_a_jump_comes_back_to_holds_no_counted_reference(function, arguments):
    """A jump would release it twice; the code holds all functions that were compiled with it."""
    function.compile(tuple(map(numba.typeof, arguments)))
    for code in function.inspect_llvm().values():
        assert "@_setjmp" in code
        assert "NRT_incref" not in code
        assert "NRT_decref" not in code


def test_a_part_beside_the_image_is_refused(decoder, grey):
    into = np.empty(64 * 48 * 3, np.uint8)
    assert decoder.decode(grey, (70, 0, 80, 8), into)[1] == 0
    assert decoder.decode(grey, (0, 50, 64, 60), into)[1] == 0
    assert decoder.decode(grey, (0, 0, 64, 48), into) == (0, 64)
