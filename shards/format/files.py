"""All or nothing on disk: temporary name, fsync, rename, fsync of the directory.

A killed run leaves nothing that looks finished. Everything this project writes goes through here.
"""

import ctypes
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import IO, Any, TypeAlias

from coreset.shards.errors import MachineError, UsageError

Json: TypeAlias = Mapping[str, Any]
# AT_FDCWD and RENAME_EXCHANGE of <fcntl.h> and <stdio.h>.
_HERE, _EXCHANGE = -100, 2
COMMAND_NAME = "command.txt"
"""In the scratch directory of an artifact: the command line that makes it."""
_START_WRITING = 2  # SYNC_FILE_RANGE_WRITE


def fsync_directory(path: Path) -> None:
    """Make the names in ``path`` durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_file(path: Path) -> None:
    """Make the bytes of ``path`` durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def files_below(path: Path) -> Iterator[Path]:
    """Yield the files below a directory in sorted order of their relative names."""
    found = (entry for entry in path.rglob("*") if entry.is_file())
    yield from sorted(found, key=lambda file: file.as_posix())


def fsync_tree(path: Path) -> None:
    """Make every file and directory below ``path`` durable."""
    for file in files_below(path):
        fsync_file(file)
    for directory in [path, *(entry for entry in path.rglob("*") if entry.is_dir())]:
        fsync_directory(directory)


def temporary_name(path: Path) -> Path:
    """Name beside ``path`` that no reader takes for a finished output."""
    return path.with_name(f".{path.name}.partial")


def interruption(path: Path) -> str:
    """Say that the making of ``path`` was interrupted, and how it goes on; empty if it was not."""
    scratch = temporary_name(path)
    if path.exists() or not scratch.is_dir():
        return ""
    command = scratch / COMMAND_NAME
    typed = command.read_text("utf-8", "replace") if command.is_file() else ""
    known = typed.isprintable() and not command.is_symlink()
    how = f"continue with: {typed}" if typed and known else "run the same command again to continue"
    return f"{path} is not finished: the command that makes it was interrupted; {how}"


def missing(path: Path, remedy: str) -> UsageError:
    """Make the error for an input that is not there: never made, or not to its end."""
    return UsageError(interruption(path) or f"{path} does not exist; {remedy}")


def new_file(path: Path) -> IO[bytes]:
    """Create a file under a temporary name and open it for writing.

    What is there is removed: a killed run left it. Of a symbolic link, which somebody else must
    have made, the link goes and the file that it points to stays as it is.
    """
    path.unlink(missing_ok=True)
    return path.open("xb")


def new_directory(path: Path) -> None:
    """Make an empty directory under a temporary name, and those above it; see `new_file`."""
    unlink_link(path)
    if path.exists():
        shutil.rmtree(path)
    make_directory(path)


def make_directory(path: Path) -> None:
    """Make a directory and those above it, unless they are there, and make their names durable."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        fsync_directory(folder.parent)


def unlink_link(path: Path) -> None:
    """Remove a symbolic link from a name that is ours, so that nothing is written beyond it."""
    if path.is_symlink():
        path.unlink()


def write_atomically(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data``: readers see the old bytes or the new ones, never a mixture."""
    with new_file(temporary_name(path)) as file:
        file.write(data)
        sync_and_rename(file, path)


def sync_and_rename(file: IO[bytes], path: Path, *, last: bool = True) -> None:
    """Give an open temporary file, written under ``file.name``, its final name.

    With ``last`` False the name is durable only with the next file of the same directory.
    """
    file.flush()
    os.fsync(file.fileno())
    Path(file.name).rename(path)
    if last:
        fsync_directory(path.parent)


def start_writeback(file: IO[bytes], offset: int, n_bytes: int) -> None:
    """Ask the kernel to begin writing a range to the disk, and do not wait (``sync_file_range``).

    Only a hint: where it is refused, the fsync that follows does everything.
    """
    _libc().sync_file_range(
        file.fileno(), ctypes.c_int64(offset), ctypes.c_int64(n_bytes), _START_WRITING
    )


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def rename_directory(scratch: Path, path: Path) -> None:
    """Sync a finished scratch tree and give it its final name."""
    fsync_tree(scratch)
    scratch.rename(path)
    fsync_directory(path.parent)


def exchange_directories(one: Path, other: Path) -> None:
    """Swap two directories of one file system in a single step (Linux ``renameat2``).

    Raises:
        MachineError: The file system cannot.
    """
    fsync_tree(one)
    if _libc().renameat2(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE):
        raise MachineError(
            f"the file system of {other} cannot swap folders ({os.strerror(ctypes.get_errno())}); "
            "make it again under another name"
        )
    fsync_directory(other.parent)


def remove_tree(path: Path) -> None:
    """Remove a directory so that a kill midway cannot leave half of it under its old name."""
    if not path.exists():
        return
    doomed = path.with_name(f".{path.name.lstrip('.')}.deleting")
    unlink_link(doomed)
    shutil.rmtree(doomed, ignore_errors=True)
    path.rename(doomed)
    shutil.rmtree(doomed)


def json_bytes(document: Json) -> bytes:
    """Canonical, readable JSON: sorted keys, two blanks, one newline at the end."""
    return (json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def sha256_of_file(path: Path) -> str:
    """Hexadecimal sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tree_digests(path: Path) -> dict[str, str]:
    """sha256 of every file below ``path``, by relative name."""
    return {file.relative_to(path).as_posix(): sha256_of_file(file) for file in files_below(path)}


def digest_of(document: Json) -> str:
    """sha256 of a JSON document in its canonical form."""
    return hashlib.sha256(json_bytes(document)).hexdigest()
