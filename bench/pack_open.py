"""Large packed data sets of no images, for what opens and verifies them.

Manifest, sample table and every size are what a real one would have; the shards are sparse files of
the recorded size, so that terabytes fit on any disk.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from coreset.shards.format.dataset import (
    QUARANTINE_NAME,
    QUARANTINE_SCHEMA,
    SAMPLES_NAME,
    SAMPLES_SCHEMA,
)
from coreset.shards.format.files import sha256_of_file
from coreset.shards.format.manifest import (
    MANIFEST_NAME,
    DatasetDigests,
    Manifest,
    ShardEntry,
    classes_digest,
)
from coreset.shards.format.tar import BLOCK_BYTES, END, index_path, padded, shard_name

CLASSES = 1000
_IMAGE_BYTES = 110_000  # the mean of ImageNet
_SAMPLE_BYTES = padded(_IMAGE_BYTES) + 3 * BLOCK_BYTES  # two headers and the label's block
_INDEX_BYTES_PER_SAMPLE = 80


def write_dataset(data: Path, *, shards: int, samples: int) -> Manifest:
    """Make a packed data set of ``samples`` samples, spread evenly over ``shards`` shards."""
    data.mkdir(parents=True)
    bounds = np.linspace(0, samples, shards + 1).astype(np.int64)
    digests = DatasetDigests()
    with pq.ParquetWriter(data / SAMPLES_NAME, SAMPLES_SCHEMA, compression="zstd") as writer:
        for columns in _row_groups(bounds, digests):
            writer.write_table(pa.table(columns, SAMPLES_SCHEMA))
    pq.write_table(QUARANTINE_SCHEMA.empty_table(), data / QUARANTINE_NAME)
    entries = tuple(_sparse_shard(data, shard, bounds) for shard in range(shards))
    classes = tuple(f"n{label:08d}" for label in range(CLASSES))
    manifest = Manifest(
        name="sparse",
        split="train",
        classes=classes,
        settings={},
        n_found=samples,
        n_samples=samples,
        n_quarantined=0,
        kinds={"jpg": samples},
        shards=entries,
        identity=digests.identity,
        content=digests.content,
        classes_sha256=classes_digest(classes),
        samples_sha256=sha256_of_file(data / SAMPLES_NAME),
        quarantine_sha256=sha256_of_file(data / QUARANTINE_NAME),
    )
    (data / MANIFEST_NAME).write_bytes(manifest.to_bytes())
    return manifest


def _sparse_shard(data: Path, shard: int, bounds: np.ndarray) -> ShardEntry:
    samples = int(bounds[shard + 1] - bounds[shard])
    path = data / shard_name(shard)
    sizes = samples * _SAMPLE_BYTES + len(END), samples * _INDEX_BYTES_PER_SAMPLE
    for file, size in zip((path, index_path(path)), sizes, strict=True):
        file.touch()
        os.truncate(file, size)
    return ShardEntry(
        name=path.name,
        first_position=int(bounds[shard]),
        found=samples,
        samples=samples,
        bytes=sizes[0],
        index_bytes=sizes[1],
        sha256=f"{shard:064x}",  # as long as a real one; sparse bytes have another
    )


def _row_groups(bounds: np.ndarray, digests: DatasetDigests) -> Iterator[dict[str, object]]:
    """Columns of ``SAMPLES_SCHEMA``; hashes are as incompressible as real ones."""
    rng = np.random.default_rng(0)
    samples = int(bounds[-1])
    for first in range(0, samples, 1 << 17):
        ids = np.arange(first, min(first + (1 << 17), samples))
        shards = np.searchsorted(bounds, ids, side="right") - 1
        labels = ids * 7919 % CLASSES  # shuffled classes, as a pack has them
        hashes = [rng.bytes(16) for _ in ids]
        keys = [f"n{label:08d}/n{label:08d}_{one}" for one, label in zip(ids, labels, strict=True)]
        digests.add(keys, labels.tolist(), hashes)
        yield {
            "id": ids,
            "member": [f"{one:09d}.jpg" for one in ids],
            "shard": shards.astype(np.int32),
            "offset": (ids - bounds[shards]) * _SAMPLE_BYTES + BLOCK_BYTES,
            "bytes": np.full(len(ids), _IMAGE_BYTES),
            "format": ["jpg"] * len(ids),
            "label": labels,
            "class": [f"n{label:08d}" for label in labels],
            "folder_label": labels,
            "key": keys,
            "source": [f"{key}.JPEG" for key in keys],
            "width": np.full(len(ids), 500, dtype=np.int32),
            "height": np.full(len(ids), 375, dtype=np.int32),
            "content_hash": hashes,
            "source_hash": hashes,
            "flags": np.zeros(len(ids), dtype=np.int32),
        }
