"""Layouts that could be packed wrongly without a word: published sets, lone classes, losses."""

import json
import tarfile
from io import BytesIO
from pathlib import Path

import pytest

from coreset.bench.robustness.faults import jpeg
from coreset.shards.format.dataset import Manifest

WNIDS = tuple(f"n0{number:07d}" for number in range(1, 201))


@pytest.fixture(scope="module")
def tiny_imagenet(tmp_path_factory) -> Path:
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


def test_tiny_imagenet_packs_as_distributed(tiny_imagenet, tmp_path, done):
    lines = done("pack", tiny_imagenet / "train", tmp_path / "DATA", "--no-check")
    assert lines[0] == (
        f"left out: 200 files of {tiny_imagenet / 'train'} that are no images by their names, such "
        f"as {WNIDS[0]}/{WNIDS[0]}_boxes.txt"
    )
    manifest = Manifest.read(tmp_path / "DATA")
    assert manifest.classes == WNIDS
    assert (manifest.n_found, manifest.n_samples, manifest.n_quarantined) == (200, 200, 0)


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
