"""Detect the layout of a source and find its samples: a new format is one row of ``FORMATS``."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from coreset.shards.errors import UsageError
from coreset.shards.format.files import missing
from coreset.shards.sources.base import Source, SourceOptions
from coreset.shards.sources.folder import find_folder
from coreset.shards.sources.ilsvrc import find_validation, is_validation
from coreset.shards.sources.packed import find_packed, is_packed
from coreset.shards.sources.parquet import find_parquet, is_parquet
from coreset.shards.sources.table import find_table, is_table
from coreset.shards.sources.tars import find_class_tars, tar_layout
from coreset.shards.sources.webdataset import find_webdataset


@dataclass(frozen=True, slots=True)
class Format:
    """A layout that a source may have."""

    matches: Callable[[Path, SourceOptions], bool]
    """Test whether a file or folder has it. Only names and the heads of files are read."""
    find: Callable[[Path, SourceOptions], Source]


FORMATS: list[Format] = [
    Format(lambda src, _: is_packed(src), find_packed),
    Format(lambda src, options: options.truth is not None or is_validation(src), find_validation),
    Format(lambda src, _: is_parquet(src), find_parquet),
    Format(lambda src, _: is_table(src), find_table),
    Format(lambda src, _: tar_layout(src) == "webdataset", find_webdataset),
    Format(lambda src, _: tar_layout(src) == "classes", find_class_tars),
    Format(lambda src, _: src.is_dir(), find_folder),
]
"""The first that matches is taken."""


def find(src: Path, options: SourceOptions) -> Source:
    """Find the samples of a source of any layout.

    Raises:
        UsageError: ``src`` is missing, of no known layout, or not what the options ask for.
        DataError: A file of it is damaged.
        MachineError: The disk has no room for what must be decompressed.
        LockedError: Another process is decompressing it into the same folder.
    """
    if not src.exists():
        raise missing(src, "name a folder or file that holds images")
    for layout in FORMATS:
        if layout.matches(src, options):
            return layout.find(src, options)
    raise UsageError(
        f"{src} is neither a folder, a tar, a parquet file nor a list (.csv, .tsv, .txt, .json); "
        "name one of these"
    )
