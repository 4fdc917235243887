"""Copies of images out of files that cannot be read at random into files that can.

The images of one file go unchanged into one file of a spool folder, and are byte ranges of it from
then on. A table of the ranges, written last, commits that file: a later run continues. The stage
that packs the images removes the folder.
"""

import fcntl
import os
import shutil
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq
from xxhash import xxh3_128_digest

from coreset.shards.arrow import ArrowTable
from coreset.shards.errors import LockedError, MachineError, UsageError
from coreset.shards.format.files import (
    replacing,
    require_space,
    temporary_name,
    unlink_link,
    write_atomically,
)
from coreset.shards.sources.base import SourceOptions, compute
from coreset.shards.sources.finder import state_of

# Headers, label and padding of a packed sample come to 1.8 KiB, its rows to 0.5 KiB.
PACKED_EXTRA_BYTES = 2400
_BINDING = "spooled"
_INDEX_SUFFIX = ".rows.parquet"
Image: TypeAlias = tuple[int, Any, str | None]
"""Row, bytes if there are any, and path of an image as it is stored."""
_SPOOLED = pa.schema({
    "row": pa.int64(), "offset": pa.int64(), "size": pa.int64(), "path": pa.large_string(),
    "there": pa.bool_(), "hash": pa.binary(16),
})  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedFile:
    """File whose images can only be read in order; no other of the source has its stem."""

    path: Path
    state: tuple[int, int]
    """Size in bytes and modification time (ns) when the file was looked at."""
    binding: bytes
    """Fingerprint of all that the spooled bytes depend on; others are not used."""
    n_images: int
    image_bytes: int
    """Estimate; the images of a file count as equally large."""
    images: Callable[[], Iterator[Image]]


def blob_of(path: Path, folder: Path) -> Path:
    """Return the file that the images of a file are spooled into."""
    return folder / f"{path.stem}.images"


def staged(
    files: Sequence[StagedFile], folder: Path, options: SourceOptions
) -> Iterator[ArrowTable]:
    """Yield a table for each file: row, path, whether it has an image (``there``), range and hash.

    Ranges (``offset``, ``size``) are those of ``blob_of`` the file, ``hash`` is the xxh3_128 of the
    bytes. Files that are spooled already, as they are now, are not spooled again. Progress goes to
    ``options.on_spooled`` and ends at the sum of the estimates.

    Raises:
        UsageError: A file is written to.
        MachineError: The disk is too small or full; what was spooled is kept.
        LockedError: Another process is spooling into the same folder.
    """
    committed = [_committed(file, blob_of(file.path, folder)) for file in files]
    missing = [file for file, rows in zip(files, committed, strict=True) if rows is None]
    total, finished = sum(file.image_bytes for file in missing), 0

    def written(file: StagedFile, size: int) -> None:
        if options.on_spooled is not None and total:
            options.on_spooled(finished + min(size, file.image_bytes), total)

    with _only_spooler(folder) if missing else nullcontext():
        if missing:  # with nothing to spool, packing itself checks its need
            packed = sum(file.image_bytes + PACKED_EXTRA_BYTES * file.n_images for file in files)
            what = "decompressing parquet files" + " and packing them" * options.room_to_pack
            require_space(total + packed * options.room_to_pack, folder, what)
        for file, rows in zip(files, committed, strict=True):
            if rows is None:
                yield _spool(file, folder, partial(written, file))
                finished += file.image_bytes
            else:
                yield rows


def _committed(file: StagedFile, blob: Path) -> ArrowTable | None:
    try:
        with pq.ParquetFile(blob.with_suffix(_INDEX_SUFFIX)) as index:
            rows = index.read()
        state = state_of(blob)
    except (OSError, pa.ArrowException):
        return None
    schema = _SPOOLED.with_metadata({_BINDING: file.binding})
    bound = rows.schema.equals(schema, check_metadata=True)
    whole = bound and state == (compute.sum(rows["size"]).as_py() or 0, file.state[1])
    return rows if whole else None


def _spool(file: StagedFile, folder: Path, written: Callable[[int], None]) -> ArrowTable:
    blob = blob_of(file.path, folder)
    written(0)
    try:
        with replacing(blob) as out:
            rows = _write(file, out, written)
            out.flush()
            # An interrupted packing continues also if the spool was lost and is made again.
            os.utime(out.fileno(), ns=(file.state[1], file.state[1]))
        sink = pa.BufferOutputStream()
        pq.write_table(rows, sink)
        write_atomically(blob.with_suffix(_INDEX_SUFFIX), sink.getvalue().to_pybytes())
    except OSError as error:
        free = shutil.disk_usage(folder).free
        raise MachineError(
            f"{blob} cannot be written ({error.strerror}; about {file.image_bytes:,} bytes are "
            f"needed, {free:,} are free); mend that, and the same command continues"
        ) from error
    finally:
        temporary_name(blob).unlink(missing_ok=True)
    written(file.image_bytes)
    return rows


def _write(file: StagedFile, out: IO[bytes], written: Callable[[int], None]) -> ArrowTable:
    rows: list[tuple[Any, ...]] = []
    offset = 0
    for row, data, path in file.images():
        size = 0 if data is None else out.write(data)
        rows.append((row, offset, size, path, data is not None, xxh3_128_digest(data or b"")))
        offset += size
        written(offset)
    state = None
    with suppress(OSError):
        state = state_of(file.path)
    if state != file.state:
        raise UsageError(
            f"{file.path} changed while it was read; pack again when nothing writes to it"
        )
    columns = list(zip(*rows, strict=True)) or [()] * len(_SPOOLED)
    return pa.table(columns, schema=_SPOOLED.with_metadata({_BINDING: file.binding}))


@contextmanager
def _only_spooler(folder: Path) -> Generator[None]:
    unlink_link(folder)
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LockedError(
                f"{folder} is being filled by another process; wait for it or choose another output"
            ) from error
        yield
    finally:
        os.close(descriptor)
