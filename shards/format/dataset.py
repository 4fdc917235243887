"""Packed data set: its manifest and sample table, checked when it is opened, and its two digests.

``identity`` covers the ordered (sample key, label) list: scores and coresets depend on it.
``content`` covers the stored bytes in the same order: features and decoded pixels depend on it.
"""

import hashlib
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from coreset.shards.arrow import ArrowTable, ParquetFile
from coreset.shards.errors import ManifestError
from coreset.shards.format.files import build, json_bytes, missing, parse, sha256_of_file
from coreset.shards.format.tar import shard_name

FORMAT, FORMAT_VERSION = "coreset-shards", 2
MANIFEST_NAME = "manifest.json"
SAMPLES_NAME = "samples.parquet"
QUARANTINE_NAME = "quarantine.parquet"
_CHECKED_COLUMNS = ("shard", "bytes", "offset", "label")

SAMPLES_SCHEMA = pa.schema({
    "id": pa.int64(),
    "member": pa.string(),  # name of the image in its tar, e.g. 000000042.jpg
    "shard": pa.int32(),
    "offset": pa.int64(),  # of the image bytes in the tar
    "bytes": pa.int64(),
    "format": pa.string(),  # jpg, png or webp, by content
    "label": pa.int64(),  # position in the class list
    "class": pa.string(),
    "folder_label": pa.int64(),  # label by folder; differs from `label` where --labels did
    "key": pa.string(),  # class folder and file stem
    "source": pa.string(),  # path below the source folder
    "width": pa.int32(),
    "height": pa.int32(),
    "content_hash": pa.binary(16),  # xxh3_128 of the stored bytes, big-endian
    "source_hash": pa.binary(16),  # the same of the bytes as found, before any re-encoding
    "flags": pa.int32(),
})  # fmt: skip
# The position is that among the found, in pack order.
QUARANTINE_SCHEMA = pa.schema({
    "position": pa.int64(), "source": pa.string(), "key": pa.string(), "class": pa.string(),
    "bytes": pa.int64(), "content_hash": pa.binary(16),
    "reason": pa.string(), "detail": pa.string(),
})  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardEntry:
    """One tar file, of the source files ``first_position`` .. ``first_position + found - 1``."""

    name: str
    first_position: int
    found: int
    samples: int
    bytes: int
    index_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Contents of ``manifest.json``; ``found`` is the sum of packed and refused files."""

    name: str
    split: str
    classes: tuple[str, ...]
    settings: Mapping[str, Any]
    """Options that shaped the bytes: order, order seed, samples per shard, label replacement."""
    n_found: int
    n_samples: int
    n_quarantined: int
    kinds: Mapping[str, int]
    shards: tuple[ShardEntry, ...]
    identity: str
    content: str
    classes_sha256: str
    samples_sha256: str
    quarantine_sha256: str
    format: str = FORMAT
    format_version: int = FORMAT_VERSION

    def to_bytes(self) -> bytes:
        """Write the manifest as canonical JSON."""
        return json_bytes(asdict(self))

    @property
    def digest(self) -> str:
        """Sha256 of the manifest, by which a lineage names the data set."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    @staticmethod
    def read(data: Path) -> "Manifest":
        """Read and check a manifest; UsageError if ``data`` is not a packed data set."""
        path = data / MANIFEST_NAME
        if not path.is_file():
            fault = "is not a packed data set (no manifest.json)"
            raise missing(data, f"run `coreset pack SRC {data}` first", otherwise=fault)
        try:
            document = parse(path.read_bytes())
            version = document.get("format"), document.get("format_version")
            if version[0] is not None and version != (FORMAT, FORMAT_VERSION):
                raise ManifestError(
                    f"{path} has format {version[0]} version {version[1]}, this program reads "
                    f"{FORMAT} version {FORMAT_VERSION}; pack the data set again"
                )
            manifest = build(Manifest, document)
            _check_values(manifest)
        except (OSError, ValueError) as error:
            raise ManifestError(f"{path} cannot be read ({error}); pack it again") from error
        return manifest


def _check_values(manifest: Manifest) -> None:
    if manifest.n_samples < 1:
        raise ValueError(f"n_samples is {manifest.n_samples}")
    if len(set(manifest.classes)) != len(manifest.classes):
        raise ValueError("two classes have one name")
    for number, shard in enumerate(manifest.shards):
        if shard.name != shard_name(number):
            raise ValueError(f"shard {number} is called {shard.name[:40]!r}")
        if min(shard.samples, shard.bytes, shard.index_bytes, shard.found) < 0:
            raise ValueError(f"{shard.name} has a size or a count below 0")
    n_stored = sum(shard.samples for shard in manifest.shards)
    if n_stored != manifest.n_samples:
        raise ValueError(f"n_samples is {manifest.n_samples}, the shards hold {n_stored}")


def identity_bytes(keys: Sequence[str], labels: Sequence[int]) -> bytes:
    """Write ``key TAB label NEWLINE`` for each sample."""
    lines = (f"{key}\t{label}\n" for key, label in zip(keys, labels, strict=True))
    return "".join(lines).encode()


def identity_digest(keys: Sequence[str], labels: Sequence[int]) -> str:
    """Return the sha256 over ``key TAB label NEWLINE`` in id order."""
    return hashlib.sha256(identity_bytes(keys, labels)).hexdigest()


