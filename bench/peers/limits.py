"""Limits of packing: one part of the work alone, on the same threads.

Every limit but the copy works from memory.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

import numpy as np
import simplejpeg
import xxhash
from numpy.typing import NDArray

from coreset.bench.inputs import QUALITY, SHORT_SIDE, Labelled
from coreset.shards.format.files import fsync_path
from coreset.shards.format.tar import ShardWriter, shard_name
from coreset.shards.images.probe import glance, probe
from coreset.shards.packing.encode import reencode

_Item = TypeVar("_Item")
_ITEMS_PER_TASK = 200


def on_threads(
    work: Callable[[Sequence[_Item]], None],
    items: Sequence[_Item],
    threads: int,
    per_task: int = _ITEMS_PER_TASK,
) -> None:
    """Call ``work`` on all items, a slice at a time."""
    slices = [items[at : at + per_task] for at in range(0, len(items), per_task)]
    with ThreadPoolExecutor(threads) as pool:
        for task in [pool.submit(work, one) for one in slices]:
            task.result()


def decode(images: Sequence[bytes]) -> None:
    """Decode at full size, into memory that is there already."""
    buffer = bytearray(max(_pixel_bytes(data) for data in images))
    for data in images:
        simplejpeg.decode_jpeg(data, "RGB", buffer=buffer, strict=True)


def check(images: Sequence[bytes]) -> None:
    """Check images as ``coreset pack`` does."""
    for data in images:
        probe(data)


def digest(images: Sequence[bytes]) -> None:
    """Compute the sha256 that the manifest records of every shard."""
    hasher = sha256()
    for data in images:
        hasher.update(data)


def decode_and_encode(images: Sequence[bytes], pixels: Mapping[bytes, NDArray[np.uint8]]) -> None:
    """Decode at full size, then encode the pixels of the same image that were resized before."""
    buffer = bytearray(max(_pixel_bytes(data) for data in images))
    for data in images:
        simplejpeg.decode_jpeg(data, "RGB", buffer=buffer, strict=True)
        simplejpeg.encode_jpeg(pixels[data], QUALITY, "RGB", "420")


def resize(images: Sequence[bytes]) -> None:
    """Re-encode as ``--store resized`` does; images that keep their bytes are checked."""
    for data in images:
        _resized(data)


def resize_shard(out: Path, files: Sequence[Labelled], first: int) -> None:
    """Fill a shard with the least work: read, hash, resize, hash, lay out, write.

    No list of files is made or compared, and there are no tables and nothing to resume.
    """
    writer = ShardWriter(out / shard_name(first))
    for number, (path, label) in enumerate(files, first):
        data = path.read_bytes()
        xxhash.xxh3_128_hexdigest(data)
        stored = _resized(data)
        xxhash.xxh3_128_hexdigest(stored)
        writer.add(number, "jpg", stored, label)
    writer.finish()


def copy(files: Sequence[Labelled], out: Path, threads: int, files_per_shard: int) -> None:
    """Write the bytes of all files, one output per shard, through fsync: the disk's limit."""

    def copy_slice(numbered: Sequence[tuple[int, Labelled]]) -> None:
        with (out / f"{numbered[0][0]:09d}").open("wb", buffering=1 << 20) as sink:
            for _, (path, _) in numbered:
                sink.write(path.read_bytes())
            sink.flush()
            os.fsync(sink.fileno())

    on_threads(copy_slice, [*enumerate(files)], threads, files_per_shard)
    fsync_path(out)


def _resized(data: bytes) -> bytes:
    stored = reencode(data, glance(data), short_side=SHORT_SIDE, quality=QUALITY)[0]
    if stored is data:
        probe(data)
    return stored


def _pixel_bytes(data: bytes) -> int:
    height, width = map(int, simplejpeg.decode_jpeg_header(data)[:2])
    return 3 * height * width
