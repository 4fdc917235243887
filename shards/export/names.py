"""Interface of the export formats, and names of files that cannot leave the output.

Class names and sample keys come from the data and are hostile until checked.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from coreset.shards.arrow import ArrowTable
from coreset.shards.errors import UsageError

MAX_NAME_BYTES = 255  # of one file name, on every file system in use
# Names that Hugging Face datasets recognises; any other split counts as train.
_SPLITS = {"val": "validation", "valid": "validation", "validation": "validation", "test": "test"}
# Loaders ignore hidden names (".." among them); no file name can hold the other characters.
_UNFIT = re.compile(r"^\.|[\x00-\x1f\x7f/\ud800-\udfff]|^$")
_REMEDY = "use --to webdataset, which names files by sample id, or rename it and pack again"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSample:
    """One image with its stored bytes."""

    sample_id: int
    key: str
    label: int
    class_name: str
    extension: str
    """jpg, png or webp, by content."""
    image: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportPlan:
    """Description of the exported images."""

    name: str
    split: str
    """train, validation or test."""
    classes: tuple[str, ...]
    n_samples: int
    samples_per_shard: int

    @property
    def shard_lengths(self) -> list[int]:
        """Samples of every shard; the last one may be short."""
        whole, rest = divmod(self.n_samples, self.samples_per_shard)
        return [self.samples_per_shard] * whole + [rest] * bool(rest)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFormat:
    """Export format of images: a directory."""

    summary: str
    write: Callable[[Iterable[StoredSample], Path, ExportPlan], None]
    """Write samples, which come one by one, into an empty directory."""
    reader: str
    """Python code that reads the directory ``{out}`` with the split ``{split}``."""
    sharded: bool = False
    """Divided into files of ``samples_per_shard`` samples."""
    class_folders: bool = False
    """Class names are names in the output; torchvision refuses a class without images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListFormat:
    """Export format without images: a file that lists the samples."""

    summary: str
    columns: tuple[str, ...]
    """Columns of the sample table that are listed."""
    content: Callable[[ArrowTable, str], bytes]
    """Make the content from the rows and the suffix of the file."""


def standard_split(split: str) -> str:
    """Return train, validation or test, the names that loaders know, for any name of a split.

    >>> standard_split("val"), standard_split("imagenette")
    ('validation', 'train')
    """
    return _SPLITS.get(split.lower(), "train")


def class_folder(name: str) -> str:
    """Return the class name, checked to be a folder name.

    Raises:
        UsageError: It is empty, hidden, a path, too long or holds control characters.
    """
    if _UNFIT.search(name) or _is_too_long(name):
        raise UsageError(f"class {_shown(name)} cannot be the name of a folder; {_REMEDY}")
    return name


def image_name(sample: StoredSample) -> str:
    """Return the path of an image in a folder per class: ``CLASS/STEM.EXTENSION``.

    The stem is the sample key below its class folder, with ``/`` written as ``%2F`` and ``%`` as
    ``%25``, since loaders take the folder that directly holds an image for its class. A sample
    whose label is not that of its folder keeps its whole key, with a ``/`` before it. Different
    keys have different stems, and the key can be read back.

    Raises:
        UsageError: The key or the class name is not a relative path of plain names.
    """
    folder = class_folder(sample.class_name)
    parts = sample.key.split("/")
    if len(parts) < 2 or any(_UNFIT.search(part) for part in parts):
        raise UsageError(f"sample key {_shown(sample.key)} cannot name a file; {_REMEDY}")
    below = "/".join(parts[1:]) if parts[0] == folder else f"/{sample.key}"
    name = below.replace("%", "%25").replace("/", "%2F") + f".{sample.extension}"
    if _is_too_long(name):
        raise UsageError(
            f"sample key {_shown(sample.key)} makes a file name of more than {MAX_NAME_BYTES} "
            f"bytes; {_REMEDY}"
        )
    return f"{folder}/{name}"


def _is_too_long(name: str) -> bool:
    return len(name.encode(errors="replace")) > MAX_NAME_BYTES


def _shown(name: str) -> str:
    """Write a name for a message: in ASCII and not at full length."""
    return ascii(name if len(name) <= 80 else f"{name[:80]}...")
