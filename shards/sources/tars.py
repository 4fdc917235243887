"""Tars made elsewhere as sources, read where they lie: no tar is unpacked.

Images of classes have three layouts: one tar of class tars (``ILSVRC2012_img_train.tar``), a folder
of class tars, and one tar of an image folder tree. Sample keys are those of the unpacked tree.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias, TypeVar

from coreset.shards.errors import DataError, UsageError
from coreset.shards.images.probe import extension_of, is_image_name
from coreset.shards.sources.base import DEFAULTS, Source, SourceOptions
from coreset.shards.sources.finder import Finder, Found, RangeContents
from coreset.shards.sources.names import (
    is_hidden,
    require_classes,
    safe_parts,
    sample_key,
    visible_entries,
)
from coreset.shards.sources.tar_scan import REGULAR_FILE, Entry, scan

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


def visible_members(
    path: Path, *, start: int = 0, end: int | None = None
) -> tuple[list[Entry], int]:
    """List the members of a tar under safe names, without the hidden ones, which are counted.

    Arguments and errors are those of `scan` and `safe_parts`.
    """
    members: list[Entry] = []
    n_hidden = 0
    for entry in scan(path, start=start, end=end):
        try:
            parts = safe_parts(entry.name)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
        if any(map(is_hidden, parts)):
            n_hidden += 1
        else:
            members.append(entry._replace(name="/".join(parts)))
    return members, n_hidden


def in_threads(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """Read many tars in threads and yield the results in order, a few in memory at once."""
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="scan") as pool:
        for first in range(0, len(items), _SCANNED_AT_ONCE):
            yield from pool.map(function, items[first : first + _SCANNED_AT_ONCE])


def add_members(
    finder: Finder, samples: Sequence[tuple[str, str, Entry]], *, place: str, file: int = 0
) -> None:
    """Add samples of one tar, (class, sample key, member).

    ``place`` names the tar in messages, ``file`` is the number of the file that holds it.
    """
    finder.add(
        Found(name, key, f"{place}/{member.name}", member.size, 0, file, member.offset, member.kind)
        for name, key, member in samples
    )


def tars_of(folder: Path) -> list[Path]:
    """List the visible tars of a folder, also compressed ones, sorted by name."""
    names = [entry.name for entry in visible_entries(folder) if _TAR_NAME.search(entry.name)]
    return [folder / name for name in sorted(names)]


def tar_layout(src: Path) -> TarLayout | None:
    """Detect the layout of a tar or of a folder of tars by the first members, else None.

    A folder that holds a folder counts as an image folder.
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
    names = (entry.name for entry in islice(scan(path), _PEEKED_MEMBERS))
    return [name for name in names if not is_hidden(name.rpartition("/")[2])]


def _layout(names: Sequence[str]) -> TarLayout:
    extensions = set(map(extension_of, names))
    if names and VALIDATION_NAME.fullmatch(names[0].rpartition("/")[2]):
        return "webdataset" if extensions & {"cls", "json"} else "validation"
    images = {name.rpartition(".")[0] for name in names if is_image_name(name)}
    beside = [name for name in names if extension_of(name) in {"json", "txt", "npy"}]
    labelled = "cls" in extensions or any(name.rpartition(".")[0] in images for name in beside)
    return "webdataset" if labelled else "classes"


def _are_numbered(tars: Sequence[Path]) -> bool:
    """Test for the shards 0, 1, 2 ... of one series, as opposed to named classes."""
    matches = [_NUMBERED.fullmatch(tar.stem) for tar in tars]
    series = {match[1] for match in matches if match}
    numbers = sorted(int(match[2]) for match in matches if match)
    counts = (list(range(len(tars))), list(range(1, len(tars) + 1)))
    return len(series) == 1 and numbers in counts


class _ClassTar(NamedTuple):
    """Tar of one class: a file, or a member of one."""

    place: str
    path: Path
    file: int
    start: int = 0
    end: int | None = None


def find_class_tars(src: Path, options: SourceOptions = DEFAULTS) -> Source:
    """Find the images of a tar of class tars, of a folder of class tars, or of a tar of a tree.

    Of a class tar whose members all lie in a folder of the class's name, that folder is left away.
    Of a tree, the folders above the class folders are (``./``, ``train/``).
    """
    finder, files = Finder(place=src, repeats=options.repeats), [src]
    if src.is_dir():
        files = tars_of(src)
        n_others = len(visible_entries(src)) - len(files)
        finder.skip(n_others, f"files and folders of {src} that are no tars")
        tars = [_ClassTar(path.name, path, file) for file, path in enumerate(files)]
        _add_class_tars(finder, tars, options)
    else:
        _add_tar(finder, options)
    return finder.source(partial(RangeContents, files))


