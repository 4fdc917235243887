"""Layouts of sources: a new format is one row of ``FORMATS``. A packed data set is one of them."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from coreset.shards.arrow import ArrowTable
from coreset.shards.errors import UsageError
from coreset.shards.format.dataset import MANIFEST_NAME, Dataset
from coreset.shards.format.files import missing
from coreset.shards.images.flags import Flag
from coreset.shards.images.probe import Probe
from coreset.shards.sources.base import DEFAULTS, Source, SourceOptions, compute
from coreset.shards.sources.finder import Finder, Found, RangeContents
from coreset.shards.sources.folder import find_folder
from coreset.shards.sources.ilsvrc import find_validation, is_validation
from coreset.shards.sources.parquet import find_parquet, is_parquet
from coreset.shards.sources.table import find_table, is_table
from coreset.shards.sources.tars import find_class_tars, tar_layout
from coreset.shards.sources.webdataset import find_webdataset

_ROWS_AT_ONCE = 1 << 16


def find_packed(root: Path, options: SourceOptions = DEFAULTS) -> Source:
    """Find the samples of a packed data set; ManifestError if its sample table is damaged."""
    dataset = Dataset.open(root)
    # Whoever packed a single class wanted it.
    classes = sorted(replace(options, one_class=True).chosen(dataset.classes, root))
    labels = [dataset.classes.index(name) for name in classes]
    names = ("class", "key", "source", "bytes", "shard", "offset")
    described = ("content_hash", "format", "width", "height", "flags")
    table = dataset.table((*names, *described)).filter(np.isin(dataset.labels, labels))
    table = table.take(compute.sort_indices(table["key"]))
    finder = Finder(place=root, repeats=options.repeats)
    for batch in table.to_batches(_ROWS_AT_ONCE):
        rows = zip(*(batch[name].to_pylist() for name in names), strict=True)
        finder.add(Found(*row[:4], file=row[4], offset=row[5]) for row in rows)
    reader = partial(RangeContents, dataset.shard_paths())
    return finder.source(reader, classes=classes, facts=_facts(table.select(described)))


def _facts(table: ArrowTable) -> Callable[[int], tuple[bytes, Probe]]:
    columns = [column.combine_chunks() for column in table.columns]

    def stored(row: int) -> tuple[bytes, Probe]:
        content_hash, kind, width, height, flags = (column[row].as_py() for column in columns)
        return content_hash, Probe(kind, width, height, Flag(flags))

    return stored


FORMATS: list[
    tuple[Callable[[Path, SourceOptions], bool], Callable[[Path, SourceOptions], Source]]
] = [
    (lambda src, _: (src / MANIFEST_NAME).is_file(), find_packed),
    (lambda src, options: options.truth is not None or is_validation(src), find_validation),
    (lambda src, _: is_parquet(src), find_parquet),
    (lambda src, _: is_table(src), find_table),
    (lambda src, _: tar_layout(src) == "webdataset", find_webdataset),
    (lambda src, _: tar_layout(src) == "classes", find_class_tars),
    (lambda src, _: src.is_dir(), find_folder),
]
"""Tests of a layout, by names and the heads of files, and its finders; the first that matches."""


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
    for matches, find_samples in FORMATS:
        if matches(src, options):
            return find_samples(src, options)
    raise UsageError(
        f"{src} is neither a folder, a tar, a parquet file nor a list (.csv, .tsv, .txt, .json); "
        "name one of these"
    )
