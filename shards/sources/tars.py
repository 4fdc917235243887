"""Tars made elsewhere as sources: visible members under safe names, and which layout they have."""

import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias, TypeVar

from coreset.shards.errors import DataError, UsageError
from coreset.shards.sources.contents import RangeContents
from coreset.shards.sources.finder import Finder, SortedSamples
from coreset.shards.sources.names import extension_of, is_hidden, is_image_name, visible_entries
from coreset.shards.sources.tar_scan import REGULAR_FILE, safe_parts, scan

TarLayout: TypeAlias = Literal["classes", "webdataset", "validation"]
Item = TypeVar("Item")
Result = TypeVar("Result")

VALIDATION_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")
# Compressed tars are listed too, so that scanning them says what to do.
_TAR_NAME = re.compile(r"\.(tar|tgz|tar\.(gz|bz2|xz|zst|lz4))$")
_NUMBERED = re.compile(r"(.*?)[-_.]?(\d+)")
_PEEKED_MEMBERS = 200
_THREADS = 8
_SCANNED_AT_ONCE = 32


class Member(NamedTuple):
    """One visible member of a tar."""

    name: str
    """Safe to print and to build sample keys from; ``/`` between parts, no ``./`` before them."""
    offset: int
    """First byte in the file."""
    size: int
    kind: str
    """``REGULAR_FILE``, or in words what it is instead."""

    @property
    def extension(self) -> str:
        """Extension in lower case, without the dot; empty if there is none."""
        return extension_of(self.name)


def visible_members(
    path: Path, *, start: int = 0, end: int | None = None
) -> tuple[list[Member], int]:
    """List the members of the tar at bytes ``[start, end)`` of a file, and count hidden ones.

    A member is hidden if a part of its name is, see `is_hidden`.

    Args:
        path: The file.
        start: First byte of the tar.
        end: End of the tar; None is the end of the file.

    Raises:
        DataError: The tar is damaged or cut, or a member has a name that no file should have.
    """
    members: list[Member] = []
    n_hidden = 0
    for entry in scan(path, start=start, end=end):
        try:
            parts = safe_parts(entry.name)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
        if any(map(is_hidden, parts)):
            n_hidden += 1
            continue
        members.append(Member("/".join(parts), entry.offset, entry.size, entry.kind))
    return members, n_hidden


def in_threads(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """Read many tars in threads and yield the results in order, a few in memory at once."""
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="scan") as pool:
        for first in range(0, len(items), _SCANNED_AT_ONCE):
            yield from pool.map(function, items[first : first + _SCANNED_AT_ONCE])


def add_members(
    finder: Finder,
    class_names: Sequence[str],
    keys: Sequence[str],
    members: Sequence[Member],
    *,
    place: str,
    file: int = 0,
) -> None:
    """Add members of one tar to a finder; links and devices are added as refused.

    Args:
        finder: Takes them.
        class_names: Class of each.
        keys: Sample key of each.
        members: The members.
        place: Name of the tar for people, before their own names.
        file: Number of the file that holds the tar.
    """
    finder.add(
        class_names,
        keys,
        [f"{place}/{member.name}" for member in members],
        [member.size for member in members],
        files=[file] * len(members),
        offsets=[member.offset for member in members],
    )
    for key, member in zip(keys, members, strict=True):
        if member.kind != REGULAR_FILE:
            finder.reject(key, member.kind)


def range_contents(samples: SortedSamples, files: Sequence[Path]) -> RangeContents:
    """Make the reader of samples that ``add_members`` added."""
    return RangeContents(files, samples.files, samples.offsets)


def tars_of(folder: Path) -> list[Path]:
    """List the visible tars of a folder, also compressed ones, sorted by name."""
    names = [entry.name for entry in visible_entries(folder) if _TAR_NAME.search(entry.name)]
    return [folder / name for name in sorted(names)]


def tar_layout(src: Path) -> TarLayout | None:
    """Detect the layout of a tar or of a folder of tars by the first members of the first tar.

    Returns None if ``src`` is neither. A folder that holds a folder counts as an image folder.

    Raises:
        UsageError: A folder holds a tar that is to be named itself.
        DataError: The first tar is damaged.
    """
    if src.is_file():
        return _layout(_peek(src)) if _TAR_NAME.search(src.name) else None
    if not src.is_dir() or any(entry.is_dir() for entry in visible_entries(src)):
        return None
    tars = tars_of(src)
    if not tars:
        return None
    names = _peek(tars[0])
    layout = _layout(names)
    if layout == "validation" or (names and extension_of(names[0]) == "tar"):
        raise UsageError(f"{tars[0]} holds a whole data set; name this file, not its folder")
    return "webdataset" if layout == "webdataset" or _are_numbered(tars) else "classes"


def _peek(path: Path) -> list[str]:
    """Read the names of the first members that are not hidden."""
    names = (entry.name for entry in islice(scan(path), _PEEKED_MEMBERS))
    return [name for name in names if not is_hidden(name.rpartition("/")[2])]


def _layout(names: Sequence[str]) -> TarLayout:
    if names and VALIDATION_NAME.fullmatch(names[0].rpartition("/")[2]):
        labelled = any(extension_of(name) in {"cls", "json"} for name in names)
        return "webdataset" if labelled else "validation"
    keys = [name.rpartition(".")[0] for name in names]
    pairs = list(zip(keys, map(extension_of, names), strict=True))
    images = {name.rpartition(".")[0] for name in names if is_image_name(name)}
    labels = {key for key, extension in pairs if extension in {"json", "txt", "npy"}}
    with_numbers = any(extension == "cls" for _, extension in pairs)
    return "webdataset" if with_numbers or images & labels else "classes"


def _are_numbered(tars: Sequence[Path]) -> bool:
    """Test for the shards 0, 1, 2 ... of one series, as opposed to named classes."""
    matches = [_NUMBERED.fullmatch(tar.stem) for tar in tars]
    series = {match[1] for match in matches if match}
    numbers = sorted(int(match[2]) for match in matches if match)
    return len(series) == 1 and numbers in (
        list(range(len(tars))),
        list(range(1, len(tars) + 1)),
    )