def content_digest(content_hashes: Iterable[bytes]) -> str:
    """Return the sha256 over the 16-byte content hashes of the stored images in id order."""
    return hashlib.sha256(b"".join(content_hashes)).hexdigest()


def classes_digest(classes: Sequence[str]) -> str:
    """Return the sha256 over the class names, one a line."""
    return hashlib.sha256("".join(f"{name}\n" for name in classes).encode()).hexdigest()


@dataclass(frozen=True)
class Dataset:
    """Packed data set: its manifest, and a sample table with one row per sample id.

    Columns are read when they are asked for, so that a large data set is opened quickly.
    """

    path: Path
    manifest: Manifest
    _ints: dict[str, NDArray[np.int64]] = field(default_factory=dict, repr=False, compare=False)

    @staticmethod
    def open(path: Path) -> "Dataset":
        """Read the manifest and check the sample table against it.

        Raises:
            UsageError: ``path`` is not a packed data set.
            ManifestError: One of them is damaged, or a row names bytes outside its shard.
        """
        manifest = Manifest.read(path)
        table_path = path / SAMPLES_NAME
        if not table_path.is_file() or sha256_of_file(table_path) != manifest.samples_sha256:
            raise ManifestError(
                f"{table_path} is not the table that manifest.json describes; pack again"
            )
        dataset = Dataset(path, manifest)
        dataset._check_columns()
        dataset._check_values()
        return dataset

    def __len__(self) -> int:
        return self.manifest.n_samples

    def table(self, columns: Sequence[str] | None = None) -> ArrowTable:
        """Read columns of the sample table, or all, in id order; nothing is cached."""
        with self._table_file() as file:
            table = file.read(columns=None if columns is None else list(columns))
            table.validate(full=True)
        for name in table.column_names:
            if table[name].null_count:
                raise self._damage(f"{name} is not known of every sample")
        return table

    @contextmanager
    def _table_file(self) -> Generator[ParquetFile]:
        """Open the sample table; errors of pyarrow in the block become ManifestError."""
        try:
            with pq.ParquetFile(self.path / SAMPLES_NAME) as file:  # `read_table` imports much more
                yield file
        except (pa.ArrowException, OSError) as error:
            raise self._damage(" ".join(str(error).split())) from error

    def _damage(self, message: str) -> ManifestError:
        remedy = "restore the data set from a copy, or pack again"
        return ManifestError(f"{self.path / SAMPLES_NAME}: {message}; {remedy}")

    def _check_columns(self) -> None:
        with self._table_file() as file:
            types = {column.name: column.type for column in file.schema_arrow}
            for column in SAMPLES_SCHEMA:
                if types.get(column.name) != column.type:
                    raise self._damage(f"column {column.name} is not of type {column.type}")
            if file.metadata.num_rows != len(self):
                raise self._damage(f"rows expected {len(self)}, found {file.metadata.num_rows}")

    def _check_values(self) -> None:
        table = self.table(_CHECKED_COLUMNS)
        rows = {name: np.from_dlpack(table[name].combine_chunks()) for name in _CHECKED_COLUMNS}
        entries = self.manifest.shards
        counts = [entry.samples for entry in entries]
        shards = np.repeat(np.arange(len(entries), dtype=np.int32), counts)
        ends = np.repeat(np.array([entry.bytes for entry in entries], np.int64), counts)
        n_bytes = rows["bytes"]
        # As unsigned numbers the negative ones are the largest.
        wrong = {
            "shard": rows["shard"] != shards,
            "bytes": n_bytes.view("u8") > ends.view("u8"),
            "offset": rows["offset"].view("u8") > (ends - n_bytes).view("u8"),
            "label": rows["label"].view("u8") >= len(self.classes),
        }
        for name, is_wrong in wrong.items():
            if is_wrong.any():
                row = int(is_wrong.argmax())
                raise self._damage(f"{name} of sample {row} is {rows[name][row]}")

    @cached_property
    def samples(self) -> ArrowTable:
        """The whole sample table, kept after the first use (about 200 bytes a sample)."""
        return self.table()

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in label order."""
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
        """Return an integer column in id order, int64, cached; refuse a width or height below 1."""
        if column not in self._ints:
            values = self.table([column])[column].combine_chunks()
            # By `to_numpy` pyarrow would import pandas where it is installed: 35 MB and 0.9 s.
            numbers = np.from_dlpack(values).astype(np.int64)
            if column in {"width", "height"} and numbers.min() < 1:
                row = int(numbers.argmin())
                raise self._damage(f"{column} of sample {row} is {numbers[row]}")
            self._ints[column] = numbers
        return self._ints[column]

    def shard_paths(self) -> list[Path]:
        """Tar files in order."""
        return [self.path / shard.name for shard in self.manifest.shards]


def subset_content(dataset: Dataset, ids: NDArray[np.int64]) -> str:
    """Return the content digest of some samples of a data set, in the order of ``ids``."""
    if np.array_equal(ids, np.arange(len(dataset))):
        return dataset.manifest.content  # the same, without a list of 1.28 million digests
    return content_digest(dataset.table(["content_hash"])["content_hash"].take(ids).to_pylist())
