"""Names of files and folders that are no images and no classes.

Hidden names belong to the system, side-cars accompany images, and splits or parts of a data set are
sometimes taken for classes.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from coreset.shards.errors import UsageError

Item = TypeVar("Item")

SPLIT_OF_WORD = {
    "train": "train", "training": "train", "test": "test",
    "val": "validation", "valid": "validation", "validation": "validation",
}  # fmt: skip
"""What folders and files of a split are called."""
# Not by a leading dot: of archives made on a Mac, of network storage, of disks.
_HIDDEN = frozenset(
    {"__MACOSX", "Icon\r", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information"}
)
# Texts, annotations and tables, arrays, and what desktops leave (Thumbs.db, desktop.ini).
_SIDE_CAR_EXTENSIONS = frozenset(
    {
        "aae", "cls", "csv", "db", "htm", "html", "ini", "json", "jsonl", "lnk", "log", "mat", "md",
        "npy", "npz", "pts", "tsv", "txt", "url", "xml", "xmp", "yaml", "yml",
    }
)  # fmt: skip
_IMAGES = "images"
_BESIDE_IMAGES = frozenset({"annotations", "labels", "masks"})
_NAME_LIST = "in a file and name it with --classes"
_IF_CLASSES = f"if they are classes, list them {_NAME_LIST}"
OTHERS = f"list the other classes {_NAME_LIST}"
"""Remedy for a folder or tar in which there is no image."""


def is_hidden(name: str) -> bool:
    """Tell whether a file or folder is the system's own: ``.DS_Store``, ``__MACOSX``."""
    return name.startswith(".") or name in _HIDDEN


def is_side_car(name: str) -> bool:
    """Tell by the extension of a path whether the file accompanies images without being one."""
    _, dot, extension = name.rpartition(".")
    return bool(dot) and extension.lower() in _SIDE_CAR_EXTENSIONS


def split_of(name: str) -> str | None:
    """Return train, validation or test if exactly one of them is a word of a file or folder name.

    >>> split_of("ILSVRC2012_img_train")
    'train'
    """
    words = re.split(r"[^a-z]+", name.lower())
    splits = {SPLIT_OF_WORD[word] for word in words if word in SPLIT_OF_WORD}
    return splits.pop() if len(splits) == 1 else None


@dataclass(slots=True)
class PassedOver:
    """Counts of files that are no samples by their names."""

    n_hidden: int = 0
    """Hidden files and folders."""
    n_side_cars: int = 0
    first_side_car: str = ""
    """Path below the source."""

    def without_side_cars(
        self, items: Iterable[Item], name_of: Callable[[Item], str]
    ) -> list[Item]:
        """Drop and count side-cars, see `is_side_car`."""
        images: list[Item] = []
        for item in items:
            name = name_of(item)
            if is_side_car(name):
                self.n_side_cars += 1
                self.first_side_car = self.first_side_car or name
            else:
                images.append(item)
        return images

    def phrases(self, place: Path) -> Iterator[str]:
        """Say what was passed over in a source, for the user."""
        if self.n_hidden:
            yield f"{self.n_hidden:,} hidden files and folders of {place}"
        if self.n_side_cars:
            yield (
                f"{self.n_side_cars:,} files of {place} that are no images by their names, such as "
                f"{self.first_side_car}"
            )


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
        holds_folders: Tells whether a class folder holds folders; asked only where it matters.
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


def _splits(names: Sequence[str], holds_folders: Callable[[str], bool]) -> list[str]:
    """Return the names of splits, or none where they may be names of classes."""
    named = sorted(name for name in names if split_of(name))
    words = [name for name in named if name.lower() in SPLIT_OF_WORD]
    if len(words) > 1:
        return words
    likely = len({split_of(name) for name in named}) > 1 or words == list(names)
    return named if likely and any(map(holds_folders, named)) else []


def holds_folders(folder: Path) -> bool:
    """Tell whether a folder holds folders that are not hidden."""
    return any(entry.is_dir() for entry in visible_entries(folder))


def visible_entries(folder: Path) -> list[os.DirEntry[str]]:
    """List the entries of a folder that are not hidden; errors as of `listed_entries`."""
    return listed_entries(folder)[0]


def listed_entries(folder: Path) -> tuple[list[os.DirEntry[str]], int]:
    """List the entries of a folder that are not hidden, and count the hidden ones.

    Raises:
        UsageError: It is no folder, or may not be listed.
    """
    try:
        with os.scandir(folder) as entries:
            found = list(entries)
    except PermissionError as error:
        raise UsageError(
            f"{folder} cannot be listed; make it readable and run this again"
        ) from error
    except (FileNotFoundError, NotADirectoryError) as error:
        fact = "is not a folder" if folder.exists() else "does not exist"
        raise UsageError(
            f"{folder} {fact}; name a folder that holds one folder per class"
        ) from error
    visible = [entry for entry in found if not is_hidden(entry.name)]
    return visible, len(found) - len(visible)
