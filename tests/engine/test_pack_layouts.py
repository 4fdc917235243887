"""Layouts that could be packed wrongly without a word: published sets, lone classes, losses."""

import csv
import json
import shutil
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from coreset.bench.robustness.faults import jpeg
from coreset.shards.format.dataset import Dataset
from coreset.shards.format.manifest import Manifest

WNIDS = tuple(f"n0{number:07d}" for number in range(1, 201))
Done = Callable[..., list[str]]
Refused = Callable[..., str]


@pytest.fixture(scope="module")
def tiny_imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny ImageNet as distributed, with one image per class instead of 500."""
    root = tmp_path_factory.mktemp("tiny") / "tiny-imagenet-200"
    photo = jpeg()
    for wnid in WNIDS:
        folder = root / "train" / wnid
        (folder / "images").mkdir(parents=True)
        (folder / "images" / f"{wnid}_0.JPEG").write_bytes(photo)
        (folder / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t10\t63\t58\n")
    for split in ("val", "test"):
        (root / split / "images").mkdir(parents=True)
        for number in range(6):
            (root / split / "images" / f"{split}_{number}.JPEG").write_bytes(photo)
    rows = [f"val_{number}.JPEG\t{WNIDS[number // 2]}\t0\t32\t44\t62\n" for number in range(6)]
    (root / "val" / "val_annotations.txt").write_text("".join(rows))
    (root / "wnids.txt").write_text("\n".join(WNIDS))
    (root / "words.txt").write_text("\n".join(f"{wnid}\tthing" for wnid in WNIDS))
    return root


def test_tiny_imagenet_packs_as_distributed(tiny_imagenet: Path, tmp_path: Path, done: Done):
    lines = done("pack", tiny_imagenet / "train", tmp_path / "DATA", "--no-check")
    assert lines[0] == (
        f"left out: 200 files of {tiny_imagenet / 'train'} that are no images by their names, such "
        f"as {WNIDS[0]}/{WNIDS[0]}_boxes.txt"
    )
    manifest = Manifest.read(tmp_path / "DATA")
    assert manifest.classes == WNIDS
    assert (manifest.n_found, manifest.n_samples, manifest.n_quarantined) == (200, 200, 0)


def test_its_splits_are_no_classes(tiny_imagenet: Path, tmp_path: Path, refused: Refused):
    said = refused(tmp_path, "pack", tiny_imagenet, tmp_path / "DATA")
    assert f"{tiny_imagenet} holds the splits test, train, val, not classes" in said


def test_its_validation_images_are_packed_by_the_command_that_the_refusal_names(
    tiny_imagenet, tmp_path, refused, done
):
    said = refused(tmp_path, "pack", tiny_imagenet / "val", tmp_path / "DATA")
    assert said.startswith(f"{tiny_imagenet / 'val'} holds a single class, images; ")
    assert said.endswith(", or pack one class with --one-class")
    command = said.partition(": coreset ")[2].partition(",")[0].split()
    done(*[tmp_path / word if word == "DATA" else word for word in command])
    manifest = Manifest.read(tmp_path / "DATA")
    assert (manifest.classes, manifest.split, manifest.n_samples) == (WNIDS[:3], "val", 6)
    said = refused(tmp_path, "pack", tiny_imagenet / "val/images", tmp_path / "FLAT")
    command = said.partition(": coreset ")[2].split()
    done(*[tmp_path / word if word == "DATA" else word for word in command[:2]], tmp_path / "FLAT",
         *command[3:])  # fmt: skip
    assert Manifest.read(tmp_path / "FLAT").identity == manifest.identity
    said = refused(tmp_path, "pack", tiny_imagenet / "test", tmp_path / "TEST")
    assert "holds a single class, images; name a folder that holds one folder per class" in said


# Every kind of source of one class: three photos of class cat.


def folder(out: Path) -> Path:
    (out / "src" / "cat").mkdir(parents=True)
    for number in range(3):
        (out / "src" / "cat" / f"{number}.jpg").write_bytes(jpeg(number))
    return out / "src"


def tar_of(out: Path, members: dict[str, bytes]) -> Path:
    out.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(out, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, BytesIO(content))
    return out


def tree_tar(out: Path) -> Path:
    return tar_of(out / "a.tar", {f"cat/{number}.jpg": jpeg(number) for number in range(3)})


def class_tar_folder(out: Path) -> Path:
    tar_of(out / "src" / "cat.tar", {f"{number}.jpg": jpeg(number) for number in range(3)})
    return out / "src"


def tar_of_tars(out: Path) -> Path:
    inner = class_tar_folder(out) / "cat.tar"
    return tar_of(out / "all.tar", {"cat.tar": inner.read_bytes()})


def webdataset(out: Path) -> Path:
    members: dict[str, bytes] = {}
    for number in range(3):
        members |= {f"{number}.jpg": jpeg(number), f"{number}.json": b'{"class": "cat"}'}
    return tar_of(out / "src" / "train-000000.tar", members).parent


def parquet(out: Path) -> Path:
    rows = {"image": [jpeg(number) for number in range(3)], "label": ["cat"] * 3}
    pq.write_table(pa.table(rows), out / "a.parquet")
    return out / "a.parquet"


def table(out: Path) -> Path:
    paths = sorted(folder(out).glob("*/*"))
    with (out / "list.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([("path", "label"), *((path, "cat") for path in paths)])
    return out / "list.csv"


SOURCES = (folder, tree_tar, class_tar_folder, tar_of_tars, webdataset, parquet, table)


@pytest.mark.parametrize("source", SOURCES)
def test_a_single_class_is_packed_only_when_asked_for(tmp_path, refused, done, source):
    src, data = source(tmp_path), tmp_path / "DATA"
    said = refused(tmp_path, "pack", src, data)
    assert said.startswith(f"{src} holds a single class, cat; ")
    done("pack", src, data, "--one-class")
    assert Manifest.read(data).classes == ("cat",)
    names = tmp_path / "names.txt"
    names.write_text("cat\n")
    done("pack", src, tmp_path / "LISTED", "--classes", names)
    done("pack", data, tmp_path / "AGAIN")
    for packed in ("LISTED", "AGAIN"):
        assert Manifest.read(tmp_path / packed).identity == Manifest.read(data).identity


def test_a_packed_single_class_is_verified_and_retried_without_the_flag(tmp_path: Path, done: Done):
    src, data = folder(tmp_path), tmp_path / "DATA"
    (src / "cat" / "3.jpg").write_bytes(jpeg(3)[:-200])
    done("pack", src, data, "--one-class")
    (src / "cat" / "3.jpg").write_bytes(jpeg(3))
    done("quarantine", "retry", data)
    assert Manifest.read(data).n_samples == 4


# Splits beside other folders, in tars too.


def test_splits_beside_another_folder_are_refused(make_photos, tmp_path, refused):
    for name in ("train", "val", "extra"):
        make_photos(tmp_path / "src" / name, per_class=1)
    said = refused(tmp_path, "pack", tmp_path / "src", tmp_path / "DATA")
    assert f"holds the splits train, val, not classes; name one of them, such as {tmp_path}" in said
    with tarfile.open(tmp_path / "src.tar", "w") as tar:
        tar.add(tmp_path / "src", arcname="set")
    said = refused(tmp_path, "pack", tmp_path / "src.tar", tmp_path / "DATA")
    assert "holds the splits train, val, not classes; unpack it" in said


def test_tars_of_splits_are_no_class_tars(tmp_path: Path, refused: Refused):
    src = tmp_path / "src"
    for name in ("train", "val", "extra"):
        tar_of(src / f"{name}.tar", {f"{part}/1.jpg": jpeg() for part in ("cat", "dog")})
    said = refused(tmp_path, "pack", src, tmp_path / "DATA")
    assert "holds the splits train, val, not classes; name the tar of one split" in said
    whole = tar_of(tmp_path / "all.tar", {path.name: path.read_bytes() for path in src.iterdir()})
    assert "holds the splits train, val" in refused(tmp_path, "pack", whole, tmp_path / "DATA")


# Side-cars in tars.


@pytest.mark.parametrize("tree", [True, False])
def test_tars_with_side_cars_are_those_of_their_images(tmp_path: Path, done: Done, tree: bool):
    photos = {f"{name}/{number}.jpg": jpeg(number) for name in ("cat", "dog") for number in (0, 1)}
    beside = {"cat/cat_boxes.txt": b"0.jpg 1 2", "dog/Thumbs.db": b"x", "dog/1_mask.xml": b"<a/>"}
    for name, files in (("plain", photos), ("full", beside | photos)):
        src = tmp_path / f"{name}.tar"
        if tree:
            tar_of(src, files)
        else:
            src = tmp_path / name
            for folder in ("cat", "dog"):
                some = {file.removeprefix(f"{folder}/"): content
                        for file, content in files.items() if file.startswith(folder)}  # fmt: skip
                tar_of(src / f"{folder}.tar", some)
        lines = done("pack", src, tmp_path / f"DATA-{name}", "--name", "x", "--split", "y")
        assert ("left out: 3 files of" in lines[0]) is (name == "full")
    plain, full = (Manifest.read(tmp_path / f"DATA-{name}") for name in ("plain", "full"))
    assert (full.identity, full.shards) == (plain.identity, plain.shards)


# Nothing ends empty without a word.


def test_a_class_whose_every_file_is_refused_stops_the_packing(make_photos, tmp_path, coreset):
    src, data = make_photos(tmp_path / "src", per_class=4), tmp_path / "DATA"
    shutil.rmtree(src / "n02102040")
    (src / "n02102040").mkdir()
    for number in range(2):  # as few as are tolerated in a class that has others
        (src / "n02102040" / f"{number}.jpg").write_bytes(b"<html>")
    told = coreset("pack", src, data)
    assert (told.code, data.exists()) == (3, False)
    assert "the worst class is n02102040 with 2 of 2 (limit 1), such as n02102040/" in told.err
    assert "(not-an-image)" in told.err
    (src / "n02102040" / "0.jpg").write_bytes(jpeg())
    assert coreset("pack", src, data).code == 0


def test_a_class_that_a_table_leaves_without_samples_is_told(make_photos, tmp_path, done):
    src, labels = make_photos(tmp_path / "src", per_class=2), tmp_path / "labels.csv"
    rows = [(path.relative_to(src), path.parent.name) for path in sorted(src.glob("*/*"))]
    moved = [(path, "n01440764" if name == "n02979186" else name) for path, name in rows]
    with labels.open("w", newline="") as file:
        csv.writer(file).writerows([("path", "new"), *moved])
    lines = done("pack", src, tmp_path / "DATA", "--labels", labels, "--column", "new")
    assert lines[0].startswith("warning: 1 of 3 classes have no samples, such as n02979186")
    assert np.bincount(Dataset.open(tmp_path / "DATA").labels, minlength=3).tolist() == [4, 2, 0]


@pytest.mark.parametrize("n_shards", [1, 2])
def test_shards_without_members_are_refused(tmp_path: Path, refused: Refused, n_shards: int):
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    for number in range(n_shards):
        tar_of(tmp_path / "src" / f"{number:03d}.tar", {})
    for src in (tmp_path / "src", tmp_path / "src" / "000.tar"):
        words = ("pack", src, tmp_path / "DATA", "--class-names", tmp_path / "names.txt")
        said = refused(tmp_path, *words)
        assert f"{src} " in said


def test_a_shard_without_members_among_others_is_told(tmp_path: Path, done: Done):
    src = tmp_path / "src"
    for shard, names in enumerate([("cat", "dog"), (), ("cat",)]):
        members: dict[str, bytes] = {}
        for name in names:
            label = json.dumps({"class": name}).encode()
            members |= {f"{name}-{shard}.jpg": jpeg(shard), f"{name}-{shard}.json": label}
        tar_of(src / f"{shard:03d}.tar", members)
    lines = done("pack", src, tmp_path / "DATA")
    assert lines[0] == "left out: 1 shards without samples, such as 001.tar"
    assert Manifest.read(tmp_path / "DATA").n_samples == 3


def test_a_side_car_never_replaces_its_image(make_photos, tmp_path, done):
    src = make_photos(tmp_path / "src", per_class=2)
    for number in range(2):
        image = next((src / "n02102040").glob(f"photo_00{number}.*"))
        image.with_suffix(".json").write_text("{}")
    done("pack", src, tmp_path / "DATA", "--duplicates", "first")
    manifest = Manifest.read(tmp_path / "DATA")
    assert (manifest.n_samples, manifest.n_quarantined) == (6, 0)
    done("pack", src, tmp_path / "SAME")  # and they are no second samples of one key
    assert Manifest.read(tmp_path / "SAME").identity == manifest.identity
