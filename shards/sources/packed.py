"""Packed data set as a source: its table spares decoding, which the content hash guards."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from coreset.shards.arrow import ArrowTable
from coreset.shards.format.dataset import Dataset
from coreset.shards.format.manifest import MANIFEST_NAME
from coreset.shards.images.flags import Flag
from coreset.shards.images.probe import Probe
from coreset.shards.sources.base import DEFAULTS, Source, SourceOptions, compute
from coreset.shards.sources.finder import Finder, Found, RangeContents

_COLUMNS = ("key", "class", "source", "bytes", "shard", "offset",
            "content_hash", "format", "width", "height", "flags")  # fmt: skip
_ROWS_AT_ONCE = 1 << 16


def is_packed(src: Path) -> bool:
    """Test for the manifest of a packed data set."""
    return (src / MANIFEST_NAME).is_file()


def find_packed(root: Path, options: SourceOptions = DEFAULTS) -> Source:
    """Find the samples of a packed data set; ManifestError if its sample table is damaged."""
    dataset = Dataset.open(root)
    # Whoever packed a single class wanted it.
    classes = sorted(replace(options, one_class=True).chosen(dataset.classes, root))
    labels = [dataset.classes.index(name) for name in classes]
    table = dataset.table(_COLUMNS).filter(np.isin(dataset.labels, labels))
    table = table.take(compute.sort_indices(table["key"]))
    finder = Finder(place=root, repeats=options.repeats)
    columns = ("class", "key", "source", "bytes", "shard", "offset")
    for batch in table.to_batches(_ROWS_AT_ONCE):
        rows = zip(*(batch[column].to_pylist() for column in columns), strict=True)
        finder.add([Found(*row[:4], file=row[4], offset=row[5]) for row in rows])
    reader = partial(RangeContents, dataset.shard_paths())
    return finder.source(reader, classes=classes, facts=_facts(table))


def _facts(table: ArrowTable) -> Callable[[int], tuple[bytes, Probe]]:
    hashes, formats = (table[name].combine_chunks() for name in ("content_hash", "format"))
    numbers = [table[name].to_numpy() for name in ("width", "height", "flags")]

    def stored(row: int) -> tuple[bytes, Probe]:
        width, height, flags = (int(column[row]) for column in numbers)
        image = Probe(formats[row].as_py(), width, height, Flag(flags))
        return hashes[row].as_py(), image

    return stored
