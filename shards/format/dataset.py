"""A packed data set as its readers see it: manifest and sample table, checked."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from coreset.shards.errors import ManifestError
from coreset.shards.format.files import (
    sha256_of_file,
)
from coreset.shards.format.manifest import Manifest, content_digest

SAMPLES_NAME = "samples.parquet"
QUARANTINE_NAME = "quarantine.parquet"
_RANGES = ("shard", "bytes", "offset", "label")
_SIDES = ("width", "height")
_ROWS_AT_ONCE = 1 << 17

Table: TypeAlias = Any  # pyarrow.Table, which has no types


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
            ManifestError: The sample table is missing or not the one that the manifest describes,
                or names places that are not in the shards.
        """
        manifest = Manifest.read(path)
        table_path = path / SAMPLES_NAME
        if not table_path.is_file() or sha256_of_file(table_path) != manifest.samples_sha256:
            raise ManifestError(
                f"{table_path} is not the table that manifest.json describes; pack again"
            )
        dataset = Dataset(path, manifest)
        dataset._require_sound()
        return dataset

    def __len__(self) -> int:
        return self.manifest.n_samples

    def table(self, columns: Sequence[str] | None = None) -> Table:
        """Some columns of the sample table, or all, in id order; read anew at each call.

        Raises:
            ManifestError: The table is damaged, or lacks a value.
        """
        names = None if columns is None else list(columns)
        with self._table_file() as file:
            table = file.read(columns=names)
            table.validate(full=True)
        for name in table.column_names:
            if table[name].null_count:
                raise self._unsound(f"{name} is not known of every sample")
        return table

    @contextmanager
    def _table_file(self) -> Generator[Table]:
        """Open the sample table; whatever pyarrow raises in the block becomes ManifestError."""
        try:
            with pq.ParquetFile(self.path / SAMPLES_NAME) as file:  # `read_table` imports much more
                yield file
        except (pa.ArrowException, OSError) as error:
            raise self._unsound(" ".join(str(error).split())) from error

    def _unsound(self, fact: str) -> ManifestError:
        return ManifestError(
            f"{self.path / SAMPLES_NAME}: {fact}; restore the data set from a copy, or pack again"
        )

    def _require_sound(self) -> None:
        """Check the table's form, and that every row names a place in a shard and a class.

        Raises:
            ManifestError: A row does not, or the table is not of this data set.
        """
        with self._table_file() as file:
            columns = {field.name: field.type for field in file.schema_arrow}
            for field in SAMPLES_SCHEMA:
                if columns.get(field.name) != field.type:
                    raise self._unsound(f"column {field.name} is not of type {field.type}")
            if file.metadata.num_rows != len(self):
                fact = f"rows expected {len(self)}, found {file.metadata.num_rows}"
                raise self._unsound(fact)
            expected = self._shards_of_rows()
            first = 0
            for batch in file.iter_batches(_ROWS_AT_ONCE, columns=list(_RANGES), use_threads=False):
                rows = {name: self._numbers(batch.column(name), name) for name in _RANGES}
                self._require_in_range(first, rows, expected[first : first + len(batch)])
                first += len(batch)

    def _shards_of_rows(self) -> NDArray[np.int32]:
        """Number of the shard that each sample id lies in: rows are in the order of the shards."""
        counts = np.array([entry.samples for entry in self.manifest.shards], np.int64)
        if int(counts.sum()) == len(self):
            return np.repeat(np.arange(counts.size, dtype=np.int32), counts)
        found = np.bincount(self.ints("shard").clip(0, counts.size), minlength=counts.size + 1)
        for entry, count in zip(self.manifest.shards, found.tolist(), strict=False):
            if count != entry.samples:
                fact = f"samples of {entry.name} expected {entry.samples}, found {count}"
                raise self._unsound(fact)
        raise self._unsound(f"{len(self)} samples lie in {counts.sum()} places of the shards")

    def _numbers(self, column: Table, name: str) -> NDArray[Any]:
        if column.null_count:
            raise self._unsound(f"{name} is not known of every sample")
        return np.from_dlpack(column)

    def _require_in_range(
        self, first: int, rows: Mapping[str, NDArray[Any]], shards: NDArray[np.int32]
    ) -> None:
        """Check rows from id ``first`` on; their shards are to be ``shards``."""
        ends, n_bytes = self._shard_bytes[shards], rows["bytes"]
        # As unsigned numbers the negative ones are the largest.
        wrong = {
            "shard": rows["shard"] != shards,
            "bytes": n_bytes.view("u8") > ends.view("u8"),
            "offset": rows["offset"].view("u8") > (ends - n_bytes).view("u8"),
            "label": rows["label"].view("u8") >= len(self.classes),
        }
        for name, rows_wrong in wrong.items():
            if rows_wrong.any():
                row = int(rows_wrong.argmax())
                raise self._unsound(f"{name} of sample {first + row} is {rows[name][row]}")

    @cached_property
    def _shard_bytes(self) -> NDArray[np.int64]:
        return np.array([entry.bytes for entry in self.manifest.shards], np.int64)

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
        """Read an integer column in id order, int64; read once.

        Raises:
            ManifestError: As `table`; or an image has no width or height.
        """
        if column not in self._ints:
            values = self.table([column])[column].combine_chunks()
            # By `to_numpy` pyarrow would import pandas where it is installed: 35 MB and 0.9 s.
            numbers = np.from_dlpack(values).astype(np.int64)
            if column in _SIDES and numbers.min() < 1:
                row = int(numbers.argmin())
                raise self._unsound(f"{column} of sample {row} is {numbers[row]}")
            self._ints[column] = numbers
        return self._ints[column]

    @cached_property
    def _ints(self) -> dict[str, NDArray[np.int64]]:
        return {}

    def shard_paths(self) -> list[Path]:
        """Tar files in order."""
        return [self.path / shard.name for shard in self.manifest.shards]


def subset_content(dataset: Dataset, ids: NDArray[np.int64]) -> str:
    """Content digest of some samples of a data set, in the order of ``ids``."""
    if np.array_equal(ids, np.arange(len(dataset))):
        return dataset.manifest.content  # the same, without a list of 1.28 million digests
    return content_digest(dataset.table(["content_hash"])["content_hash"].take(ids).to_pylist())
