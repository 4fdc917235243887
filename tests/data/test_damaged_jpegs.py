"""Damaged JPEGs cost their images, never the process that decodes them.

As a program, ``TIMES FOLDER...``: decode the images of data sets so many times by every kernel,
then once by a loader.
"""

import os
import subprocess
import sys
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import pytest

import coreset
from coreset.engine.data import stream
from coreset.engine.data.decoders import (
    EncodedBatch,
    Normalisation,
    UndecodableImagesError,
    make_decoder,
)
from coreset.engine.data.decoders.turbo import decode_region
from coreset.engine.data.geometry import Geometry
from coreset.engine.data.reader import ShardReader
from coreset.shards.format.dataset import Dataset

SIDE = 64
SAVED = (
    {},
    {"progressive": True},
    {"subsampling": 0},
    {"restart_marker_rows": 1},
    {"progressive": True, "subsampling": 1, "quality": 30},
)
FRAMES = {0xC0, 0xC2}
WITHOUT_LENGTH = {0x00, 0x01, *range(0xD0, 0xDA), 0xFF}
PER_SET = 500


def segments(data: bytes) -> list[tuple[int, int]]:
    """Begin and end of the segments of all markers that have a length."""
    found, at = [], 2
    while at + 4 <= len(data):
        if data[at] != 0xFF or data[at + 1] in WITHOUT_LENGTH:
            at += 1
            continue
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        found.append((at, min(end, len(data))))
        at = end
    return found


def with_repeated_header(data: bytes) -> bytes:
    """The file with its frame header once more before its end, which libjpeg meets last."""
    begin, end = next(place for place in segments(data) if data[place[0] + 1] in FRAMES)
    return data[:-2] + data[begin:end] + data[-2:]


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """The file with some of: flipped bits, a segment repeated elsewhere, a cut tail."""
    places = segments(data)
    if rng.integers(2):
        begin, end = places[rng.integers(len(places))]
        to = rng.choice([len(data) - 2, *(place[0] for place in places)])
        data = data[:to] + data[begin:end] + data[to:]
    bits = np.frombuffer(data, np.uint8).copy()
    where = rng.integers(2, bits.size, rng.integers(0, 17))
    bits[where] ^= (1 << rng.integers(0, 8, where.size)).astype(np.uint8)
    return bits.tobytes()[: bits.size if rng.integers(2) else rng.integers(4, bits.size)]


def decode_by_kernels(files: list[bytes]) -> None:
    for data in files:
        decode_region(data, (SIDE // 4, SIDE // 4, SIDE // 2, SIDE // 2))
    sides, halves = np.full(len(files), SIDE), Normalisation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    for size in (SIDE, SIDE // 2 + 1):
        for name, how in (("turbo", None), ("fast", halves)):
            geometry = Geometry(size, SIDE)
            made = make_decoder(name, geometry, device="cpu", workers=1, normalisation=how)
            with closing(made) as decoder, suppress(UndecodableImagesError):
                decoder.decode(EncodedBatch(files, sides, sides))


def decode_data_sets(times: int, folders: list[str]) -> None:
    stream.MOST_LEFT_OUT = sys.maxsize  # more damaged images than a loader takes for chance
    for folder in folders:
        dataset = Dataset.open(Path(folder))
        with ShardReader(dataset) as reader:
            files = reader.read(np.arange(len(dataset)))
        for _ in range(times):
            decode_by_kernels(files)
        with coreset.loader(folder, batch=32, size=SIDE, resize=SIDE, workers=2) as loader:
            for _ in loader:
                pass


def decode_in_child(times: int, folders: list[Path]) -> None:
    """Decode data sets where the allocator checks, and overwrites, what is freed."""
    child = subprocess.run(
        [sys.executable, __file__, str(times), *map(str, folders)],
        env=os.environ
        | {"MALLOC_CHECK_": "3", "MALLOC_PERTURB_": "165"}
        # Where the C library has its checks apart from itself; it goes on where it has not.
        | {"LD_PRELOAD": "libc_malloc_debug.so.0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr


def test_an_error_at_the_end_of_an_image_releases_nothing_twice(packed, images):
    files = [with_repeated_header(images.jpeg(SIDE, SIDE, **how).data) for how in SAVED[:2]]
    data_set = packed([images.Stored(data, SIDE, SIDE) for data in files])
    decode_in_child(150, [data_set.path])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_mutated_jpegs_end_no_process(packed, images, seed):
    rng, folders = np.random.default_rng(seed), []
    good = [images.jpeg(SIDE, SIDE, seed=i, **how).data for i, how in enumerate(SAVED)]
    for number in range(10):
        files = [mutated(good[i % len(good)], rng) for i in range(PER_SET)]
        stored = [images.Stored(data, SIDE, SIDE) for data in files]
        folders.append(packed(stored, str(number), samples_per_shard=100).path)
    decode_in_child(1, folders)


if __name__ == "__main__":
    decode_data_sets(int(sys.argv[1]), sys.argv[2:])
