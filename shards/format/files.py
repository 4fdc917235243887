"""Durable files: written under a temporary name, synced, renamed, and their directory synced.

A killed run leaves nothing that looks finished. Everything this project writes goes through here.
"""

import ctypes
import errno
import fcntl
import hashlib
import json
import mmap
import os
import resource
import shutil
import threading
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, Any, TypeAlias

from coreset.shards.errors import MachineError, UsageError

Json: TypeAlias = Mapping[str, Any]
COMMAND_NAME = "command.txt"
"""In the scratch directory of an artifact: the command line that makes it."""
_AT_FDCWD, _RENAME_EXCHANGE, _SYNC_FILE_RANGE_WRITE = -100, 2, 2  # <fcntl.h> and <stdio.h>
_BUFFER_BYTES = 1 << 22
_ALIGNMENT = 4096  # at least the block size of the common disks and file systems


def fsync_path(path: Path) -> None:
    """Make the bytes of a file, or the names in a directory, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(path: Path) -> None:
    """Make every file and directory below ``path`` durable."""
    for entry in (*path.rglob("*"), path):
        fsync_path(entry)


def files_below(path: Path) -> Iterator[Path]:
    """Yield the files below a directory in sorted order of their relative names."""
    yield from sorted((e for e in path.rglob("*") if e.is_file()), key=lambda file: file.as_posix())


def temporary_name(path: Path) -> Path:
    """Return a name beside ``path`` that no reader takes for a finished output."""
    return path.with_name(f".{path.name}.partial")


def interruption(path: Path) -> str:
    """Say that the making of ``path`` was interrupted and how to continue; empty if it was not."""
    scratch = temporary_name(path)
    if path.exists() or not scratch.is_dir():
        return ""
    command = scratch / COMMAND_NAME
    line = command.read_text("utf-8", "replace") if command.is_file() else ""
    trusted = line and line.isprintable() and not command.is_symlink()
    remedy = f"continue with: {line}" if trusted else "run the same command again to continue"
    return f"{path} is not finished: the command that makes it was interrupted; {remedy}"


def missing(path: Path, remedy: str) -> UsageError:
    """Make the error for an input that does not exist or was interrupted."""
    return UsageError(interruption(path) or f"{path} does not exist; {remedy}")


def new_file(path: Path) -> IO[bytes]:
    """Create a file under a temporary name; what a killed run left, or a link, is removed."""
    path.unlink(missing_ok=True)
    return path.open("xb")


def new_directory(path: Path) -> None:
    """Make an empty directory and its parents, by the rules of `new_file`."""
    unlink_link(path)
    if path.exists():
        shutil.rmtree(path)
    make_directory(path)


def make_directory(path: Path) -> None:
    """Make a directory and its parents if they do not exist, and make their names durable."""
    created = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in created:
        fsync_path(folder.parent)


def unlink_link(path: Path) -> None:
    """Remove a symbolic link from a name that belongs to this project."""
    if path.is_symlink():
        path.unlink()


def write_atomically(path: Path, data: bytes) -> None:
    """Replace the content of ``path``: readers see the old bytes or the new, never a mixture."""
    with new_file(temporary_name(path)) as file:
        file.write(data)
        sync_and_rename(file, path)


def sync_and_rename(file: IO[bytes], path: Path) -> None:
    """Sync an open temporary file and give it its final name."""
    file.flush()
    os.fsync(file.fileno())
    Path(file.name).rename(path)
    fsync_path(path.parent)


def replace_files(files: Iterable[Path], directory: Path) -> None:
    """Move synced files into a directory, over those of the same names."""
    for file in files:
        file.rename(directory / file.name)
    fsync_path(directory)


def rename_directory(scratch: Path, path: Path) -> None:
    """Sync a finished directory tree and give it its final name."""
    fsync_tree(scratch)
    scratch.rename(path)
    fsync_path(path.parent)


def exchange_directories(scratch: Path, path: Path) -> None:
    """Sync ``scratch`` and swap it with ``path`` in a single step (Linux ``renameat2``)."""
    fsync_tree(scratch)
    names = os.fsencode(scratch), os.fsencode(path)
    if _libc().renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE):
        raise MachineError(
            f"the file system of {path} cannot swap folders ({os.strerror(ctypes.get_errno())}); "
            "make it again under another name"
        )
    fsync_path(path.parent)


def remove_tree(path: Path) -> None:
    """Remove a directory so that a kill midway cannot leave half of it under its old name."""
    if not path.exists():
        return
    doomed = path.with_name(f".{path.name.lstrip('.')}.deleting")
    unlink_link(doomed)
    shutil.rmtree(doomed, ignore_errors=True)
    path.rename(doomed)
    shutil.rmtree(doomed)


def require_space(needed: int, folder: Path, what: str) -> None:
    """Refuse a disk without room for the bytes that ``what`` needs in a scratch folder."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise MachineError(
            f"{what} needs {needed:,} bytes in {folder.parent}, {free:,} are free; free some space "
            "or choose another output"
        )


