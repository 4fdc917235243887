"""Refuse folders and files that are no classes or no single split, and say what to name instead."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from coreset.shards.errors import UsageError
from coreset.shards.sources.names import (
    SPLIT_OF_WORD,
    WNID,
    extension_of,
    is_image_name,
    split_of,
    stem_of,
    visible_entries,
)

_NAME_LIST = "in a file and name it with --classes"
OTHERS = f"list the other classes {_NAME_LIST}"
"""Remedy for a folder or tar in which there is no image."""
_IF_CLASSES = f"if they are classes, list them {_NAME_LIST}"
_IMAGES = "images"
_BESIDE_IMAGES = frozenset({"annotations", "labels", "masks"})
_LIST_EXTENSIONS = frozenset({"csv", "tsv", "txt"})
_MOST_LISTS = 100
_PEEKED_BYTES = 4096
_PEEKED_LINES = 3
_BETWEEN_WORDS = re.compile(r"[\s,;\"']+")


def require_classes(
    names: Sequence[str],
    place: Path,
    *,
    holds_folders: Callable[[str], bool],
    remedy: Callable[[str], str],
) -> None:
    """Refuse splits (``train``, ``val``) and parts (``images``, ``masks``) in place of classes.

    Names are those of splits if two are split words, if they tell of two splits and one of them
    holds folders (``seg_train``, ``seg_test``), or if a split word stands alone and holds folders.

    Args:
        names: Class folders, or class tars without their extension.
        place: Where they lie.
        holds_folders: Tests whether a class folder holds folders; asked only where it matters.
        remedy: What to do about splits, given the first one.

    Raises:
        UsageError: These are not classes.
    """
    if splits := _splits(names, holds_folders):
        raise UsageError(
            f"{place} holds the splits {', '.join(splits)}, not classes; {remedy(splits[0])} "
            f"({_IF_CLASSES})"
        )
    parts = sorted(name for name in names if name.lower() in _BESIDE_IMAGES)
    if parts and _IMAGES in map(str.lower, names):
        raise UsageError(
            f"{place} holds the parts {', '.join([_IMAGES, *parts])} of a data set, not classes; "
            "name a folder with one folder per class, or a CSV list of paths and labels "
            f"({_IF_CLASSES})"
        )


def require_one_split(place: Path, splits: Iterable[str]) -> None:
    """Refuse a folder whose files belong to several splits.

    Raises:
        UsageError: They do.
    """
    names = sorted(set(splits))
    if len(names) > 1:
        raise UsageError(
            f"{place} holds the splits {', '.join(name or '(none)' for name in names)}; move or "
            "link the files of one split into a folder of their own and name that"
        )


def holds_folders(folder: Path) -> bool:
    """Test whether a folder holds folders that are not hidden."""
    return any(entry.is_dir() for entry in visible_entries(folder))


def what_to_name(root: Path, folder: Path) -> str:
    """Say what to pack instead of ``root``, whose images lie in ``folder`` alone.

    Folders within ``folder`` come first, then a text file that labels the images: one in ``folder``
    or beside it of whose first lines one begins with the name of an image.
    """
    if folder != root and holds_folders(folder):
        return f"if its folders are the classes, name {folder}"
    for path, words in _lists(folder):  # the first one
        if len(words) > 1 and WNID.fullmatch(words[1]):
            return f"{path} labels its images: coreset pack {root} DATA --ground-truth {path}"
        if path.suffix == ".csv" and (path.parent / words[0]).is_file():
            return f"{path} lists its images: coreset pack {path} DATA"
        return (
            f"{path} lists its images: write a CSV file with the columns path and label from it "
            "and pack that file"
        )
    return "name a folder that holds one folder per class"


def _splits(names: Sequence[str], holds_folders: Callable[[str], bool]) -> list[str]:
    """Return the names of splits, or none where they may be names of classes."""
    named = sorted(name for name in names if split_of(name))
    words = [name for name in named if name.lower() in SPLIT_OF_WORD]
    if len(words) > 1:
        return words
    likely = len({split_of(name) for name in named}) > 1 or words == list(names)
    return named if likely and any(map(holds_folders, named)) else []


def _lists(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield the files that list images of a folder, each with the words of one such line."""
    names = _image_names(folder)
    for place in (folder, folder.parent):
        entries = sorted(entry.name for entry in visible_entries(place) if entry.is_file())
        lists = (place / name for name in entries if extension_of(name) in _LIST_EXTENSIONS)
        for path in islice(lists, _MOST_LISTS):
            for words in _first_lines(path):
                if words[0].rpartition("/")[2] in names:
                    yield path, words


def _image_names(folder: Path) -> set[str]:
    """Return the file names of a folder's images, and their stems unless these are numbers."""
    names = {entry.name for entry in visible_entries(folder) if is_image_name(entry.name)}
    return names | {stem for stem in map(stem_of, names) if not stem.isdecimal()}


def _first_lines(path: Path) -> Iterator[list[str]]:
    """Yield the words of the first lines that have some; none of a file that cannot be read."""
    try:
        with path.open("rb") as file:
            text = file.read(_PEEKED_BYTES).decode("utf-8-sig", errors="replace")
    except OSError:
        return
    for line in text.splitlines()[:_PEEKED_LINES]:
        words = [word for word in _BETWEEN_WORDS.split(line) if word]
        if words:
            yield words
