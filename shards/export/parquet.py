"""Parquet files in the layout of the Hugging Face Hub: image bytes and labels in columns.

``datasets`` reads its features from the schema metadata ``huggingface``
(``src/datasets/features/features.py``, ``Features.from_arrow_schema``), so that the columns come
back as ``Image`` and ``ClassLabel``. It finds ``data/SPLIT-00000-of-0000N.parquet`` before any
other file of the directory (``src/datasets/data_files.py``).
"""

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from coreset.shards.arrow import ArrowSchema
from coreset.shards.export.names import ExportPlan, ImageFormat, StoredSample, image_name

FOLDER = "data"
ROWS_PER_GROUP = 100  # as on the Hub, which previews one group without the others
GROUP_BYTES = 64 << 20
_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def parquet_file(split: str, number: int, n_files: int) -> str:
    """Return the path of a file below the output."""
    return f"{FOLDER}/{split}-{number:05d}-of-{n_files:05d}.parquet"


def schema(classes: Iterable[str]) -> ArrowSchema:
    """Make the columns ``image`` (bytes, path) and ``label`` (int64), with their description."""
    features = {
        "image": {"_type": "Image"},
        "label": {"names": list(classes), "_type": "ClassLabel"},
    }
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.schema([("image", _IMAGE), ("label", pa.int64())], metadata=metadata)


def write_parquet(samples: Iterable[StoredSample], out: Path, plan: ExportPlan) -> None:
    """Write the files row group by row group; at most one group is in memory.

    ``path`` is the image's name in a folder per class, and checked, since programs write to it.

    Raises:
        UsageError: A class name or a key cannot be a file name.
    """
    remaining = iter(samples)
    (out / FOLDER).mkdir()
    lengths = plan.shard_lengths
    for number, length in enumerate(lengths):
        path = out / parquet_file(plan.split, number, len(lengths))
        _write_file(islice(remaining, length), path, schema(plan.classes))


def _write_file(samples: Iterator[StoredSample], path: Path, columns: ArrowSchema) -> None:
    # Compressed images do not compress again, and no two are alike.
    with pq.ParquetWriter(
        path, columns, compression="none", use_dictionary=False, write_statistics=False
    ) as writer:
        for group in _row_groups(samples):
            rows = [
                {"image": {"bytes": s.image, "path": image_name(s)}, "label": s.label}
                for s in group
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


PARQUET = ImageFormat(
    summary="as on the Hugging Face Hub",
    write=write_parquet,
    reader='datasets.load_dataset("{out}", split="{split}")',
    sharded=True,
)
