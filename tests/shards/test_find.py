"""The same photographs in every layout become the same data set."""

import csv
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from coreset.engine.stages.export import Export
from coreset.engine.stages.pack import Pack
from coreset.shards.errors import UsageError
from coreset.shards.format.manifest import Manifest
from coreset.shards.sources.base import SourceOptions
from coreset.shards.sources.detect import find


def class_tars(photos: Path, out: Path) -> Path:
    """A tar of class tars, as ImageNet's training images are distributed."""
    src = out / "train.tar"
    with tarfile.open(src, "w") as outer:
        for folder in sorted(photos.iterdir()):
            content = io.BytesIO()
            with tarfile.open(fileobj=content, mode="w") as inner:
                for path in sorted(folder.iterdir()):
                    inner.add(path, arcname=path.name)
            member = tarfile.TarInfo(f"{folder.name}.tar")
            member.size = len(content.getvalue())
            content.seek(0)
            outer.addfile(member, content)
    return src


def folder_of_tars(photos: Path, out: Path) -> Path:
    src = out / "train"
    src.mkdir()
    for folder in photos.iterdir():
        with tarfile.open(src / f"{folder.name}.tar", "w") as tar:
            for path in folder.iterdir():
                tar.add(path, arcname=path.name)
    return src


def webdataset(photos: Path, out: Path) -> Path:
    src = out / "train"
    src.mkdir()
    classes = sorted(path.name for path in photos.iterdir())
    (src / "_info.json").write_text(json.dumps({"class_names": classes}))
    with tarfile.open(src / "train-000000.tar", "w") as tar:
        for path in sorted(photos.rglob("*.*")):
            label = str(classes.index(path.parent.name)).encode()
            stem = f"{path.parent.name}/{path.stem}"
            tar.add(path, arcname=f"{stem}{path.suffix}")
            member = tarfile.TarInfo(f"{stem}.cls")
            member.size = len(label)
            tar.addfile(member, io.BytesIO(label))
    return src


def parquet(photos: Path, out: Path) -> Path:
    src = out / "train"
    src.mkdir()
    classes = sorted(path.name for path in photos.iterdir())
    files = sorted(photos.rglob("*.*"))
    table = pa.table(
        {
            "image": [{"bytes": path.read_bytes(), "path": path.name} for path in files],
            "label": [classes.index(path.parent.name) for path in files],
        }
    )
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": classes}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(metadata), src / "train-00000-of-00001.parquet")
    return src


def listed(photos: Path, out: Path) -> Path:
    src = out / "train.csv"
    with src.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label"))
        writer.writerows((path, path.parent.name) for path in photos.rglob("*.*"))
    return src


def packed_before(photos: Path, out: Path) -> Path:
    Pack(src=photos, data=out / "first", order_seed=7, samples_per_shard=9).run()
    return out / "first"


def exported(photos: Path, out: Path) -> Path:
    Export(source=packed_before(photos, out), out=out / "folder", to="imagefolder").run()
    return out / "folder"


@pytest.mark.parametrize(
    "layout", [class_tars, folder_of_tars, webdataset, parquet, listed, packed_before, exported]
)
def test_every_layout_of_the_same_images_gives_the_same_shards(
    photos: Path, packed: Path, tmp_path: Path, layout: Callable[[Path, Path], Path]
):
    src = layout(photos, tmp_path)
    Pack(src=src, data=tmp_path / "DATA", samples_per_shard=16).run()
    there, expected = Manifest.read(tmp_path / "DATA"), Manifest.read(packed)
    assert (there.identity, there.content) == (expected.identity, expected.content)
    assert there.shards == expected.shards
    assert there.classes == expected.classes
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("layout", [class_tars, webdataset, parquet, listed, packed_before])
def test_a_subset_of_the_classes_is_that_of_the_folder(
    photos: Path, tmp_path: Path, layout: Callable[[Path, Path], Path]
):
    names = tmp_path / "classes.txt"
    names.write_text("n02979186\nn01440764\n")
    some = tmp_path / "some"
    for name in ("n01440764", "n02979186"):
        shutil.copytree(photos / name, some / name)
    Pack(src=some, data=tmp_path / "EXPECTED").run()
    Pack(src=layout(photos, tmp_path), data=tmp_path / "DATA", classes=str(names)).run()
    there, expected = (Manifest.read(tmp_path / name) for name in ("DATA", "EXPECTED"))
    assert there.classes == ("n01440764", "n02979186")
    assert there.identity == expected.identity
    assert there.shards == expected.shards


def test_splits_are_no_classes(make_photos: Callable[..., Path], tmp_path: Path):
    for split in ("train", "val"):
        make_photos(tmp_path / "src" / split, per_class=1)
    with pytest.raises(UsageError, match="holds the splits train, val, not classes"):
        find(tmp_path / "src", SourceOptions())
