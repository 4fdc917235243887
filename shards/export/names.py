"""What other programs get: stored samples as they are, under names that cannot leave the output.

Class names and sample keys come from the data and are hostile until checked. The layouts
themselves are in ``coreset.shards.export``, one module each; they take samples from any reader.
"""

import re
from dataclasses import dataclass

from coreset.shards.errors import UsageError

MAX_NAME_BYTES = 255  # of one file name, on every file system in use
# Names that Hugging Face datasets recognises; whatever else a split is called is trained on.
_SPLITS = {"val": "validation", "valid": "validation", "validation": "validation", "test": "test"}
# Hidden names (".." among them) are passed over by loaders; the others no file name can hold.
_UNFIT = re.compile(r"^\.|[\x00-\x1f\x7f/\ud800-\udfff]|^$")
_REMEDY = "use --to webdataset, which names files by sample id, or rename it and pack again"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSample:
    """One image on its way out."""

    sample_id: int
    key: str
    label: int
    class_name: str
    extension: str
    """jpg, png or webp, by content."""
    image: bytes
    """As stored: nothing is decoded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportPlan:
    """What is about to be written."""

    name: str
    """Name of the data set."""
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


def standard_split(split: str) -> str:
    """train, validation or test: the names that loaders know, for any name of a split.

    >>> standard_split("val"), standard_split("imagenette")
    ('validation', 'train')
    """
    return _SPLITS.get(split.lower(), "train")


def class_folder(name: str) -> str:
    """Return the class name if it can be a folder name.

    Raises:
        UsageError: It is empty, hidden, a path, too long or holds control characters.
    """
    if _UNFIT.search(name) or _is_too_long(name):
        raise UsageError(f"class {_shown(name)} cannot be the name of a folder; {_REMEDY}")
    return name


def image_name(sample: StoredSample) -> str:
    """Path of an image in a folder per class: ``CLASS/STEM.EXTENSION``.

    The stem is the sample key below its class folder, with ``/`` written as ``%2F`` and ``%`` as
    ``%25``, since loaders name the class by the folder that directly holds the image. A sample
    whose label is not that of its folder keeps its whole key, with a ``/`` before it. The stems of
    different keys are different: what was escaped can be read back.

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
    """A name in ASCII and not at full length, for messages."""
    return ascii(name if len(name) <= 80 else f"{name[:80]}...")
