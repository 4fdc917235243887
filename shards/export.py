"""Export formats: image folders, WebDataset shards, parquet files, lists; and their registry.

Class names and sample keys are hostile until checked: `image_name` gives no path that leaves the
output.
"""

import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from coreset.shards.arrow import ArrowSchema, ArrowTable
from coreset.shards.errors import UsageError
from coreset.shards.format.files import json_bytes
from coreset.shards.format.tar import ShardWriter
from coreset.shards.sources.names import SPLIT_OF_WORD, shown
from coreset.shards.tables.formats import csv_table

CLASSES_NAME = "classes.txt"
MAX_NAME_BYTES = 255  # of one file name, on every file system in use
ROWS_PER_GROUP = 100  # as on the Hub, which previews one group without the others
GROUP_BYTES = 64 << 20
# Loaders ignore hidden names (".." among them); no file name can hold the other characters.
_UNFIT = re.compile(r"^\.|[\x00-\x1f\x7f/\ud800-\udfff]|^$")
_LINE_BREAKING = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")
_REMEDY = "use --to webdataset, which names files by sample id, or rename it and pack again"
_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSample:
    """One image with its stored bytes."""

    sample_id: int
    key: str
    label: int
    class_name: str
    extension: str
    image: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportPlan:
    """Description of the exported images."""

    name: str
    split: str
    classes: tuple[str, ...]
    n_samples: int
    samples_per_shard: int

    @property
    def shard_lengths(self) -> list[int]:
        """Samples of every shard; the last one may be short."""
        whole, rest = divmod(self.n_samples, self.samples_per_shard)
        return [self.samples_per_shard] * whole + [rest] * bool(rest)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFormat:
    """Export format of images: a directory."""

    summary: str
    write: Callable[[Iterable[StoredSample], Path, ExportPlan], None]
    """Write samples, which come one by one, into an empty directory."""
    reader: str
    """Python code that reads the directory ``{out}`` with the split ``{split}``."""
    sharded: bool = False
    """Divided into files of ``samples_per_shard`` samples."""
    class_folders: bool = False
    """Class names are names in the output; torchvision refuses a class without images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListFormat:
    """Export format without images: a file that lists the samples."""

    summary: str
    columns: tuple[str, ...]
    content: Callable[[ArrowTable, str], bytes]


def standard_split(split: str) -> str:
    """Return train, validation or test, the names that loaders know, for any name of a split."""
    return SPLIT_OF_WORD.get(split.lower(), "train")


def class_folder(name: str) -> str:
    """Return the class name; refuse one that is empty, hidden, a path, too long or unprintable."""
    if _UNFIT.search(name) or len(name.encode()) > MAX_NAME_BYTES:
        raise UsageError(f"class {shown(name)} cannot be the name of a folder; {_REMEDY}")
    return name


def image_name(sample: StoredSample) -> str:
    """Return the path of an image in a folder per class: ``CLASS/STEM.EXTENSION``.

    The stem is the sample key below its class folder, with ``/`` written as ``%2F`` and ``%`` as
    ``%25``, since loaders take the folder that holds an image for its class. A sample whose label
    is not that of its folder keeps its whole key, with a ``/`` before it.
    """
    folder = class_folder(sample.class_name)
    parts = sample.key.split("/")
    if len(parts) < 2 or any(_UNFIT.search(part) for part in parts):
        raise UsageError(f"sample key {shown(sample.key)} cannot name a file; {_REMEDY}")
    below = "/".join(parts[1:]) if parts[0] == folder else f"/{sample.key}"
    name = below.replace("%", "%25").replace("/", "%2F") + f".{sample.extension}"
    if len(name.encode()) > MAX_NAME_BYTES:
        raise UsageError(
            f"sample key {shown(sample.key)} makes a file name of more than {MAX_NAME_BYTES} "
            f"bytes; {_REMEDY}"
        )
    return f"{folder}/{name}"


def write_image_folder(samples: Iterable[StoredSample], out: Path, plan: ExportPlan) -> None:
    """Write one file per sample, ``OUT/CLASS/STEM.EXTENSION``, and ``classes.txt``.

    timm sorts classes in another order but accepts ``classes.txt`` as its class map. A class
    without samples has an empty folder, so that torchvision refuses the folder instead of shifting
    the labels.
    """
    classes = [class_folder(name) for name in plan.classes]
    (out / CLASSES_NAME).write_text("".join(f"{name}\n" for name in classes), encoding="utf-8")
    for name in classes:
        try:
            (out / name).mkdir()
        except FileExistsError as error:
            raise UsageError(
                f"class {name} has the name of another class or of {CLASSES_NAME} on this file "
                "system; rename it and pack again"
            ) from error
    for sample in samples:
        path = out / image_name(sample)
        try:
            with path.open("xb") as file:
                file.write(sample.image)
        except FileExistsError as error:  # on some file systems a.jpg and A.jpg are one name
            raise UsageError(
                f"two samples of class {sample.class_name} would be called {path.name} on this "
                "file system; choose another place or use --to webdataset"
            ) from error


def write_webdataset(samples: Iterable[StoredSample], out: Path, plan: ExportPlan) -> None:
    """Write the shards ``SPLIT-000000.tar``, their indices and ``_info.json``, which timm reads.

    Members are ``000000042.jpg`` and ``000000042.cls``: the sample id, and the label as a number.
    """
    remaining = iter(samples)
    filenames = [f"{plan.split}-{number:06d}.tar" for number in range(len(plan.shard_lengths))]
    for name, length in zip(filenames, plan.shard_lengths, strict=True):
        with closing(ShardWriter(out / name)) as writer:
            for sample in islice(remaining, length):
                writer.add(sample.sample_id, sample.extension, sample.image, sample.label)
            writer.finish()
    split = {
        "name": plan.split,
        "filenames": filenames,
        "shard_lengths": plan.shard_lengths,
        "num_samples": plan.n_samples,
    }
    info = {
        "name": plan.name,
        "num_classes": len(plan.classes),
        "class_names": list(plan.classes),
        "splits": {plan.split: split},
    }
    (out / "_info.json").write_bytes(json_bytes(info))


def write_parquet(samples: Iterable[StoredSample], out: Path, plan: ExportPlan) -> None:
    """Write ``data/SPLIT-00000-of-0000N.parquet`` in the layout of the Hugging Face Hub.

    At most one row group is in memory. ``path`` is the image's name in a folder per class, and
    checked, since programs write to it.
    """
    remaining = iter(samples)
    (out / "data").mkdir()
    lengths = plan.shard_lengths
    for number, length in enumerate(lengths):
        path = out / f"data/{plan.split}-{number:05d}-of-{len(lengths):05d}.parquet"
        # Compressed images do not compress again, and no two are alike.
        with pq.ParquetWriter(
            path,
            _schema(plan.classes),
            compression="none",
            use_dictionary=False,
            write_statistics=False,
        ) as writer:
            for rows in _row_groups(islice(remaining, length)):
                writer.write_table(pa.Table.from_pylist(rows, writer.schema))


def _schema(classes: Iterable[str]) -> ArrowSchema:
    """Describe the columns so that ``datasets`` reads them as ``Image`` and ``ClassLabel``."""
    features = {
        "image": {"_type": "Image"},
        "label": {"names": list(classes), "_type": "ClassLabel"},
    }
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.schema([("image", _IMAGE), ("label", pa.int64())], metadata=metadata)


def _row_groups(samples: Iterator[StoredSample]) -> Iterator[list[dict[str, Any]]]:
    rows: list[dict[str, Any]] = []
    n_bytes = 0
    for sample in samples:
        image = {"bytes": sample.image, "path": image_name(sample)}
        rows.append({"image": image, "label": sample.label})
        n_bytes += len(sample.image)
        if len(rows) == ROWS_PER_GROUP or n_bytes >= GROUP_BYTES:
            yield rows
            rows, n_bytes = [], 0
    if rows:
        yield rows


def ids_list(samples: ArrowTable, suffix: str) -> bytes:
    """Write the ids of samples: ``.npy`` is an array, ``.csv`` has a header, else one id a line."""
    ids: list[int] = samples["id"].to_pylist()
    if suffix == ".npy":
        file = io.BytesIO()
        np.save(file, np.array(ids, np.int64), allow_pickle=False)
        return file.getvalue()
    header = "id\n" if suffix == ".csv" else ""
    return (header + "".join(f"{sample}\n" for sample in ids)).encode()


def paths_list(samples: ArrowTable, suffix: str) -> bytes:
    """Write the source paths of samples: ``.csv`` is a table, any other suffix one path a line."""
    rows = samples.select(["source", "label", "key"]).to_pylist()
    if suffix == ".csv":
        return csv_table(("path", "label", "key"), (row.values() for row in rows))
    for row in rows:
        if _LINE_BREAKING.search(row["source"]):
            raise UsageError(
                f"source path {row['source']!a} of {row['key']!a} does not fit on a line; write a "
                "list that ends in .csv, or use --to ids"
            )
    return "".join(f"{row['source']}\n" for row in rows).encode()


FORMATS: dict[str, ImageFormat | ListFormat] = {
    "imagefolder": ImageFormat(
        summary="a folder per class (torchvision, timm, Hugging Face)",
        write=write_image_folder,
        reader='torchvision.datasets.ImageFolder("{out}")',
        class_folders=True,
    ),
    "webdataset": ImageFormat(
        summary="tar shards with DALI's index and timm's _info.json",
        write=write_webdataset,
        reader='timm.data.create_dataset("wds/", root="{out}", split="{split}")',
        sharded=True,
    ),
    "parquet": ImageFormat(
        summary="as on the Hugging Face Hub",
        write=write_parquet,
        reader='datasets.load_dataset("{out}", split="{split}")',
        sharded=True,
    ),
    "paths": ListFormat(
        summary="a list of source paths (.csv: with labels and keys)",
        columns=("source", "label", "key"),
        content=paths_list,
    ),
    "ids": ListFormat(
        summary="a list of sample ids (.npy: an array)", columns=("id",), content=ids_list
    ),
}
