"""Decoded pixels on disk: written chunk by chunk, read from a memory map or from a GPU.

``pixels.u8`` holds row i, the image of sample id i, as uint8 of shape (s, s, 3), and nothing else.
``pixels.json`` says what they are, and while they are made, which chunks are safely on the disk.
"""

import mmap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from coreset.engine.artifacts.provenance import Provenance
from coreset.engine.data.batch import Batch
from coreset.engine.data.buffers import BatchMemory
from coreset.engine.data.geometry import Geometry
from coreset.engine.data.images import (
    DECODE_BATCH,
    DecodedImages,
    central,
    device_bytes,
    put_rows,
    take_rows,
)
from coreset.engine.data.order import BatchOrder
from coreset.engine.data.stream import ImageStream
from coreset.shards.errors import MachineError, StoreError, UsageError
from coreset.shards.format.dataset import Dataset
from coreset.shards.format.documents import build, parse
from coreset.shards.format.files import fsync_path, json_bytes, start_writeback, write_atomically

PIXELS_NAME, INDEX_NAME = "pixels.u8", "pixels.json"
CHUNK_BYTES = 1 << 26
_MAP_FLAGS = mmap.MAP_PRIVATE | 0x4000  # MAP_NORESERVE of Linux: Python names it from 3.13 on
_MAP_PROTECTION = mmap.PROT_READ | mmap.PROT_WRITE


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelsIndex:
    """Contents of ``pixels.json``."""

    n_samples: int
    geometry: Geometry
    batch: int
    """Images that are decoded together."""
    batches_per_chunk: int
    chunks: tuple[str, ...] = ()
    """xxh3_128 of every chunk that is on the disk, in order; the last chunk may be short."""
    undecodable: Mapping[int, str] = field(default_factory=dict[int, str])
    """Samples whose rows are black, by id, and why."""
    format: str = "coreset-pixels"
    format_version: int = 1

    @staticmethod
    def of(n_samples: int, geometry: Geometry) -> "PixelsIndex":
        """Nothing on the disk yet."""
        fitting = CHUNK_BYTES // (3 * geometry.size**2)
        batch = max(1, min(DECODE_BATCH, n_samples, fitting))
        n_batches = max(1, fitting // batch)
        return PixelsIndex(
            n_samples=n_samples, geometry=geometry, batch=batch, batches_per_chunk=n_batches
        )

    @property
    def image_bytes(self) -> int:
        """Bytes of one image."""
        return 3 * self.geometry.size**2

    @property
    def n_bytes(self) -> int:
        """Bytes of all images."""
        return self.n_samples * self.image_bytes

    @property
    def per_chunk(self) -> int:
        """Images of a chunk."""
        return self.batches_per_chunk * self.batch

    @property
    def done(self) -> int:
        """Images on the disk."""
        return min(self.n_samples, len(self.chunks) * self.per_chunk)

    def after(self, digest: str, undecodable: Mapping[int, str]) -> "PixelsIndex":
        """The index with one more chunk; samples beyond it, which were read ahead, stay out."""
        index = replace(self, chunks=(*self.chunks, digest))
        reasons = {
            sample: why for sample, why in sorted(undecodable.items()) if sample < index.done
        }
        return replace(index, undecodable=reasons)

    def to_bytes(self) -> bytes:
        """Canonical JSON."""
        return json_bytes(asdict(self))

    @staticmethod
    def read(path: Path) -> "PixelsIndex":
        """Read ``pixels.json``.

        Raises:
            StoreError: The file is missing, damaged or of another version.
        """
        try:
            index = build(PixelsIndex, parse(path.read_bytes()))
        except (OSError, ValueError, UsageError) as error:
            raise StoreError(f"{path} cannot be read ({error}); remove it, run again") from error
        if (index.format, index.format_version) != ("coreset-pixels", 1):
            raise StoreError(f"{path} is of another version; decode again")
        least = min(index.n_samples, index.batch, index.batches_per_chunk, index.geometry.size)
        if least < 1 or max(index.undecodable, default=0) >= index.n_samples:
            raise StoreError(f"{path} has a number that is out of range; decode again")
        return index


def write_cache(
    source: ImageStream, folder: Path, on_chunk: Callable[[int, int], object]
) -> PixelsIndex:
    """Decode every sample of a data set into ``folder``, after the chunks that are there already.

    Args:
        source: Tolerant, on all samples of its data set.
        folder: Empty, or what an interrupted run with the same geometry left.
        on_chunk: Called with first id and number of images of each chunk that is on the disk.

    Raises:
        StoreError: ``folder`` does not hold what it says it does.
        ManifestError: Too many samples cannot be decoded.
        OSError: The disk is full or fails.
    """
    index, path = begun(folder), folder / PIXELS_NAME
    index = index or PixelsIndex.of(len(source), source.geometry)
    source.undecodable.update(index.undecodable)
    start = len(index.chunks) * index.batches_per_chunk
    batches = source.epoch(BatchOrder(batch=index.batch, start=start, pad=True))
    with path.open("r+b" if index.chunks else "wb") as file:
        file.truncate(index.done * index.image_bytes)
        file.seek(0, 2)
        while index.done < index.n_samples:
            first = index.done
            digest = _append(file, index, islice(batches, index.batches_per_chunk))
            fsync_path(path)
            index = index.after(digest, source.undecodable)
            write_atomically(folder / INDEX_NAME, index.to_bytes())
            on_chunk(first, index.done - first)
    return index


def begun(folder: Path) -> PixelsIndex | None:
    """What an interrupted run left in ``folder``; None if that is no whole chunk.

    Raises:
        StoreError: It is damaged.
    """
    if not (folder / INDEX_NAME).is_file():
        return None
    index, path = PixelsIndex.read(folder / INDEX_NAME), folder / PIXELS_NAME
    there = path.stat().st_size if path.is_file() else 0
    if there < index.done * index.image_bytes:
        raise StoreError(f"{path} lost pixels that were on the disk; remove {folder}, run again")
    return index


def _append(file: IO[bytes], index: PixelsIndex, batches: Iterator[Batch]) -> str:
    """Append batches and give them to the disk at once; returns the digest of their bytes."""
    hasher, first = xxhash.xxh3_128(), index.done
    for batch in batches:
        n = min(index.batch, index.n_samples - first)
        rows, at = _rows(batch, first, n), file.tell()
        file.write(rows.data)
        file.flush()
        start_writeback(file, at, rows.nbytes)
        hasher.update(rows.data)
        first += n
    return hasher.hexdigest()


def _rows(batch: Batch, first: int, n: int) -> NDArray[np.uint8]:
    """Images of the ids from ``first`` on, uint8 (n, s, s, 3); black where there is none."""
    images_bhwc = batch.images.permute(0, 2, 3, 1).cpu().numpy()
    ids = batch.ids.cpu().numpy()
    there = ids >= 0
    if there.sum() == n:
        return np.ascontiguousarray(images_bhwc[:n])
    rows = np.zeros((n, *images_bhwc.shape[1:]), np.uint8)
    rows[ids[there] - first] = images_bhwc[there]
    return rows


def open_cache(
    path: Path,
    dataset: Dataset,
    *,
    device: str = "cpu",
    ids: NDArray[np.int64] | None = None,
    size: int | None = None,
    limit_share: float = 0.5,
    verify: bool = False,
    workers: int = 0,
) -> DecodedImages:
    """Open what ``coreset decode`` made of ``dataset``, or of a pack of the same images.

    On the host they are a memory map. On a GPU they are resident where they fit, else mapped too.

    Args:
        path: The pixels.
        dataset: Gives ids and labels.
        device: Where batches are handed over.
        ids: int64 of shape (n,), the samples to read (a coreset); None means all.
        size: Side of the batches' images: the central square; None: all of it.
        limit_share: Share of a GPU's free memory that may be taken.
        verify: Compare all bytes with their digests first.
        workers: Threads that take random crops on a CPU; 0 means one per core.

    Raises:
        UsageError: ``path`` holds no pixels or those of other images, or ``size`` is too large.
        StoreError: The pixels are damaged.
        MachineError: The pixels cannot be mapped.
    """
    index = _checked_index(path, dataset)
    if verify:
        verify_cache(path)
    chosen = np.arange(index.n_samples) if ids is None else ids
    mapped, target = _mapped(path / PIXELS_NAME, index), torch.device(device)
    rows: NDArray[np.int64] | None = chosen
    side = size or index.geometry.size
    if target.type == "cuda" and chosen.size * 3 * side**2 <= limit_share * device_bytes(target):
        mapped, rows = loaded(central(mapped, side), chosen, target), None
    return DecodedImages(
        mapped.permute(0, 3, 1, 2),
        dataset.labels[chosen],
        chosen,
        rows=rows,
        undecodable=index.undecodable,
        size=size,
        device=target,
        workers=workers,
    )


def loaded(images_nhwc: Tensor, rows: NDArray[np.int64], device: torch.device) -> Tensor:
    """Copy rows of host memory to a device, a batch at a time."""
    memory = BatchMemory()
    resident = images_nhwc.new_empty((rows.size, *images_nhwc.shape[1:]), device=device)
    for first in range(0, rows.size, DECODE_BATCH):
        part = take_rows(images_nhwc, rows[first : first + DECODE_BATCH], memory)
        put_rows(part, resident[first : first + DECODE_BATCH])
    return resident


def verify_cache(path: Path) -> None:
    """Compare every chunk with its digest.

    Raises:
        StoreError: One differs, or the file is cut.
    """
    index = PixelsIndex.read(path / INDEX_NAME)
    with (path / PIXELS_NAME).open("rb") as file:
        for number, digest in enumerate(index.chunks):
            if xxhash.xxh3_128_hexdigest(file.read(index.per_chunk * index.image_bytes)) != digest:
                raise StoreError(
                    f"{path / PIXELS_NAME} is damaged in row {number * index.per_chunk} or in the "
                    f"{index.per_chunk - 1} after it; remove {path}, decode again"
                )


def _checked_index(path: Path, dataset: Dataset) -> PixelsIndex:
    """The index, of finished pixels of the images of ``dataset``."""
    provenance = Provenance.read(path)
    if provenance.kind != "pixels":
        raise UsageError(f"{path} is not pixels, but {provenance.kind}; run `coreset decode` first")
    there, here = str(provenance.binding("content")), dataset.manifest.content
    if there != here:
        raise UsageError(
            f"{path} was decoded from other images than {dataset.path} holds (content {there[:12]} "
            f"there, {here[:12]} here); run `coreset decode {dataset.path} PIXELS`"
        )
    index = PixelsIndex.read(path / INDEX_NAME)
    pixels = path / PIXELS_NAME
    there = pixels.stat().st_size if pixels.is_file() else 0
    if there != index.n_bytes or index.done != index.n_samples or index.n_samples != len(dataset):
        fact = f"has {there:,} of its {index.n_bytes:,} bytes"
        raise StoreError(f"{pixels} {fact}; remove {path}, decode again")
    return index


def _mapped(path: Path, index: PixelsIndex) -> Tensor:
    """The file as a tensor of shape (n, s, s, 3).

    Private, so that nothing that is written to the tensor reaches the file; writable, as torch has
    no other tensors; without reservation, or the kernel would refuse files larger than the memory.
    """
    try:
        with path.open("rb") as file:
            memory = mmap.mmap(file.fileno(), index.n_bytes, _MAP_FLAGS, _MAP_PROTECTION)
    except OSError as error:
        raise MachineError(
            f"{path} cannot be mapped ({error.strerror}); allow overcommitted memory "
            "(vm.overcommit_memory 0 or 1)"
        ) from error
    side = index.geometry.size
    return torch.from_numpy(np.frombuffer(memory, np.uint8).reshape(-1, side, side, 3))