def start_writeback(file: IO[bytes], offset: int, n_bytes: int) -> None:
    """Ask the kernel to begin writing a range to the disk, without waiting; it may refuse."""
    begin, length = ctypes.c_int64(offset), ctypes.c_int64(n_bytes)
    _libc().sync_file_range(file.fileno(), begin, length, _SYNC_FILE_RANGE_WRITE)


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


class AppendFile:
    """Large file, appended in large blocks, past the page cache where that works (``O_DIRECT``).

    In the page cache every byte would cost a copy and push out what others read.
    """

    def __init__(self, path: Path, on_block: Callable[[memoryview], object]) -> None:
        """Create ``path`` as `new_file` does; ``on_block`` gets all bytes in order."""
        self.path = path
        self._on_block = on_block
        self._file = new_file(path)
        self._descriptor = self._file.fileno()
        with suppress(OSError):
            self._set_direct(on=True)
        self._buffer = mmap.mmap(-1, _BUFFER_BYTES)  # aligned to pages
        self._view = memoryview(self._buffer)
        self._filled = self._size = 0

    def append(self, part: bytes) -> None:
        """Append bytes, written when a block is full; an OSError says that the disk fails."""
        done = 0
        while done < len(part):
            n = min(len(part) - done, _BUFFER_BYTES - self._filled)
            self._view[self._filled : self._filled + n] = memoryview(part)[done : done + n]
            self._filled += n
            done += n
            if self._filled == _BUFFER_BYTES:
                self._flush()

    def publish(self, path: Path) -> None:
        """Write the rest, sync, close and rename; the name becomes durable with a later file."""
        size = self._size + self._filled
        self._flush()
        os.ftruncate(self._descriptor, size)  # the last block was written whole
        os.fsync(self._descriptor)
        self.close()
        self.path.rename(path)

    def close(self) -> None:
        """Close without writing the rest; a second call does nothing."""
        self._file.close()
        self._view.release()
        self._buffer.close()

    def _flush(self) -> None:
        self._on_block(self._view[: self._filled])
        whole = -(-self._filled // _ALIGNMENT) * _ALIGNMENT
        self._view[self._filled : whole] = bytes(whole - self._filled)
        written = 0
        while written < whole:
            written += self._write(self._view[written:whole])
        self._size += self._filled
        self._filled = 0

    def _write(self, block: memoryview) -> int:
        try:
            return os.write(self._descriptor, block)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        # Some file systems refuse only now, or once a short write has lost the alignment.
        self._set_direct(on=False)
        return os.write(self._descriptor, block)

    def _set_direct(self, *, on: bool) -> None:
        flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL)
        flags = flags | os.O_DIRECT if on else flags & ~os.O_DIRECT
        fcntl.fcntl(self._descriptor, fcntl.F_SETFL, flags)


class OpenFiles:
    """Files by number, opened once each and read from any thread.

    A data set can have more shards than a process may open: the rest is opened for one use each.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths
        self._descriptors: dict[int, int] = {}
        self._lock = threading.Lock()
        self._max_open = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2
        weakref.finalize(self, _close_all, self._descriptors)

    @contextmanager
    def descriptor(self, number: int) -> Generator[int]:
        """Yield the descriptor of a file, valid in the block."""
        with self._lock:
            kept = self._descriptors.get(number)
            if kept is None and len(self._descriptors) < self._max_open:
                kept = self._descriptors[number] = os.open(self.paths[number], os.O_RDONLY)
        if kept is not None:
            yield kept
            return
        with self.paths[number].open("rb", buffering=0) as file:
            yield file.fileno()

    def kept(self, number: int) -> int | None:
        """Return the descriptor of a file that stays open, else None, without the lock."""
        return self._descriptors.get(number)

    def close(self) -> None:
        """Close all files; no read may be under way."""
        _close_all(self._descriptors)


def _close_all(descriptors: dict[int, int]) -> None:
    while descriptors:
        os.close(descriptors.popitem()[1])


def json_bytes(document: Json) -> bytes:
    """Write canonical, readable JSON: sorted keys, two blanks, one newline at the end."""
    return (json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def digest_of(document: Json) -> str:
    """Return the sha256 of a JSON document in its canonical form."""
    return hashlib.sha256(json_bytes(document)).hexdigest()


def sha256_of_file(path: Path) -> str:
    """Return the sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tree_digests(path: Path) -> dict[str, str]:
    """Return the sha256 of every file below ``path``, by relative name."""
    return {file.relative_to(path).as_posix(): sha256_of_file(file) for file in files_below(path)}
