"""Parquet files of image bytes and labels, as the Hugging Face Hub keeps image data sets.

Pages of parquet cannot be read at random, so the images are decompressed into a spool folder first,
see ``shards.sources.staging``. The image column is a struct with ``bytes`` and perhaps ``path``, or
binary of any kind; it is one of ``IMAGE_COLUMNS``, or the only such one.
"""

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from coreset.shards.arrow import ArrowColumn, ArrowSchema, ArrowTable, ArrowType
from coreset.shards.errors import UsageError
from coreset.shards.sources.base import Source, SourceOptions, compute
from coreset.shards.sources.finder import Finder, Found, RangeContents, state_of
from coreset.shards.sources.names import listed_key, require_one_split, split_of
from coreset.shards.sources.staging import Image, StagedFile, blob_of, staged
from coreset.shards.sources.table import RowClasses, row_classes
from coreset.shards.sources.tar_scan import REGULAR_FILE
from coreset.shards.tables.formats import open_parquet

IMAGE_COLUMNS = ("image", "img")
_ROWS_AT_ONCE = 64
_NUMBERED = re.compile(r"(?P<split>.+)-(?P<number>\d+)-of-(?P<count>\d+)(?:-[0-9a-f]+)?")
# Of the wnid that the Hub's imagenet-1k appends to the name of every ILSVRC file.
_WNID_SUFFIX = re.compile(r"_n\d{8}(?=\.[^./]*$|$)")


def find_parquet(src: Path, options: SourceOptions) -> Source:
    """Spool the images of parquet files and list them, sorted by the bytes of their sample keys.

    ``src`` is a file, or a folder that holds those of one split, itself or in ``data``. A key is
    the class and the stem of the stored path, without the wnid that the Hub's imagenet-1k appends
    to it. Where no path is stored, or different images would have one key by it, it is the class,
    the stem of the parquet file and the row. Images of classes that are not taken are not spooled.
    """
    if options.spool is None:
        raise ValueError("spool must be a folder to decompress parquet files into, got None")
    files = _parquet_files(src)
    if src.is_dir():
        _require_one_split(files)
    tables = [_table_of(path, src, options) for path in files]
    finder = Finder(place=src, repeats=options.repeats)
    _choose(finder, tables, options)
    keyed = [
        rows.append_column("key", [pa.array(table.keys(rows), pa.large_string())])
        for table, rows in zip(tables, staged(tables, options.spool, options), strict=True)
    ]
    shared = _shared_keys(keyed)
    for number, (table, rows) in enumerate(zip(tables, keyed, strict=True)):
        finder.add(table.found(number, rows, shared))
    return finder.source(partial(RangeContents, [blob_of(path, options.spool) for path in files]))


def is_parquet(src: Path) -> bool:
    """Test for a parquet file with a column of images, or a folder of such; reads one schema."""
    files = _parquet_files(src) if src.is_dir() or src.suffix.lower() == ".parquet" else []
    if not files or not files[0].is_file():
        return False
    with open_parquet(files[0]) as file:
        return any(_holds_images(field.type) for field in file.schema_arrow)


def _parquet_files(src: Path) -> list[Path]:
    if not src.is_dir():
        return [src]
    for folder in (src, src / "data"):
        files = sorted(path for path in folder.glob("*.parquet") if not path.name.startswith("."))
        if files:
            return files
    return []


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table(StagedFile):
    name: str
    classes: RowClasses

    def keys(self, rows: ArrowTable) -> list[str]:
        return list(map(self._key, rows["row"].to_pylist(), rows["path"].to_pylist()))

    def found(self, number: int, rows: ArrowTable, shared: Collection[str]) -> Iterator[Found]:
        """Yield the spooled rows of file ``number``; ``shared`` keys are replaced by row keys."""
        for spooled in rows.to_pylist():
            row, key, size = spooled["row"], spooled["key"], spooled["size"]
            key = self._key(row, None) if key in shared else key
            name, offset = f"{self.name}:{row}", spooled["offset"]
            kind = REGULAR_FILE if spooled["there"] else "no image bytes"
            yield Found(self.classes.of(row), key, name, size, 0, number, offset, kind)

    def _key(self, row: int, path: str | None) -> str:
        class_name = self.classes.of(row)
        key = listed_key(_WNID_SUFFIX.sub("", path), class_name) if path else ""
        return key or f"{class_name}/{self.path.stem}-{row:06d}"


