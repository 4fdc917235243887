"""Images of an ImageFolder tree: ``SRC/CLASS/.../FILE``, one class per folder below ``SRC``.

Every regular file below a class folder is found, whatever it is called: what turns out not to be an
image is refused later and listed, never passed over. Hidden names (``.DS_Store``) are no samples.
"""

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from kernels.seeds import permutation
from shards.errors import UsageError

Order: TypeAlias = Literal["shuffled", "source"]
# Control characters would break the lines of digests; surrogates are bytes that are not UTF-8.
_UNSTORABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


def sample_key(name: str) -> str:
    """Sample key of a file below the source folder: its path without the last extension."""
    folder, _, file = name.rpartition("/")
    return f"{folder}/{file.rpartition('.')[0] or file}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Found files, one entry per position. Arrays are int64 of shape (found,)."""

    root: Path
    classes: tuple[str, ...]
    """Class folders in sorted order; a label is a position in it."""
    names: tuple[str, ...]
    """Path of each file below ``root``, with ``/`` between parts."""
    sizes: NDArray[np.int64]
    """Bytes."""
    mtimes_ns: NDArray[np.int64]
    labels: NDArray[np.int64]
    """Label by class folder."""
    n_outside: int
    """Files directly in ``root``, which belong to no class."""

    def __len__(self) -> int:
        return len(self.names)

    @property
    def keys(self) -> list[str]:
        """Sample key of each file."""
        return [sample_key(name) for name in self.names]

    def class_sizes(self) -> NDArray[np.int64]:
        """Found files per class, int64 of shape (classes,)."""
        return np.bincount(self.labels, minlength=len(self.classes)).astype(np.int64)

    def list_sha256(self) -> str:
        """Digest of names and sizes: stays the same when the tree is copied."""
        lines = (f"{name}\t{size}\n" for name, size in zip(self.names, self.sizes, strict=True))
        return _sha256(lines)

    def state_sha256(self) -> str:
        """Digest of names, sizes and modification times: changes when a file is written again."""
        rows = zip(self.names, self.sizes, self.mtimes_ns, strict=True)
        return _sha256(f"{name}\t{size}\t{mtime}\n" for name, size, mtime in rows)

    def in_order(self, order: Order, order_seed: int) -> "Source":
        """The same files in pack order: as found, or permuted so that readers see mixed classes."""
        if order == "source":
            return self
        positions = permutation(len(self), order_seed)
        return replace(
            self,
            names=tuple(self.names[position] for position in positions),
            sizes=self.sizes[positions],
            mtimes_ns=self.mtimes_ns[positions],
            labels=self.labels[positions],
        )


def find_images(root: Path) -> Source:
    """List the files of an ImageFolder tree, sorted by the UTF-8 bytes of their sample keys.

    Links are followed.

    Raises:
        UsageError: ``root`` is missing or holds no class folder, a class is empty, two files have
            one sample key, or a name cannot be stored.
    """
    folders = _class_folders(root)
    found = sorted(  # Python's order by code point is that of the UTF-8 bytes
        (sample_key(name), name, status.st_size, status.st_mtime_ns, label)
        for label, folder in enumerate(folders)
        for name, status in _files_of_class(root, folder)
    )
    _require_unique([(key, name) for key, name, *_ in found])
    sizes, mtimes, labels = (
        np.array([row[column] for row in found], dtype=np.int64) for column in (2, 3, 4)
    )
    return Source(
        root=root,
        classes=tuple(folders),
        names=tuple(row[1] for row in found),
        sizes=sizes,
        mtimes_ns=mtimes,
        labels=labels,
        n_outside=sum(not entry.is_dir() for entry in _visible(root)),
    )


def _class_folders(root: Path) -> list[str]:
    if not root.is_dir():
        fact = "is not a folder" if root.exists() else "does not exist"
        raise UsageError(f"{root} {fact}; name a folder that holds one folder per class")
    folders = sorted(entry.name for entry in _visible(root) if entry.is_dir())
    if not folders:
        raise UsageError(
            f"{root} has no class folder; name a folder that holds one folder per class"
        )
    return folders


def _files_of_class(root: Path, folder: str) -> Iterator[tuple[str, os.stat_result]]:
    empty = True
    for name, status in _files_below(root / folder, folder, ()):
        empty = False
        yield name, status
    if empty:
        raise UsageError(f"class {folder} of {root} holds no files; fill it or remove the folder")


def _files_below(
    folder: Path, name: str, parents: tuple[tuple[int, int], ...]
) -> Iterator[tuple[str, os.stat_result]]:
    """Yield (name below the root, status); ``parents`` are the folders above, to find a cycle."""
    status = folder.stat()
    here = status.st_dev, status.st_ino
    if here in parents:
        raise UsageError(f"{folder} links to a folder above itself; remove the link")
    for entry in _visible(folder):
        entry_name = _storable(f"{name}/{entry.name}")
        if entry.is_dir():
            yield from _files_below(folder / entry.name, entry_name, (*parents, here))
        elif entry.is_file():
            yield entry_name, entry.stat()
        else:
            raise UsageError(f"{folder / entry.name} is a broken link or a device; remove it")


def _visible(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except PermissionError as error:
        raise UsageError(
            f"{folder} cannot be listed; make it readable and run this again"
        ) from error


def _storable(name: str) -> str:
    if _UNSTORABLE.search(name):
        raise UsageError(f"file name {name!a} holds control characters or is not UTF-8; rename it")
    return name


def _require_unique(found: Sequence[tuple[str, str]]) -> None:
    for (key, name), (next_key, next_name) in pairwise(found):
        if key == next_key:
            raise UsageError(
                f"{name} and {next_name} have the same sample key {key}; rename or remove one"
            )


def _sha256(lines: Iterator[str]) -> str:
    hasher = hashlib.sha256()
    for line in lines:
        hasher.update(line.encode())
    return hasher.hexdigest()
