"""Which layout a source has, told by what lies there; then the finder of that layout."""

from pathlib import Path

from coreset.shards.errors import UsageError
from coreset.shards.format.files import missing
from coreset.shards.format.manifest import MANIFEST_NAME
from coreset.shards.sources.base import Source
from coreset.shards.sources.class_tars import find_class_tars
from coreset.shards.sources.folder import find_folder
from coreset.shards.sources.ilsvrc import find_validation, is_validation_folder
from coreset.shards.sources.options import SourceOptions
from coreset.shards.sources.packed import find_packed
from coreset.shards.sources.parquet import find_parquet, is_parquet
from coreset.shards.sources.table import find_table, is_table
from coreset.shards.sources.tars import tar_layout
from coreset.shards.sources.webdataset import find_webdataset

_FINDER_OF_TARS = {
    "classes": find_class_tars,
    "webdataset": find_webdataset,
    "validation": find_validation,
}


def find(src: Path, wanted: SourceOptions) -> Source:
    """Find the samples of any source.

    Raises:
        UsageError: ``src`` is missing, of no known layout, or not what ``wanted`` asks for.
        DataError: A file of it is damaged.
        MachineError: The disk has no room for what must be decompressed.
    """
    if not src.exists():
        raise missing(src, "name a folder or file that holds images")
    if (src / MANIFEST_NAME).is_file():
        return find_packed(src, wanted)
    if wanted.truth is not None or is_validation_folder(src):
        return find_validation(src, wanted)
    if is_parquet(src):
        return find_parquet(src, wanted)
    if is_table(src):
        return find_table(src, wanted)
    tars = tar_layout(src)
    if tars is not None:
        return _FINDER_OF_TARS[tars](src, wanted)
    if src.is_dir():
        return find_folder(src, wanted)
    raise UsageError(
        f"{src} is neither a folder, a tar, a parquet file nor a list (.csv, .tsv, .txt, .json); "
        "name one of these"
    )
