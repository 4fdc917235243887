"""Which layout a source has, told by what lies there; then the finder of that layout."""

from pathlib import Path

from shards.errors import UsageError
from shards.manifest import MANIFEST_NAME
from shards.sources.base import Source
from shards.sources.folder import find_folder
from shards.sources.packed import find_packed
from shards.sources.wanted import Wanted


def find(src: Path, wanted: Wanted) -> Source:
    """Find the samples of any source.

    Raises:
        UsageError: ``src`` is missing, of no known layout, or not what ``wanted`` asks for.
        DataError: A file of it is damaged.
    """
    if (src / MANIFEST_NAME).is_file():
        return find_packed(src, wanted)
    if src.is_dir() or not src.exists():
        return find_folder(src, wanted)
    raise UsageError(f"{src} is not a folder; name a folder that holds one folder per class")
