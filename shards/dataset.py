"""A packed data set as its readers see it: manifest and sample table, checked."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntFlag
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from shards.atomic import sha256_of_file
from shards.errors import ManifestError
from shards.manifest import Manifest

SAMPLES_NAME = "samples.parquet"
QUARANTINE_NAME = "quarantine.parquet"

Table: TypeAlias = Any  # pyarrow.Table, which has no types


class Flag(IntFlag):
    """What a decoder must know about a stored image before it decodes it."""

    GREY = 1
    CMYK = 2
    EXIF_ROTATED = 4
    """The EXIF orientation is not upright; ignored, as torchvision does."""
    PROGRESSIVE = 8
    DEEP = 16
    """More than 8 bits per channel."""
    ALPHA = 32
    PALETTE = 64
    MISNAMED = 128
    """The file's extension is that of another format."""
    ODD_SAMPLING = 256
    """A JPEG whose colours are sampled as only Pillow reads it: 4:4:1, 4:1:0, 3 x 1 ..."""


SAMPLES_SCHEMA = pa.schema(
    [
        ("id", pa.int64()),
        ("member", pa.string()),  # name of the image in its tar, e.g. 000000042.jpg
        ("shard", pa.int32()),
        ("offset", pa.int64()),  # of the image bytes in the tar
        ("bytes", pa.int64()),
        ("format", pa.string()),  # jpg, png or webp, by content
        ("label", pa.int64()),  # position in the class list
        ("class", pa.string()),
        ("folder_label", pa.int64()),  # label by folder; differs from `label` where --labels did
        ("key", pa.string()),  # class folder and file stem
        ("source", pa.string()),  # path below the source folder
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("content_hash", pa.binary(16)),  # xxh3_128 of the stored bytes, big-endian
        ("source_hash", pa.binary(16)),  # the same of the bytes as found, before any re-encoding
        ("flags", pa.int32()),
    ]
)
QUARANTINE_SCHEMA = pa.schema(
    [
        ("position", pa.int64()),  # among the found, in pack order
        ("source", pa.string()),
        ("key", pa.string()),
        ("class", pa.string()),
        ("bytes", pa.int64()),
        ("content_hash", pa.binary(16)),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)


@dataclass(frozen=True)
class Dataset:
    """A packed data set: ``manifest``, and one row of the sample table per sample id.

    Columns are read from the disk when they are asked for, so that opening 1.28 million samples
    takes no longer than checking the table's digest.
    """

    path: Path
    manifest: Manifest

    @staticmethod
    def open(path: Path) -> "Dataset":
        """Read the manifest and check the sample table against it.

        Raises:
            UsageError: ``path`` is not a packed data set.
            ManifestError: The sample table is missing or not the one that the manifest describes.
        """
        manifest = Manifest.read(path)
        table_path = path / SAMPLES_NAME
        if not table_path.is_file() or sha256_of_file(table_path) != manifest.samples_sha256:
            raise ManifestError(
                f"{table_path} is not the table that manifest.json describes; pack again"
            )
        return Dataset(path, manifest)

    def __len__(self) -> int:
        return self.manifest.n_samples

    def table(self, columns: Sequence[str] | None = None) -> Table:
        """Some columns of the sample table, or all, in id order; read anew at each call."""
        names = None if columns is None else list(columns)
        with pq.ParquetFile(self.path / SAMPLES_NAME) as file:  # `read_table` imports much more
            return file.read(columns=names)

    @cached_property
    def samples(self) -> Table:
        """The whole sample table, kept in memory once asked for (about 200 bytes a sample)."""
        return self.table()

    @property
    def classes(self) -> tuple[str, ...]:
        """Class list."""
        return self.manifest.classes

    @property
    def labels(self) -> NDArray[np.int64]:
        """Label of every sample id, int64."""
        return self.ints("label")

    @property
    def keys(self) -> list[str]:
        """Sample key of every sample id."""
        return self.table(["key"])["key"].to_pylist()

    def ints(self, column: str) -> NDArray[np.int64]:
        """An integer column in id order, int64; read once."""
        if column not in self._ints:
            values = self.table([column])[column].combine_chunks()
            # By `to_numpy` pyarrow would import pandas where it is installed: 35 MB and 0.9 s.
            self._ints[column] = np.from_dlpack(values).astype(np.int64)
        return self._ints[column]

    @cached_property
    def _ints(self) -> dict[str, NDArray[np.int64]]:
        return {}

    def shard_paths(self) -> list[Path]:
        """Tar files in order."""
        return [self.path / shard.name for shard in self.manifest.shards]
