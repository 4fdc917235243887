"""Layouts that could be packed wrongly without a word: published sets, lone classes, losses."""

import json
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest

from coreset.bench.robustness.faults import jpeg
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


def tar_of(out: Path, members: dict[str, bytes]) -> Path:
    out.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(out, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, BytesIO(content))
    return out


def test_a_single_class_is_packed_only_when_asked_for_and_retried_without(tmp_path, refused, done):
    src, data = tmp_path / "src", tmp_path / "DATA"
    (src / "cat").mkdir(parents=True)
    for number in range(4):
        (src / "cat" / f"{number}.jpg").write_bytes(jpeg(number))
    (src / "cat" / "3.jpg").write_bytes(jpeg(3)[:-200])
    said = refused(tmp_path, "pack", src, data)
    assert said.startswith(f"{src} holds a single class, cat; ")
    done("pack", src, data, "--one-class")
    (tmp_path / "names.txt").write_text("cat\n")
    done("pack", src, tmp_path / "LISTED", "--classes", tmp_path / "names.txt")
    done("pack", data, tmp_path / "AGAIN")
    for packed in ("LISTED", "AGAIN"):
        assert Manifest.read(tmp_path / packed).identity == Manifest.read(data).identity
    (src / "cat" / "3.jpg").write_bytes(jpeg(3))
    done("quarantine", "retry", data)
    assert Manifest.read(data).n_samples == 4


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


def test_shards_without_members_are_refused_alone_and_told_among_others(tmp_path, refused, done):
    src, names = tmp_path / "src", tmp_path / "names.txt"
    names.write_text("cat\ndog\n")
    empty = tar_of(src / "001.tar", {})
    for place in (src, empty):
        said = refused(tmp_path, "pack", place, tmp_path / "DATA", "--class-names", names)
        assert f"{place} " in said
    for shard, classes in ((0, ("cat", "dog")), (2, ("cat",))):
        members: dict[str, bytes] = {}
        for name in classes:
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
