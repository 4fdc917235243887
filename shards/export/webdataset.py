"""WebDataset shards with DALI's index, and the ``_info.json`` of timm's reader.

Members are named by sample id, so keys and class names of the data never become file names. The
fields of ``_info.json`` are those that ``timm/data/readers/reader_wds.py`` reads.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from coreset.shards.export.names import ExportPlan, ImageFormat, StoredSample
from coreset.shards.format.files import json_bytes
from coreset.shards.format.tar import ShardWriter

INFO_NAME = "_info.json"


def write_webdataset(samples: Iterable[StoredSample], out: Path, plan: ExportPlan) -> None:
    """Write the shards ``SPLIT-000000.tar``, their indices and ``_info.json``.

    Members are ``000000042.jpg`` and ``000000042.cls``: the sample id, and the label as a number.
    """
    remaining = iter(samples)
    filenames = [f"{plan.split}-{number:06d}.tar" for number in range(len(plan.shard_lengths))]
    for name, length in zip(filenames, plan.shard_lengths, strict=True):
        _write_shard(islice(remaining, length), out / name)
    info = {
        "name": plan.name,
        "num_classes": len(plan.classes),
        "class_names": list(plan.classes),
        "splits": {
            plan.split: {
                "name": plan.split,
                "filenames": filenames,
                "shard_lengths": plan.shard_lengths,
                "num_samples": plan.n_samples,
            }
        },
    }
    (out / INFO_NAME).write_bytes(json_bytes(info))


def _write_shard(samples: Iterator[StoredSample], path: Path) -> None:
    writer = ShardWriter(path)
    try:
        for sample in samples:
            writer.add(sample.sample_id, sample.extension, sample.image, sample.label)
        writer.finish()
    except BaseException:
        writer.abandon()
        raise


WEBDATASET = ImageFormat(
    summary="tar shards with DALI's index and timm's _info.json",
    write=write_webdataset,
    reader='timm.data.create_dataset("wds/", root="{out}", split="{split}")',
    sharded=True,
)
