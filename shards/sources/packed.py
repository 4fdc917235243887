"""Packed data set as a source: a subset of its classes, or the same images in another form.

Byte ranges are copied. The sample table spares decoding, and the content hash guards it.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from coreset.shards.format.dataset import Dataset
from coreset.shards.format.manifest import MANIFEST_NAME
from coreset.shards.images.flags import Flag
from coreset.shards.images.probe import Probe
from coreset.shards.sources.base import Source, SourceOptions, Stored, compute
from coreset.shards.sources.contents import RangeContents
from coreset.shards.sources.finder import Finder

_COLUMNS = ("key", "class", "source", "bytes", "shard", "offset",
            "content_hash", "format", "width", "height", "flags")  # fmt: skip
_ROWS_AT_ONCE = 1 << 16


class _TableFacts:
    """Content hashes and headers of the images in the sample table."""

    def __init__(self, table: Any) -> None:  # noqa: ANN401 - pyarrow.Table
        self._hashes, self._formats = (
            table[name].combine_chunks() for name in ("content_hash", "format")
        )
        self._numbers = {name: table[name].to_numpy() for name in ("width", "height", "flags")}

    def stored(self, row: int) -> Stored:
        """Return hash and header of the sample of a row."""
        width, height, flags = (int(column[row]) for column in self._numbers.values())
        image = Probe(self._formats[row].as_py(), width, height, Flag(flags))
        return Stored(self._hashes[row].as_py(), image)


def is_packed(src: Path) -> bool:
    """Test for the manifest of a packed data set."""
    return (src / MANIFEST_NAME).is_file()


def find_packed(root: Path, options: SourceOptions | None = None) -> Source:
    """Find the samples of a packed data set.

    Raises:
        UsageError: ``root`` is not a packed data set, or a class asked for is not in it.
        ManifestError: Its sample table is damaged.
    """
    options, dataset = options or SourceOptions(), Dataset.open(root)
    # Whoever packed a single class wanted it.
    classes = sorted(replace(options, one_class=True).chosen(dataset.classes, root))
    labels = [dataset.classes.index(name) for name in classes]
    table = dataset.table(_COLUMNS).filter(np.isin(dataset.labels, labels))
    table = table.take(compute.sort_indices(table["key"]))
    finder = Finder(place=root, repeats=options.repeats)
    for batch in table.to_batches(_ROWS_AT_ONCE):
        rows = batch.to_pydict()
        finder.add(
            rows["class"],
            rows["key"],
            rows["source"],
            rows["bytes"],
            files=rows["shard"],
            offsets=rows["offset"],
        )
    samples = finder.sorted()
    contents = RangeContents(dataset.shard_paths(), samples.files, samples.offsets)
    return samples.source(contents, classes=classes, facts=_TableFacts(table))
