"""Copy images out of files that cannot be read at random into files that can.

The images of one file go unchanged into one file in a spool folder, and are byte ranges of it from
then on. A table of the ranges, written last, commits that file: after a kill the next one follows.
The stage that packs the images removes the folder.
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
    """Buffer of the file; None if there is none."""
    path: str | None


class StagedFile(Protocol):
    """File whose images can only be read one after the other."""

    @property
    def path(self) -> Path:
        """Path, whose stem no other file of the source has."""
        ...

    @property
    def state(self) -> tuple[int, int]:
        """Size in bytes and modification time (ns) when the file was looked at."""
        ...

    @property
    def binding(self) -> bytes:
        """Fingerprint of all that the spooled bytes depend on; others are not used."""
        ...

    @property
    def n_images(self) -> int:
        """Images to spool."""
        ...

    @property
    def image_bytes(self) -> int:
        """Estimated bytes of the images to spool."""
        ...

    def images(self) -> Iterator[Image]:
        """Yield the images to spool."""
        ...


def staged(files: Sequence[StagedFile], folder: Path, options: SourceOptions) -> Iterator[Rows]:
    """Yield a table for each file: row, path, whether it has an image (``there``), range and hash.

    Ranges (``offset``, ``size``) are those of ``blob_of`` the file, ``hash`` is the xxh3_128 of the
    bytes. Files that are spooled already, as they are now, are not spooled again. Progress of the
    others goes to ``options.on_spooled``, in estimated bytes.

    Raises:
        UsageError: A file is written to.
        MachineError: The disk is too small or full; what was spooled is kept.
        LockedError: Another process is spooling into the same folder.
    """
    missing = [file for file in files if _committed(file, folder) is None]
    account = _Account(sum(file.image_bytes for file in missing), options.on_spooled)
    with _only_spooler(folder) if missing else nullcontext():
        _require_space(files, missing, folder, room_to_pack=options.room_to_pack)
        for file in files:
            rows = _committed(file, folder)
            yield _spool(file, folder, account) if rows is None else rows


def blob_of(file: StagedFile, folder: Path) -> Path:
    """Return the file that the images of a file are spooled into."""
    return folder / f"{file.path.stem}.images"


def state_of(path: Path) -> tuple[int, int]:
    """Return size in bytes and modification time (ns) of a file."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@dataclass(slots=True)
class _Account:
    """Progress in estimated bytes, which ends at their sum however far off they are."""

    total: int
    on_spooled: Callable[[int, int], None] | None
    finished: int = 0

    def written(self, file: StagedFile, size: int) -> None:
        if self.on_spooled is not None and self.total:
            self.on_spooled(self.finished + min(size, file.image_bytes), self.total)

    def finish(self, file: StagedFile) -> None:
        self.written(file, file.image_bytes)
        self.finished += file.image_bytes


def _index_of(file: StagedFile, folder: Path) -> Path:
    return folder / f"{file.path.stem}.rows.parquet"


def _committed(file: StagedFile, folder: Path) -> Rows:
    """Return the rows of a file that is spooled already as it is now, else None."""
    try:
        with pq.ParquetFile(_index_of(file, folder)) as index:
            rows = index.read(columns=_SPOOLED.names)
        state = state_of(blob_of(file, folder))
    except (OSError, pa.ArrowException):
        return None
    whole = rows.column_names == _SPOOLED.names and state == (
        compute.sum(rows["size"]).as_py() or 0,
        file.state[1],
    )
    bound = (rows.schema.metadata or {}).get(_BINDING) == file.binding
    return rows if whole and bound else None


def _spool(file: StagedFile, folder: Path, account: _Account) -> Rows:
    """Write the images of a file, then the table that commits them.

    The spooled file takes the modification time of the fileal, so that an interrupted packing
    continues after the spool folder was lost and is made again.
    """
    blob = blob_of(file, folder)
    scratch = temporary_name(blob)
    account.written(file, 0)
    try:
        with new_file(scratch) as out:
            rows = _write(file, out, account)
            out.flush()
            os.utime(out.fileno(), ns=(file.state[1], file.state[1]))
            sync_and_rename(out, blob)
        sink = pa.BufferOutputStream()
        pq.write_table(rows, sink)
        write_atomically(_index_of(file, folder), sink.getvalue().to_pybytes())
    except OSError as error:
        free = shutil.disk_usage(folder).free
        raise MachineError(
            f"{blob} cannot be written ({error.strerror}; about {file.image_bytes:,} bytes are "
            f"needed, {free:,} are free); mend that, and the same command continues"
        ) from error
    finally:
        scratch.unlink(missing_ok=True)
    account.finish(file)
    return rows


def _write(file: StagedFile, out: Any, account: _Account) -> Rows:  # noqa: ANN401 - IO[bytes], which takes any buffer
    columns: dict[str, list[Any]] = {name: [] for name in _SPOOLED.names}
    offset = 0
    for image in file.images():
        has_bytes = image.data is not None
        size = out.write(image.data) if has_bytes else 0
        digest = xxh3_128_digest(image.data or b"")
        row = (image.row, offset, size, image.path, has_bytes, digest)
        for column, value in zip(columns.values(), row, strict=True):
            column.append(value)
        offset += size
        account.written(file, offset)
    _require_unchanged(file)
    rows = pa.table(columns, schema=_SPOOLED)
    return rows.replace_schema_metadata({_BINDING: file.binding})


def _require_unchanged(file: StagedFile) -> None:
    state = None
    with suppress(OSError):
        state = state_of(file.path)
    if state != file.state:
        raise UsageError(
            f"{file.path} changed while it was read; pack again when nothing writes to it"
        )


def _require_space(
    files: Sequence[StagedFile],
    missing: Sequence[StagedFile],
    folder: Path,
    *,
    room_to_pack: bool,
) -> None:
    """Refuse a disk without room for the spooled images and all of them packed beside these.

    Shards that an interrupted packing has written already count as missing, which matters only if
    the spooled files were lost since. With nothing to spool, packing itself checks its need.
    """
    if not missing:
        return
    needed = sum(file.image_bytes for file in missing)
    what = "decompressing parquet files"
    if room_to_pack:
        needed += sum(f.image_bytes + _PACKED_EXTRA_BYTES * f.n_images for f in files)
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
