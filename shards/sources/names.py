"""Names of files, folders and samples, as every layout of a source reads them."""

import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from coreset.shards.errors import DataError, UsageError
from coreset.shards.images.probe import without_extension

WNID = re.compile(r"n\d{8}")
SPLIT_OF_WORD = {
    "train": "train", "training": "train", "test": "test",
    "val": "validation", "valid": "validation", "validation": "validation",
}  # fmt: skip
"""Split by the words that folders and files of it are called."""
# Without a leading dot: of archives made on a Mac, of network storage, of disks.
_HIDDEN = frozenset(
    {"__MACOSX", "Icon\r", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information"}
)
# Texts, annotations and tables, arrays, and what desktops leave (Thumbs.db, desktop.ini).
SIDE_CAR_EXTENSIONS = frozenset({
    "aae", "cls", "csv", "db", "htm", "html", "ini", "json", "jsonl", "lnk", "log", "mat", "md",
    "npy", "npz", "pts", "tsv", "txt", "url", "xml", "xmp", "yaml", "yml",
})  # fmt: skip
# No digest could hold a surrogate, which has no UTF-8 form.
_UNSAFE_CHARACTER = re.compile("[\0-\x1f\x7f-\x9f\ud800-\udfff]")
_PART_LIMIT_BYTES = 255
_SHOWN_LENGTH = 100
_BESIDE_IMAGES = frozenset({"annotations", "labels", "masks"})
NAME_LIST = "in a file and name it with --classes"
"""Remedy for classes that are not what they should be."""
MAKE_AGAIN = "make the tar again from its folder"


def is_hidden(name: str) -> bool:
    """Test whether a file or folder is the system's own: ``.DS_Store``, ``__MACOSX``."""
    return name.startswith(".") or name in _HIDDEN


def stem_of(name: str) -> str:
    """Return the name of an image without folders and without the extension of an image format."""
    return without_extension(name.rpartition("/")[2])


def split_of(name: str) -> str | None:
    """Return train, validation or test if exactly one of them is a word of a file or folder name.

    >>> split_of("ILSVRC2012_img_train")
    'train'
    """
    words = re.split(r"[^a-z]+", name.lower())
    splits = {SPLIT_OF_WORD[word] for word in words if word in SPLIT_OF_WORD}
    return splits.pop() if len(splits) == 1 else None


def require_one_split(place: Path, splits: Iterable[str]) -> None:
    """Refuse a folder whose files belong to several splits."""
    names = sorted(set(splits))
    if len(names) > 1:
        raise UsageError(
            f"{place} holds the splits {', '.join(name or '(none)' for name in names)}; move or "
            "link the files of one split into a folder of their own and name that"
        )


def require_classes(
    names: Sequence[str], place: Path, *, holds_folders: Callable[[str], bool]
) -> None:
    """Refuse splits (``train``, ``val``) and parts (``images``, ``masks``) in place of classes.

    ``names`` are sorted. They are those of splits if two are split words, if they tell of two
    splits and one of them holds folders (``seg_train``, ``seg_test``), or if a split word stands
    alone and holds folders.
    """
    splits = [name for name in names if split_of(name)]
    words = [name for name in splits if name.lower() in SPLIT_OF_WORD]
    likely = len({split_of(name) for name in splits}) > 1 or words == list(names)
    if len(words) > 1:
        splits = words
    elif not (likely and any(map(holds_folders, splits))):
        splits = []
    if_classes = f"(if they are classes, list them {NAME_LIST})"
    if splits:
        raise UsageError(
            f"{place} holds the splits {', '.join(splits)}, not classes; name the (unpacked) "
            f"folder or tar of one of them, such as {splits[0]} {if_classes}"
        )
    parts = [name for name in names if name.lower() in _BESIDE_IMAGES]
    if parts and "images" in map(str.lower, names):
        raise UsageError(
            f"{place} holds the parts {', '.join(['images', *parts])} of a data set, not classes; "
            "name a folder with one folder per class, or a CSV list of paths and labels "
            f"{if_classes}"
        )


def sample_key(name: str) -> str:
    """Return the sample key of a path from its class folder on: without the last extension."""
    folder, _, file = name.rpartition("/")
    return f"{folder}/{file.rpartition('.')[0] or file}"


def listed_key(path: str, class_name: str) -> str:
    """Return the sample key of a listed path, which begins at the folder called like the class.

    The key is the class and the stem where no folder is called so; empty if ``path`` names no file.
    Folders before ``..`` do not count.

    >>> listed_key("/data/train/n01440764/n01440764_10026.JPEG", "n01440764")
    'n01440764/n01440764_10026'
    """
    parts = [part for part in path.replace("\\", "/").split("/") if part not in {"", "."}]
    if ".." in parts:
        parts = parts[len(parts) - parts[::-1].index("..") :]
    if not parts:
        return ""
    return sample_key("/".join([class_name, *below_class(parts[:-1], class_name), parts[-1]]))


def below_class(folders: list[str], class_name: str) -> list[str]:
    """Return the folders within the first one called like the class; none without such a one."""
    return folders[folders.index(class_name) + 1 :] if class_name in folders else []


def whole_key(path: str, class_name: str) -> str:
    """Return the sample key of a listed path that keeps all its folders.

    >>> whole_key("../img/a/1.png", "cat")
    'cat/img/a/1'
    """
    parts = [part for part in path.replace("\\", "/").split("/") if part not in {"", ".", ".."}]
    return sample_key("/".join([class_name, *parts]))


def safe_parts(name: str) -> tuple[str, ...]:
    """Split a member name at ``/``, without one leading ``./``; DataError if it may do harm."""
    if _UNSAFE_CHARACTER.search(name):
        raise DataError(f"member name {shown(name)} has a control character; {MAKE_AGAIN}")
    parts = tuple(name.removeprefix("./").split("/"))
    for part in parts:
        if part in {"", ".", ".."}:
            raise DataError(f"member name {shown(name)} has the part {part!r}; {MAKE_AGAIN}")
        if len(part.encode()) > _PART_LIMIT_BYTES:
            raise DataError(
                f"member name {shown(name)} has a part of {len(part.encode()):,} bytes, above the "
                f"limit of {_PART_LIMIT_BYTES}; rename it"
            )
    return parts


def shown(name: str) -> str:
    """Quote a name for error messages: escaped, on one line, about 100 characters at most."""
    return repr(name if len(name) <= _SHOWN_LENGTH else f"{name[:_SHOWN_LENGTH]}...")


def visible_entries(folder: Path) -> list[os.DirEntry[str]]:
    """List the entries of a folder that are not hidden."""
    return listed_entries(folder)[0]


def listed_entries(folder: Path) -> tuple[list[os.DirEntry[str]], int]:
    """List the entries of a folder that are not hidden, and count the hidden ones."""
    try:
        with os.scandir(folder) as scan:
            entries = list(scan)
    except PermissionError as error:
        raise UsageError(
            f"{folder} cannot be listed; make it readable and run this again"
        ) from error
    visible = [entry for entry in entries if not is_hidden(entry.name)]
    return visible, len(entries) - len(visible)
