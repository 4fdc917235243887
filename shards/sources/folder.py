"""Images of an ImageFolder tree: ``SRC/CLASS/.../FILE``, one class per folder below ``SRC``.

Every regular file below a class folder is found: what turns out not to be an image is refused later
and listed. Hidden files (``.DS_Store``) and side-cars (``Thumbs.db``, ``*_boxes.txt``, ``.xml``,
``.json``) are no samples; they are passed over and counted.
"""

import os
from collections.abc import Iterator, Sequence
from operator import itemgetter
from pathlib import Path

from coreset.shards.errors import UsageError
from coreset.shards.sources.advice import OTHERS, holds_folders, require_classes, what_to_name
from coreset.shards.sources.base import Source, SourceOptions
from coreset.shards.sources.contents import FileContents
from coreset.shards.sources.finder import Finder
from coreset.shards.sources.names import listed_entries, sample_key


def find_folder(root: Path, options: SourceOptions | None = None) -> Source:
    """List the files of an ImageFolder tree, sorted by the UTF-8 bytes of their sample keys.

    Links are followed.

    Raises:
        UsageError: ``root`` is missing or holds no class folder, holds splits instead or a single
            class, a class is empty or asked for and not there, two files have one sample key, or a
            name cannot be stored.
    """
    options = options or SourceOptions()
    finder = Finder(place=root, repeats=options.repeats)
    visible, finder.passed_over.n_hidden = listed_entries(root)
    names = [entry.name for entry in visible if entry.is_dir()]
    if not names:
        raise UsageError(f"{root} has no class folder; {what_to_name(root, root)}")
    for folder in _chosen(names, root, options):
        _add_class(finder, root, folder)
    outside = len(visible) - len(names)
    if outside:
        finder.skipped.append(f"{outside:,} files of {root} that lie in no class folder")
    samples = finder.sorted()
    return samples.source(FileContents(root, samples.mtimes_ns))


def _chosen(names: Sequence[str], root: Path, options: SourceOptions) -> list[str]:
    """Choose the class folders to take; the user's own list may call a class ``train``."""
    if options.only is None:
        require_classes(
            sorted(names),
            root,
            holds_folders=lambda name: holds_folders(root / name),
            remedy=lambda name: f"name one of them, such as {root / name}",
        )
    return options.chosen(names, root, advice=lambda name: what_to_name(root, root / name))


def _add_class(finder: Finder, root: Path, folder: str) -> None:
    below = _files_below(finder, root / folder, folder, ())
    files = sorted(below, key=lambda file: (sample_key(file[0]), file[0]))
    images = finder.passed_over.without_side_cars(files, itemgetter(0))
    if not images:
        raise UsageError(
            f"class {folder} of {root} holds no images; fill it or remove the folder, or {OTHERS}"
        )
    names = [name for name, _ in images]
    sizes = [status.st_size for _, status in images]
    mtimes_ns = [status.st_mtime_ns for _, status in images]
    keys = [sample_key(name) for name in names]
    finder.add([folder] * len(images), keys, names, sizes, mtimes_ns=mtimes_ns)


def _files_below(
    finder: Finder, folder: Path, name: str, parents: tuple[tuple[int, int], ...]
) -> Iterator[tuple[str, os.stat_result]]:
    """Yield (name below the root, status); ``parents`` are the folders above, to find a cycle."""
    status = folder.stat()
    here = status.st_dev, status.st_ino
    if here in parents:
        raise UsageError(f"{folder} links to a folder above itself; remove the link")
    visible, n_hidden = listed_entries(folder)
    finder.passed_over.n_hidden += n_hidden
    for entry in visible:
        entry_name = f"{name}/{entry.name}"
        if entry.is_dir():
            yield from _files_below(finder, folder / entry.name, entry_name, (*parents, here))
        elif entry.is_file():
            yield entry_name, entry.stat()
        else:
            raise UsageError(f"{folder / entry.name} is a broken link or a device; remove it")
