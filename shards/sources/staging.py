"""Images of files that cannot be read at random, written once into files that can.

The images of a file go, as they are, into one file below a spool folder, and are byte ranges of it
from then on. A table of the ranges beside it, written last, commits that file: what a kill left is
continued with the next one. Whoever packs removes the folder when it is done.
"""

import fcntl
import os
import shutil
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq
from xxhash import xxh3_128_digest

from coreset.shards.errors import LockedError, MachineError, UsageError
from coreset.shards.format.files import (
    new_file,
    sync_and_rename,
    temporary_name,
    unlink_link,
    write_atomically,
)
from coreset.shards.sources.base import SourceOptions, compute

# What ``coreset.shards.packing.pack`` counts for a sample besides its bytes.
_PACKED_EXTRA_BYTES = 2400
_BINDING = b"spooled"
_SPOOLED = pa.schema(
    [
        ("row", pa.int64()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("path", pa.large_string()),
        ("there", pa.bool_()),
        ("hash", pa.binary(16)),
    ]
)
Rows: TypeAlias = Any  # pyarrow.Table, which has no types


class Image(NamedTuple):
    """One image as it is stored."""

    row: int
    data: Any
    """Its bytes as a buffer; None if there are none."""
    path: str | None


class StagedFile(Protocol):
    """A file whose images can only be read one after the other."""

    @property
    def path(self) -> Path:
        """The file; its stem is unlike that of the other files of its source."""
        ...

    @property
    def state(self) -> tuple[int, int]:
        """Its bytes and modification time (ns) when it was looked at."""
        ...

    @property
    def binding(self) -> bytes:
        """What the spooled bytes depend on; other spooled bytes are not taken."""
        ...

    @property
    def n_images(self) -> int:
        """Images to spool."""
        ...

    @property
    def image_bytes(self) -> int:
        """Their estimated bytes."""
        ...

    def images(self) -> Iterator[Image]:
        """Yield the images to spool."""
        ...


def staged(origins: Sequence[StagedFile], folder: Path, options: SourceOptions) -> Iterator[Rows]:
    """Yield a table for each file: ``row``, ``path``, whether an image is ``there``, and its range.

    Ranges (``offset``, ``size``) are those of ``blob_of`` the file, ``hash`` is the xxh3_128 of the
    bytes. Files that are spooled already,
    as they are now, are not spooled again. ``options.on_spooled`` is told of the others as they are
    written, in estimated bytes.

    Raises:
        UsageError: A file is written to.
        MachineError: The disk is too small or full; what was spooled is kept.
        LockedError: Another process is spooling into the same folder.
    """
    missing = [origin for origin in origins if _committed(origin, folder) is None]
    account = _Account(sum(origin.image_bytes for origin in missing), options.on_spooled)
    with _only_spooler(folder) if missing else nullcontext():
        _require_space(origins, missing, folder, room_to_pack=options.room_to_pack)
        for origin in origins:
            rows = _committed(origin, folder)
            yield _spool(origin, folder, account) if rows is None else rows


def blob_of(origin: StagedFile, folder: Path) -> Path:
    """File that the images of a file are spooled into."""
    return folder / f"{origin.path.stem}.images"


def state_of(path: Path) -> tuple[int, int]:
    """Bytes and modification time (ns) of a file."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@dataclass(slots=True)
class _Account:
    """Tells how much of the estimated bytes is written; ends at their sum, however far off."""

    total: int
    on_spooled: Callable[[int, int], None] | None
    finished: int = 0

    def written(self, origin: StagedFile, size: int) -> None:
        if self.on_spooled is not None and self.total:
            self.on_spooled(self.finished + min(size, origin.image_bytes), self.total)

    def finish(self, origin: StagedFile) -> None:
        self.written(origin, origin.image_bytes)
        self.finished += origin.image_bytes


def _index_of(origin: StagedFile, folder: Path) -> Path:
    return folder / f"{origin.path.stem}.rows.parquet"


def _committed(origin: StagedFile, folder: Path) -> Rows:
    """Rows of ``_SPOOLED`` if a file is spooled already as it is now, else None."""
    try:
        with pq.ParquetFile(_index_of(origin, folder)) as file:
            rows = file.read(columns=_SPOOLED.names)
        state = state_of(blob_of(origin, folder))
    except (OSError, pa.ArrowException):
        return None
    whole = rows.column_names == _SPOOLED.names and state == (
        compute.sum(rows["size"]).as_py() or 0,
        origin.state[1],
    )
    bound = (rows.schema.metadata or {}).get(_BINDING) == origin.binding
    return rows if whole and bound else None


def _spool(origin: StagedFile, folder: Path, account: _Account) -> Rows:
    """Write the images of a file, then the table that commits them.

    The written file takes the modification time of the other: an interrupted packing is bound to
    it, also if the spool folder was lost and is made again.
    """
    blob = blob_of(origin, folder)
    scratch = temporary_name(blob)
    account.written(origin, 0)
    try:
        with new_file(scratch) as out:
            rows = _write(origin, out, account)
            out.flush()
            os.utime(out.fileno(), ns=(origin.state[1], origin.state[1]))
            sync_and_rename(out, blob)
        sink = pa.BufferOutputStream()
        pq.write_table(rows, sink)
        write_atomically(_index_of(origin, folder), sink.getvalue().to_pybytes())
    except OSError as error:
        free = shutil.disk_usage(folder).free
        raise MachineError(
            f"{blob} cannot be written ({error.strerror}; about {origin.image_bytes:,} bytes are "
            f"needed, {free:,} are free); mend that, and the same command continues"
        ) from error
    finally:
        scratch.unlink(missing_ok=True)
    account.finish(origin)
    return rows


def _write(origin: StagedFile, out: Any, account: _Account) -> Rows:  # noqa: ANN401 - IO[bytes], which takes any buffer
    columns: dict[str, list[Any]] = {name: [] for name in _SPOOLED.names}
    offset = 0
    for image in origin.images():
        size = 0 if image.data is None else out.write(image.data)
        there = image.data is not None
        digest = xxh3_128_digest(image.data or b"")
        row = (image.row, offset, size, image.path, there, digest)
        for column, value in zip(columns.values(), row, strict=True):
            column.append(value)
        offset += size
        account.written(origin, offset)
    _require_unchanged(origin)
    rows = pa.table(columns, schema=_SPOOLED)
    return rows.replace_schema_metadata({_BINDING: origin.binding})


def _require_unchanged(origin: StagedFile) -> None:
    state = None
    with suppress(OSError):
        state = state_of(origin.path)
    if state != origin.state:
        raise UsageError(
            f"{origin.path} changed while it was read; pack again when nothing writes to it"
        )


def _require_space(
    origins: Sequence[StagedFile],
    missing: Sequence[StagedFile],
    folder: Path,
    *,
    room_to_pack: bool,
) -> None:
    """Check before the long part that what is to be spooled fits, and all of it packed beside it.

    Shards that an interrupted packing has written already are counted as if they were not there,
    which matters only where the spooled files were lost since; with nothing to spool, packing
    itself checks what it needs.
    """
    if not missing:
        return
    needed = sum(origin.image_bytes for origin in missing)
    what = "decompressing parquet files"
    if room_to_pack:
        needed += sum(one.image_bytes + _PACKED_EXTRA_BYTES * one.n_images for one in origins)
        what += " and packing them"
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise MachineError(
            f"{what} needs {needed:,} bytes in {folder.parent}, {free:,} are free; free some space "
            "or choose another output"
        )


@contextmanager
def _only_spooler(folder: Path) -> Generator[None]:
    """Keep other processes from spooling into the folder; released also on ``kill -9``."""
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
