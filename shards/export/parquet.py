"""Parquet files as the Hugging Face Hub keeps image data sets: image bytes and labels in columns.

The schema metadata ``huggingface`` is what ``datasets`` reads its features from
(``src/datasets/features/features.py``, ``Features.from_arrow_schema``); with it the columns come
back as ``Image`` and ``ClassLabel``. Files of ``data/SPLIT-00000-of-0000N.parquet`` are found
before anything that lies beside them (``src/datasets/data_files.py``).
"""

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from coreset.shards.export.names import ExportPlan, StoredSample, image_name

FOLDER = "data"
ROWS_PER_GROUP = 100  # the Hub's own: a group of images can be previewed without the others
GROUP_BYTES = 64 << 20
_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_Schema: TypeAlias = Any  # pyarrow.Schema, which has no types


def parquet_file(split: str, number: int, n_files: int) -> str:
    """Path of an exported file below the output."""
    return f"{FOLDER}/{split}-{number:05d}-of-{n_files:05d}.parquet"


def schema(classes: Iterable[str]) -> _Schema:
    """Columns ``image`` (bytes, path) and ``label`` (int64), described for ``datasets``."""
    features = {
        "image": {"_type": "Image"},
        "label": {"names": list(classes), "_type": "ClassLabel"},
    }
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.schema([("image", _IMAGE), ("label", pa.int64())], metadata=metadata)


def write_parquet(samples: Iterable[StoredSample], out: Path, plan: ExportPlan) -> None:
    """Write the files row group by row group; at most one group is in memory.

    ``path`` is the image's name in a folder per class, checked as such: programs write it to disk.

    Raises:
        UsageError: A class name or a key cannot be a file name.
    """
    remaining = iter(samples)
    (out / FOLDER).mkdir()
    lengths = plan.shard_lengths
    for number, length in enumerate(lengths):
        path = out / parquet_file(plan.split, number, len(lengths))
        _write_file(islice(remaining, length), path, schema(plan.classes))


def _write_file(samples: Iterator[StoredSample], path: Path, columns: _Schema) -> None:
    # Compressed images do not compress again, and no two are alike.
    with pq.ParquetWriter(
        path, columns, compression="none", use_dictionary=False, write_statistics=False
    ) as writer:
        for group in _row_groups(samples):
            rows = [
                {"image": {"bytes": one.image, "path": image_name(one)}, "label": one.label}
                for one in group
            ]
            writer.write_table(pa.Table.from_pylist(rows, columns))


def _row_groups(samples: Iterator[StoredSample]) -> Iterator[list[StoredSample]]:
    group: list[StoredSample] = []
    group_bytes = 0
    for sample in samples:
        group.append(sample)
        group_bytes += len(sample.image)
        if len(group) == ROWS_PER_GROUP or group_bytes >= GROUP_BYTES:
            yield group
            group, group_bytes = [], 0
    if group:
        yield group
