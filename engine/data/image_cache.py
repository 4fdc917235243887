"""Decoded pixels on disk: written chunk by chunk, read from a memory map or from a GPU.

``pixels.u8`` holds the image of each sample id as uint8 of shape (s, s, 3), and nothing else.
``pixels.json`` says what they are, and while they are made, which chunks are safely on the disk.
"""

import mmap
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np
import torch
import xxhash
from torch import Tensor

from coreset.engine.artifacts.provenance import Provenance
from coreset.engine.data.geometry import Geometry, Ints
from coreset.engine.data.images import DECODE_BATCH, DecodedImages, EpochSource, decode_all
from coreset.engine.data.order import BatchOrder
from coreset.engine.data.residency import Capacity, Place, choose_place
from coreset.engine.data.stream import Batch, ImageStream
from coreset.engine.runtime.limits import decoded_bytes
from coreset.engine.runtime.progress import progress, say
from coreset.engine.runtime.text import readable_bytes
from coreset.shards.errors import MachineError, StoreError, UsageError
from coreset.shards.format.dataset import Dataset
from coreset.shards.format.files import (
    build,
    fsync_path,
    json_bytes,
    parse,
    start_writeback,
    write_atomically,
)

PIXELS_NAME, INDEX_NAME = "pixels.u8", "pixels.json"
KEPT_NAME = ".images"
"""Folder of images that a run decoded for itself."""
CHUNK_BYTES = 1 << 26
_MAP_FLAGS = mmap.MAP_PRIVATE | 0x4000  # MAP_NORESERVE of Linux: Python names it from 3.13 on


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
        """Describe pixels of which nothing is on the disk yet."""
        fitting = CHUNK_BYTES // (3 * geometry.size**2)
        batch = max(1, min(DECODE_BATCH, n_samples, fitting))
        return PixelsIndex(
            n_samples=n_samples,
            geometry=geometry,
            batch=batch,
            batches_per_chunk=max(1, fitting // batch),
        )

    @property
    def n_bytes(self) -> int:
        """Bytes of all images."""
        return decoded_bytes(self.n_samples, self.geometry.size)

    @property
    def done(self) -> int:
        """Images on the disk."""
        return min(self.n_samples, len(self.chunks) * self.batches_per_chunk * self.batch)

    @staticmethod
    def read(path: Path) -> "PixelsIndex":
        """Read ``pixels.json``, or raise ``StoreError``."""
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
    """Decode all of a data set into ``folder``, after the chunks that are there already.

    ``on_chunk`` gets first id and number of images of each chunk that is on the disk.
    """
    path = folder / PIXELS_NAME
    index = begun(folder) or PixelsIndex.of(len(source), source.geometry)
    source.undecodable.update(index.undecodable)
    start = len(index.chunks) * index.batches_per_chunk
    batches = source.epoch(BatchOrder(batch=index.batch, start=start, pad=True))
    with path.open("r+b" if index.chunks else "wb") as file:
        file.truncate(decoded_bytes(index.done, source.geometry.size))
        file.seek(0, 2)
        while index.done < index.n_samples:
            first = index.done
            digest = _append(file, index, islice(batches, index.batches_per_chunk))
            fsync_path(path)
            index = replace(index, chunks=(*index.chunks, digest))
            # Samples beyond the chunk were met by reading ahead.
            lost = {i: why for i, why in sorted(source.undecodable.items()) if i < index.done}
            index = replace(index, undecodable=lost)
            document = asdict(index)
            if not index.geometry.bicubic:  # a field that version 1 of the format does not know
                del document["geometry"]["bicubic"]
            write_atomically(folder / INDEX_NAME, json_bytes(document))
            on_chunk(first, index.done - first)
    return index


def begun(folder: Path) -> PixelsIndex | None:
    """Read what an interrupted run left in ``folder``; None if that is no whole chunk."""
    if not (folder / INDEX_NAME).is_file():
        return None
    index, path = PixelsIndex.read(folder / INDEX_NAME), folder / PIXELS_NAME
    n_bytes = path.stat().st_size if path.is_file() else 0
    if n_bytes < decoded_bytes(index.done, index.geometry.size):
        raise StoreError(f"{path} lost pixels that were on the disk; remove {folder}, run again")
    return index


def _append(file: IO[bytes], index: PixelsIndex, batches: Iterator[Batch]) -> str:
    """Append padded batches, black where undecodable; return the digest of their bytes."""
    hasher, first = xxhash.xxh3_128(), index.done
    for batch in batches:
        ids, n = batch.ids.cpu().numpy(), min(index.batch, index.n_samples - first)
        ids = ids[ids >= 0]
        images_bhwc = batch.images.permute(0, 2, 3, 1).cpu().numpy()
        rows = np.ascontiguousarray(images_bhwc[:n])
        if ids.size < n:
            rows = np.zeros_like(rows)
            rows[ids - first] = images_bhwc[: ids.size]
        place = file.tell()
        file.write(rows.data)
        file.flush()
        start_writeback(file, place, rows.nbytes)
        hasher.update(rows.data)
        first += n
    return hasher.hexdigest()


def open_cache(
    path: Path, dataset: Dataset, *, device: str = "cpu", ids: Ints | None = None
) -> DecodedImages:
    """Open what ``coreset decode`` made of ``dataset``, or of a pack of the same images.

    On the host they are a memory map. On a GPU they are resident where they fit, else mapped too.
    Batches come on ``device``, of the samples ``ids``, or of all.

    Raises:
        UsageError: ``path`` holds no pixels, or those of other images.
        StoreError: The pixels are damaged.
        MachineError: The pixels cannot be mapped.
    """
    index = _checked_index(path, dataset)
    images_nhwc, target = _mapped(path / PIXELS_NAME, index), torch.device(device)
    chosen, rows = np.arange(len(dataset)) if ids is None else ids, ids
    n_bytes = decoded_bytes(chosen.size, index.geometry.size)
    if choose_place(n_bytes, Capacity.of(target, None), epochs=1) is Place.DEVICE:
        images_nhwc, rows = _resident(images_nhwc, ids, target), None
    return DecodedImages(
        images_nhwc.permute(0, 3, 1, 2),
        dataset.labels[chosen],
        chosen,
        undecodable=index.undecodable,
        device=target,
        rows=rows,
    )


def _resident(images_nhwc: Tensor, ids: Ints | None, device: torch.device) -> Tensor:
    """Copy all images, or those of ``ids`` batch by batch, to a device."""
    if ids is None:
        return images_nhwc.to(device)
    resident = images_nhwc.new_empty((ids.size, *images_nhwc.shape[1:]), device=device)
    parts = torch.from_numpy(ids).split(DECODE_BATCH)
    for place, part in zip(resident.split(DECODE_BATCH), parts, strict=True):
        place.copy_(images_nhwc[part])
    return resident


def keep_images(
    source: ImageStream,
    *,
    epochs: int,
    batch_pixels: int = 0,
    scratch: Path | None = None,
) -> EpochSource:
    """Decode ``source`` once into the place that `choose_place` chooses, and close it; or keep it.

    Without ``scratch`` there is no file. What an interrupted run wrote is used again.
    """
    n, side = len(source), source.geometry.size
    capacity = Capacity.of(source.device, scratch)
    needed = decoded_bytes(n, side)
    place = choose_place(needed, capacity, epochs=epochs, batch_pixels=batch_pixels)
    if capacity.device or place is not Place.HOST:  # that a CPU's memory holds them is usual
        say(f"{n:,} images of {side} px, {readable_bytes(needed)}, kept {place} ({capacity})")
    if place is Place.NOWHERE:
        return source
    with closing(source), progress("decode", n) as bar:
        if place is not Place.FILE or scratch is None:
            on = source.device if place is Place.DEVICE else torch.device("cpu")
            return decode_all(source, on, bar.advance)
        folder = scratch / KEPT_NAME
        folder.mkdir(exist_ok=True)
        index = write_cache(source, folder, lambda _, done: bar.advance(done))
        return DecodedImages.of(source, _mapped(folder / PIXELS_NAME, index))


def _checked_index(path: Path, dataset: Dataset) -> PixelsIndex:
    """Read the index of finished pixels of the images of ``dataset``."""
    provenance = Provenance.read(path)
    if provenance.kind != "pixels":
        raise UsageError(f"{path} is not pixels, but {provenance.kind}; run `coreset decode` first")
    theirs, ours = str(provenance.binding("content")), dataset.manifest.content
    if theirs != ours:
        raise UsageError(
            f"{path} was decoded from other images than {dataset.path} holds (content "
            f"{theirs[:12]} there, {ours[:12]} here); run `coreset decode {dataset.path} PIXELS`"
        )
    index = PixelsIndex.read(path / INDEX_NAME)
    pixels = path / PIXELS_NAME
    n_bytes = pixels.stat().st_size if pixels.is_file() else 0
    if n_bytes != index.n_bytes or index.done != index.n_samples or index.n_samples != len(dataset):
        raise StoreError(
            f"{pixels} has {n_bytes:,} of its {index.n_bytes:,} bytes; remove {path}, decode again"
        )
    return index


def _mapped(path: Path, index: PixelsIndex) -> Tensor:
    """Map the file as a tensor of shape (n, s, s, 3).

    Private and writable, as torch has no read-only tensors; without reservation, or the kernel
    would refuse files larger than the memory.
    """
    try:
        with path.open("rb") as file:
            access = mmap.PROT_READ | mmap.PROT_WRITE
            memory = mmap.mmap(file.fileno(), index.n_bytes, _MAP_FLAGS, access)
    except OSError as error:
        raise MachineError(
            f"{path} cannot be mapped ({error.strerror}); allow overcommitted memory "
            "(vm.overcommit_memory 0 or 1)"
        ) from error
    side = index.geometry.size
    return torch.from_numpy(np.frombuffer(memory, np.uint8).reshape(-1, side, side, 3))
