"""Images of an ImageFolder tree: ``SRC/CLASS/.../FILE``, one class per folder below ``SRC``.

Hidden files and side-cars (``.xml``, ``*_boxes.txt``) are passed over and counted. Every other
regular file is found: what turns out not to be an image is refused later.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path

from coreset.shards.errors import UsageError
from coreset.shards.sources.base import DEFAULTS, Source, SourceOptions
from coreset.shards.sources.finder import FileContents, Finder, Found
from coreset.shards.sources.names import (
    SPLIT_OF_WORD,
    WNID,
    extension_of,
    is_image_name,
    listed_entries,
    sample_key,
    split_of,
    stem_of,
    visible_entries,
)

_NAME_LIST = "in a file and name it with --classes"
OTHERS = f"list the other classes {_NAME_LIST}"
"""Remedy for a folder or tar in which there is no image."""
_BESIDE_IMAGES = frozenset({"annotations", "labels", "masks"})
_LIST_EXTENSIONS = frozenset({"csv", "tsv", "txt"})
_MOST_LISTS = 100
_PEEKED_CHARACTERS = 4096
_PEEKED_LINES = 3


def find_folder(root: Path, options: SourceOptions = DEFAULTS) -> Source:
    """List the files of an ImageFolder tree, sorted by their keys; links are followed."""
    finder = Finder(place=root, repeats=options.repeats)
    visible, finder.n_hidden = listed_entries(root)
    names = [entry.name for entry in visible if entry.is_dir()]
    if not names:
        raise UsageError(f"{root} has no class folder; {what_to_name(root, root)}")
    if options.only is None:  # the user's own list may call a class "train"
        require_classes(
            sorted(names),
            root,
            holds_folders=lambda name: _holds_folders(root / name),
            remedy=lambda name: f"name one of them, such as {root / name}",
        )
    for name in options.chosen(names, root, advice=lambda name: what_to_name(root, root / name)):
        _add_class(finder, name)
    finder.skip(len(visible) - len(names), f"files of {root} that lie in no class folder")
    return finder.source(partial(FileContents, root))


def _add_class(finder: Finder, name: str) -> None:
    root = finder.place
    files = sorted(
        _files_below(finder, root / name, name, ()), key=lambda file: (sample_key(file[0]), file[0])
    )
    images = [file for file in files if finder.keeps(file[0])]
    if not images:
        raise UsageError(
            f"class {name} of {root} holds no images; fill it or remove the folder, or {OTHERS}"
        )
    finder.add(
        Found(name, sample_key(path), path, status.st_size, status.st_mtime_ns)
        for path, status in images
    )


def _files_below(
    finder: Finder, folder: Path, name: str, parents: tuple[tuple[int, int], ...]
) -> Iterator[tuple[str, os.stat_result]]:
    """Yield (name below the root, status); ``parents`` are the folders above, to find a cycle."""
    status = folder.stat()
    here = status.st_dev, status.st_ino
    if here in parents:
        raise UsageError(f"{folder} links to a folder above itself; remove the link")
    visible, n_hidden = listed_entries(folder)
    finder.n_hidden += n_hidden
    for entry in visible:
        entry_name = f"{name}/{entry.name}"
        if entry.is_dir():
            yield from _files_below(finder, folder / entry.name, entry_name, (*parents, here))
        elif entry.is_file():
            yield entry_name, entry.stat()
        else:
            raise UsageError(f"{folder / entry.name} is a broken link or a device; remove it")


def require_classes(
    names: Sequence[str],
    place: Path,
    *,
    holds_folders: Callable[[str], bool],
    remedy: Callable[[str], str],
) -> None:
    """Refuse splits (``train``, ``val``) and parts (``images``, ``masks``) in place of classes.

    ``names`` are sorted. They are those of splits if two are split words, if they tell of two
    splits and one of them holds folders (``seg_train``, ``seg_test``), or if a split word stands
    alone and holds folders. ``remedy`` says what to do about splits, given the first one.
    """
    splits = [name for name in names if split_of(name)]
    words = [name for name in splits if name.lower() in SPLIT_OF_WORD]
    likely = len({split_of(name) for name in splits}) > 1 or words == list(names)
    if len(words) > 1:
        splits = words
    elif not (likely and any(map(holds_folders, splits))):
        splits = []
    if_classes = f"(if they are classes, list them {_NAME_LIST})"
    if splits:
        raise UsageError(
            f"{place} holds the splits {', '.join(splits)}, not classes; {remedy(splits[0])} "
            f"{if_classes}"
        )
    parts = [name for name in names if name.lower() in _BESIDE_IMAGES]
    if parts and "images" in map(str.lower, names):
        raise UsageError(
            f"{place} holds the parts {', '.join(['images', *parts])} of a data set, not classes; "
            "name a folder with one folder per class, or a CSV list of paths and labels "
            f"{if_classes}"
        )


def what_to_name(root: Path, folder: Path) -> str:
    """Say what to pack instead of ``root``: folders in ``folder``, else a list of its images."""
    if folder != root and _holds_folders(folder):
        return f"if its folders are the classes, name {folder}"
    path, words = next(_lists(folder), (None, []))
    if path is None:
        return "name a folder that holds one folder per class"
    if len(words) > 1 and WNID.fullmatch(words[1]):
        return f"{path} labels its images: coreset pack {root} DATA --ground-truth {path}"
    if path.suffix == ".csv" and (path.parent / words[0]).is_file():
        return f"{path} lists its images: coreset pack {path} DATA"
    return (
        f"{path} lists its images: write a CSV file with the columns path and label from it and "
        "pack that file"
    )


def _holds_folders(folder: Path) -> bool:
    return any(entry.is_dir() for entry in visible_entries(folder))


def _lists(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    images = {entry.name for entry in visible_entries(folder) if is_image_name(entry.name)}
    # A line may begin with a number without being about the image of that name.
    images |= {stem for stem in map(stem_of, images) if not stem.isdecimal()}
    for place in (folder, folder.parent):
        entries = sorted(entry.name for entry in visible_entries(place) if entry.is_file())
        lists = (place / name for name in entries if extension_of(name) in _LIST_EXTENSIONS)
        for path in islice(lists, _MOST_LISTS):
            text = ""
            with suppress(OSError), path.open(encoding="utf-8-sig", errors="replace") as file:
                text = file.read(_PEEKED_CHARACTERS)
            for line in text.splitlines()[:_PEEKED_LINES]:
                words = [word for word in re.split(r"[\s,;\"']+", line) if word]
                if words and words[0].rpartition("/")[2] in images:
                    yield path, words
