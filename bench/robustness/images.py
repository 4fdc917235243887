"""Image files of the scoreboard that no encoder writes: odd samplings, and work for minutes."""

import struct
import zlib

import numpy as np

from coreset.bench.robustness import crafted
from coreset.bench.robustness.crafted import (
    ARITHMETIC,
    ARITHMETIC_PROGRESSIVE,
    COMMENT,
    chunk,
    segment,
)
from coreset.bench.robustness.faults import OddImage, Pixels, photo, rgb

_SIZE = 96, 72
_MEGABYTE = 1 << 20
_TOO_MANY = 20_000
"""Scans that a decoder does not end within the limit of time of `outcomes.run`."""


def _sampled(first: tuple[int, int]) -> bytes:
    return crafted.sampled_jpeg(*_SIZE, (first, (1, 1), (1, 1)))


def _zeros(megabytes: int) -> bytes:
    return zlib.compress(bytes(megabytes * _MEGABYTE), 9)


def _grey(_: bytes) -> Pixels:
    return np.full((_SIZE[1], _SIZE[0], 3), 128, np.uint8)


def _photo(_: bytes) -> Pixels:
    return np.asarray(photo(1000))


_SECOND_HEADER = chunk(b"IHDR", struct.pack(">IIBBBBB", 9000, 9000, 8, 2, 0, 0, 0))
CRAFTED_IMAGES: tuple[OddImage, ...] = (
    OddImage(row=11, fault="lossless JPEG", made="annex H of T.81, by the name odd.JPEG",
             make=lambda: crafted.lossless_jpeg(*_SIZE), truth=_grey),
    OddImage(row=12, fault="JPEG sampled 4:4:1", made="factors 1 x 4, 1 x 1, 1 x 1",
             make=lambda: _sampled((1, 4)), truth=rgb),
    OddImage(row=12, fault="JPEG sampled 4:1:0", made="factors 4 x 2, 1 x 1, 1 x 1",
             make=lambda: _sampled((4, 2)), truth=rgb),
    OddImage(row=41, fault="JPEG of 20,000 scans", made="progressive, 9,000 x 9,000 in 0.2 MB",
             make=lambda: crafted.many_scans(_TOO_MANY, 9000, ARITHMETIC_PROGRESSIVE)),
    OddImage(row=41, fault="JPEG with a component 20,000 times",
             made="sequential, 9,000 x 9,000 in 0.2 MB",
             make=lambda: crafted.many_scans(_TOO_MANY, 9000, ARITHMETIC)),
    OddImage(row=41, fault="JPEG with 250,000 comments", made="empty ones, 1 MB in all",
             make=lambda: crafted.jpeg_with(segment(COMMENT) * 250_000), truth=_photo),
    OddImage(row=41, fault="JPEG with 1 MB of filling", made="0xFF between two markers",
             make=lambda: crafted.jpeg_with(b"\xff" * _MEGABYTE), truth=_photo),
    OddImage(row=41, fault="PNG with text that unpacks to 64 MB", made="a zTXt chunk of 65 kB",
             make=lambda: crafted.png_with(chunk(b"zTXt", b"text\0\0" + _zeros(64))),
             name="odd.png", truth=_photo),
    OddImage(row=41, fault="PNG with a profile that unpacks to 64 MB",
             made="an iCCP chunk of 65 kB",
             make=lambda: crafted.png_with(chunk(b"iCCP", b"name\0\0" + _zeros(64))),
             name="odd.png", truth=_photo),
    OddImage(row=41, fault="PNG with a second header", made="which says 9,000 x 9,000",
             make=lambda: crafted.png_with(_SECOND_HEADER), name="odd.png", truth=_photo),
)  # fmt: skip