def _add_tar(finder: Finder, options: SourceOptions) -> None:
    src = finder.place
    members, finder.n_hidden = visible_members(src)
    nested = [member for member in members if extension_of(member.name) == "tar"]
    if not nested:
        _add_tree(finder, members, options)
        return
    finder.skip(len(members) - len(nested), f"members of {src} that are no class tars")
    for member in nested:
        if member.kind != REGULAR_FILE:
            raise DataError(
                f"{src} has a {member.kind} in place of the class tar {member.name}; make the tar "
                "again with the files themselves"
            )
    tars = (_ClassTar(t.name, src, 0, t.offset, t.offset + t.size) for t in nested)
    _add_class_tars(finder, tars, options)


def _add_class_tars(finder: Finder, tars: Iterable[_ClassTar], options: SourceOptions) -> None:
    by_class: dict[str, _ClassTar] = {}
    for tar in tars:
        first = by_class.setdefault(Path(tar.place).stem, tar)
        if first is not tar:
            raise UsageError(
                f"{first.place} and {tar.place} of {finder.place} are tars of one class; remove or "
                "rename one"
            )
    if options.only is None:
        # What is in the tars is known only after reading them.
        require_classes(sorted(by_class), finder.place, holds_folders=lambda _: False)
    chosen = options.chosen(by_class, finder.place)
    found = in_threads(_members_of, [by_class[name] for name in chosen])
    for name, (members, n_hidden) in zip(chosen, found, strict=True):
        finder.n_hidden += n_hidden
        _add_class(finder, name, by_class[name], members)


def _members_of(tar: _ClassTar) -> tuple[list[Entry], int]:
    try:
        return visible_members(tar.path, start=tar.start, end=tar.end)
    except DataError as error:
        raise DataError(f"class tar {tar.place}: {error}" if tar.end else str(error)) from error


def _add_class(finder: Finder, name: str, tar: _ClassTar, members: Sequence[Entry]) -> None:
    remedy, own_folder = f"fill {tar.place} or remove it", f"{name}/"
    images = finder.images(name, members, remedy, folder=f"{tar.place}/")
    prefix = own_folder if all(image.name.startswith(own_folder) for image in images) else ""
    keys = [sample_key(own_folder + image.name.removeprefix(prefix)) for image in images]
    samples = [(name, key, image) for key, image in zip(keys, images, strict=True)]
    add_members(finder, samples, place=tar.place, file=tar.file)


def _add_tree(finder: Finder, members: Sequence[Entry], options: SourceOptions) -> None:
    src, depth = finder.place, _class_depth(members)
    by_class: dict[str, list[Entry]] = {}
    for member in members:
        *folders, _ = member.name.split("/", depth + 1)
        by_class.setdefault(folders[depth] if len(folders) > depth else "", []).append(member)
    finder.skip(len(by_class.pop("", [])), f"files of {src} that lie in no class folder")
    if not by_class:
        raise UsageError(
            f"{src} has neither class folders nor class tars; name a tar that holds one folder per "
            "class"
        )

    def holds_folders(name: str) -> bool:
        return any(member.name.count("/") > depth + 1 for member in by_class[name])

    if options.only is None:
        require_classes(sorted(by_class), src, holds_folders=holds_folders)
    for name in options.chosen(by_class, src):
        images = finder.images(name, by_class[name], "make the tar without it")
        keys = [sample_key(image.name.split("/", depth)[depth]) for image in images]
        samples = [(name, key, image) for key, image in zip(keys, images, strict=True)]
        add_members(finder, samples, place=src.name)


def _class_depth(members: Sequence[Entry]) -> int:
    """Count the folders above the class folders: those that are alone and hold folders."""
    folders = {tuple(member.name.split("/")[:-1]) for member in members}
    depth = 0
    while True:
        names = {folder[depth] for folder in folders if len(folder) > depth}
        if len(names) != 1 or not any(len(folder) > depth + 1 for folder in folders):
            return depth
        depth += 1