def _table_of(path: Path, src: Path, options: SourceOptions) -> _Table:
    with open_parquet(path) as file:
        column = _image_column(file.schema_arrow, path)
        classes = row_classes(file, path, options)
        takes = np.array([options.takes(name) for name in classes.names], dtype=np.bool_)
        rows = np.flatnonzero(takes[classes.codes])
        groups = map(file.metadata.row_group, range(file.metadata.num_row_groups))
        # Of all columns: asking pyarrow for one ends the process if the file is damaged.
        n_bytes = sum(group.total_byte_size for group in groups)
    state = state_of(path)
    digest = hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest()
    return _Table(
        name=path.relative_to(src).as_posix() if path != src else path.name,
        classes=classes,
        path=path,
        state=state,
        binding=json.dumps([*state, column, digest]).encode(),
        n_images=rows.size,
        image_bytes=n_bytes * rows.size // max(1, classes.codes.size),
        images=partial(_images, path, column, rows),
    )


def _images(path: Path, column: str, wanted: NDArray[np.int64]) -> Iterator[Image]:
    """Yield the rows to take; row groups without one are not read."""
    with open_parquet(path) as file:
        groups = map(file.metadata.row_group, range(file.metadata.num_row_groups))
        starts = list(accumulate((group.num_rows for group in groups), initial=0))
        for group in np.unique(np.searchsorted(starts, wanted, side="right") - 1).tolist():
            first = starts[group]
            for batch in file.iter_batches(
                _ROWS_AT_ONCE, row_groups=[group], columns=[column], use_threads=False
            ):
                rows = wanted[slice(*np.searchsorted(wanted, [first, first + batch.num_rows]))]
                yield from _read_images(rows, first, batch.column(0))
                first += batch.num_rows


def _shared_keys(tables: Sequence[ArrowTable]) -> frozenset[str]:
    rows = pa.concat_tables([table.select(["key", "hash"]) for table in tables])
    images = rows.group_by("key").aggregate([("hash", "count_distinct")])
    several = compute.greater(images["hash_count_distinct"], 1)
    return frozenset(images["key"].filter(several).to_pylist())


def _choose(finder: Finder, tables: Sequence[_Table], options: SourceOptions) -> None:
    existing = {name for table in tables for name in table.classes.names}
    listed = {name for table in tables for name in table.classes.listed}
    options.chosen(existing, finder.place)
    if options.only is None and listed > existing:
        finder.skipped.append(
            f"{len(listed - existing):,} of {len(listed):,} class names, which no row of "
            f"{finder.place} has"
        )


def _read_images(rows: NDArray[np.int64], first: int, images: ArrowColumn) -> Iterator[Image]:
    data, paths = images, None
    if pa.types.is_struct(images.type):
        data = compute.struct_field(images, "bytes")
        if images.type.get_field_index("path") >= 0:
            paths = compute.struct_field(images, "path")
    if pa.types.is_dictionary(data.type):
        data = data.dictionary_decode()
    for row in rows.tolist():
        value = data[row - first]
        path = None if paths is None else paths[row - first].as_py()
        yield row, value.as_buffer() if value.is_valid else None, path


def _holds_images(kind: ArrowType) -> bool:
    if pa.types.is_struct(kind):
        at = kind.get_field_index("bytes")
        return at >= 0 and _holds_images(kind.field(at).type)
    if pa.types.is_dictionary(kind):
        return _holds_images(kind.value_type)
    kinds = pa.types
    tests = kinds.is_binary, kinds.is_large_binary, kinds.is_binary_view, kinds.is_fixed_size_binary
    return any(test(kind) for test in tests)


def _image_column(schema: ArrowSchema, path: Path) -> str:
    columns = [field.name for field in schema if _holds_images(field.type)]
    named = [name for name in IMAGE_COLUMNS if name in columns]
    if named or len(columns) == 1:
        return (named or columns)[0]
    raise UsageError(
        f"{path} has {len(columns)} columns of image bytes, none of them called "
        f"{' or '.join(IMAGE_COLUMNS)}; rename the column of the images"
    )


def _require_one_split(files: Sequence[Path]) -> None:
    matches = [(path, _NUMBERED.fullmatch(path.stem)) for path in files]
    require_one_split(
        files[0].parent,
        (match["split"] if match else split_of(path.stem) or "" for path, match in matches),
    )
    numbered = [match for _, match in matches if match]
    if not numbered:
        return
    first, count = numbered[0], int(numbered[0]["count"])
    missing = sorted(set(range(count)) - {int(match["number"]) for match in numbered})
    if missing:
        raise UsageError(
            f"{files[0].parent} lacks {first['split']}-{missing[0]:0{len(first['number'])}d}-of-"
            f"{first['count']}.parquet ({len(missing):,} of {count:,} files are missing); add "
            "them, or rename the files if these are all that is wanted"
        )
