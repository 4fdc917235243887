"""Advice where images lie without a folder per class: what to name instead, what labels them."""

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from coreset.shards.images.probe import FORMAT_OF_EXTENSION
from coreset.shards.sources.ground_truth import WNID, stem_of
from coreset.shards.sources.names import holds_folders, visible_entries
from coreset.shards.sources.tars import extension_of

_LIST_EXTENSIONS = frozenset({"csv", "tsv", "txt"})
_MOST_LISTS = 100
_PEEKED_BYTES = 4096
_PEEKED_LINES = 3
_BETWEEN_WORDS = re.compile(r"[\s,;\"']+")


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
    names = {
        entry.name
        for entry in visible_entries(folder)
        if extension_of(entry.name) in FORMAT_OF_EXTENSION
    }
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
