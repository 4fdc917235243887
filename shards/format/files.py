"""Durable files, which are synced before they get their names, and JSON documents, checked.

A killed run leaves nothing that looks finished. Everything this project writes goes through here.
"""

import ctypes
import hashlib
import json
import os
import resource
import shutil
import threading
import weakref
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import UnionType
from typing import IO, Any, Literal, TypeAlias, TypeVar, cast, get_args, get_origin, get_type_hints

from coreset.shards.errors import MachineError, UsageError

Json: TypeAlias = Mapping[str, Any]
Document = TypeVar("Document")
COMMAND_NAME = "command.txt"
"""In the scratch directory of an artifact: the command line that makes it."""
_AT_FDCWD, _RENAME_EXCHANGE, _SYNC_FILE_RANGE_WRITE = -100, 2, 2  # <fcntl.h> and <stdio.h>


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


def files_below(path: Path) -> list[Path]:
    """List the files below a directory in sorted order of their relative names."""
    return sorted(filter(Path.is_file, path.rglob("*")), key=Path.as_posix)


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


def missing(path: Path, remedy: str, *, otherwise: str = "") -> UsageError:
    """Make the error for an input that is absent or interrupted, or ``otherwise`` what it is."""
    fault = (path.exists() and otherwise) or "does not exist"
    return UsageError(interruption(path) or f"{path} {fault}; {remedy}")


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


@contextmanager
def replacing(path: Path) -> Generator[IO[bytes]]:
    """Yield a temporary file that is synced and becomes ``path`` if the block succeeds."""
    with new_file(temporary_name(path)) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
        Path(file.name).rename(path)
        fsync_path(path.parent)


def write_atomically(path: Path, data: bytes) -> None:
    """Replace the content of ``path``: readers see the old bytes or the new, never a mixture."""
    with replacing(path) as file:
        file.write(data)


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


def parse(text: bytes) -> dict[str, Any]:
    """Parse a JSON object; whatever is none is a ValueError."""
    try:
        document = json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    return _object(document)


def build(kind: type[Document], document: object) -> Document:
    """Build a dataclass from a JSON object; a ValueError names the field that does not fit.

    Lists become tuples, objects become mappings or nested dataclasses.
    """
    document = _object(document)
    hints, required = _fields_of(kind)
    for name in sorted(document.keys() - hints.keys()):
        raise ValueError(f"{name} is no field of it")
    for name in sorted(required - document.keys()):
        raise ValueError(f"{name} is missing")
    return kind(**{name: _value(value, hints[name], name) for name, value in document.items()})


@cache
def _fields_of(kind: Any) -> tuple[dict[str, Any], frozenset[str]]:  # noqa: ANN401 - a dataclass
    hints = get_type_hints(kind)
    init = [field for field in fields(kind) if field.init]
    required = (field.name for field in init if field.default is field.default_factory is MISSING)
    return {field.name: hints[field.name] for field in init}, frozenset(required)


def _object(document: object) -> dict[str, Any]:
    if isinstance(document, dict):
        return cast("dict[str, Any]", document)
    raise ValueError(f"an object was expected, not {_shown(document)}")


def _value(value: Any, hint: Any, name: str) -> Any:  # noqa: ANN401 - of any type
    if type(value) is hint and (hint is not int or value.bit_length() < 64):
        return value
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any or (origin is Literal and value in inner):
        return value
    if origin is UnionType:
        return None if value is None else _value(value, inner[0], name)
    if origin is tuple and isinstance(value, list):
        return tuple([_value(item, inner[0], name) for item in value])
    if origin is Mapping and isinstance(value, dict):
        return {_key(k, inner[0], name): _value(v, inner[1], name) for k, v in value.items()}
    if is_dataclass(hint):
        return build(cast("type", hint), value)
    raise ValueError(f"{name} has {_shown(value)}, expected {getattr(hint, '__name__', hint)}")


def _key(key: str, hint: Any, name: str) -> Any:  # noqa: ANN401 - str or int
    if hint is not int:
        return key
    if not key.isdecimal() or len(key) > 18:
        raise ValueError(f"{name} has the key {key[:40]!r}, expected a number")
    return int(key)


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 40 else f"{shown[:40]}..."
