"""Images of an ImageFolder tree: ``SRC/CLASS/.../FILE``, one class per folder below ``SRC``.

Every regular file below a class folder is found, whatever it is called: what turns out not to be an
image is refused later and listed, never passed over. Hidden names (``.DS_Store``) are no samples.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os.path import join
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shards.errors import UsageError
from shards.sources.base import Finder, Sample, Source
from shards.sources.wanted import SPLIT_OF_WORD, Wanted


def sample_key(name: str) -> str:
    """Sample key of a file below the source folder: its path without the last extension."""
    folder, _, file = name.rpartition("/")
    return f"{folder}/{file.rpartition('.')[0] or file}"


@dataclass(frozen=True, slots=True)
class FileContents:
    """Samples that are files of their own; reads one whole file at a time."""

    root: Path
    mtimes_ns: NDArray[np.int64]
    """By row."""

    def read(self, sample: Sample) -> bytes:
        """See ``Contents.read``."""
        path = join(self.root, sample.name)  # noqa: PTH118 - a Path costs 20 us an image
        expected = sample.size, int(self.mtimes_ns[sample.row])
        try:
            status, data = _read_file(path, expected[0])
        except OSError as error:
            raise UsageError(
                f"{path} cannot be read ({error.strerror}); mend that, and the same command "
                "continues"
            ) from error
        if (status.st_size, status.st_mtime_ns) != expected or len(data) != expected[0]:
            raise UsageError(
                f"{path} changed while it was being packed; pack again when nothing writes to "
                f"{self.root}"
            )
        return data

    def state(self) -> Iterator[str]:
        """See ``Contents.state``."""
        return (f"{mtime}\n" for mtime in self.mtimes_ns.tolist())


def _read_file(path: str, size: int) -> tuple[os.stat_result, bytes]:
    """Status of a file and its bytes, one more than ``size`` if it has grown."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        status = os.fstat(descriptor)
        data = os.read(descriptor, size + 1)
        # A signal or a network file system may cut a read short.
        while len(data) < size and (more := os.read(descriptor, size - len(data))):
            data += more
    finally:
        os.close(descriptor)
    return status, data


def find_folder(root: Path, wanted: Wanted | None = None) -> Source:
    """List the files of an ImageFolder tree, sorted by the UTF-8 bytes of their sample keys.

    Links are followed.

    Raises:
        UsageError: ``root`` is missing or holds no class folder, a class is empty or asked for and
            not there, two files have one sample key, or a name cannot be stored.
    """
    wanted = wanted or Wanted()
    visible = visible_entries(root)
    folders = wanted.chosen((entry.name for entry in visible if entry.is_dir()), root)
    if not folders:
        raise UsageError(
            f"{root} has no class folder; name a folder that holds one folder per class"
        )
    _refuse_splits(root, folders)
    finder = Finder(place=root, repeats=wanted.repeats)
    for folder in folders:
        _add_class(finder, root, folder)
    outside = sum(not entry.is_dir() for entry in visible)
    if outside:
        finder.left_out.append(f"{outside:,} files of {root} that lie in no class folder")
    found = finder.found()
    return found.source(FileContents(root, found.mtimes_ns))


def _refuse_splits(root: Path, folders: Sequence[str]) -> None:
    """Training and validation folders are no classes."""
    if all(name.lower() in SPLIT_OF_WORD for name in folders) and any(
        entry.is_dir() for name in folders for entry in visible_entries(root / name)
    ):
        raise UsageError(
            f"{root} holds the splits {', '.join(folders)}, not classes; name one of them, such as "
            f"{root / folders[0]}"
        )


def _add_class(finder: Finder, root: Path, folder: str) -> None:
    below = _files_below(root / folder, folder, ())
    files = sorted(below, key=lambda file: (sample_key(file[0]), file[0]))
    if not files:
        raise UsageError(f"class {folder} of {root} holds no files; fill it or remove the folder")
    names = [name for name, _ in files]
    sizes = [status.st_size for _, status in files]
    mtimes_ns = [status.st_mtime_ns for _, status in files]
    keys = [sample_key(name) for name in names]
    finder.add([folder] * len(files), keys, names, sizes, mtimes_ns=mtimes_ns)


def _files_below(
    folder: Path, name: str, parents: tuple[tuple[int, int], ...]
) -> Iterator[tuple[str, os.stat_result]]:
    """Yield (name below the root, status); ``parents`` are the folders above, to find a cycle."""
    status = folder.stat()
    here = status.st_dev, status.st_ino
    if here in parents:
        raise UsageError(f"{folder} links to a folder above itself; remove the link")
    for entry in visible_entries(folder):
        entry_name = f"{name}/{entry.name}"
        if entry.is_dir():
            yield from _files_below(folder / entry.name, entry_name, (*parents, here))
        elif entry.is_file():
            yield entry_name, entry.stat()
        else:
            raise UsageError(f"{folder / entry.name} is a broken link or a device; remove it")


def visible_entries(folder: Path) -> Sequence[os.DirEntry[str]]:
    """Entries of a folder that are not hidden.

    Raises:
        UsageError: It is no folder, or may not be listed.
    """
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except PermissionError as error:
        raise UsageError(
            f"{folder} cannot be listed; make it readable and run this again"
        ) from error
    except (FileNotFoundError, NotADirectoryError) as error:
        fact = "is not a folder" if folder.exists() else "does not exist"
        raise UsageError(
            f"{folder} {fact}; name a folder that holds one folder per class"
        ) from error
