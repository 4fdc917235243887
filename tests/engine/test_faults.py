"""Faults of packing, through the command line: what is refused, told, kept and continued.

Rows are those of the fault matrix. Faults that the tests of one module cover alone (cut tars,
damaged headers, labels of foreign shards) are there; here are those that need a whole packing.
"""

import csv
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from coreset.bench.robustness import faults
from coreset.bench.robustness.faults import ODD_IMAGES, OddImage, TarMember
from coreset.shards.format.dataset import QUARANTINE_NAME, Dataset
from coreset.shards.format.manifest import Manifest
from coreset.shards.images.flags import Flag

CHECKOUT = Path(__file__).parents[2]
CORESET = (sys.executable, "-m", "coreset.engine.cli")
Told = Any


def rows_of(data: Path) -> list[dict[str, Any]]:
    return Dataset.open(data).samples.to_pylist()


def refused_of(data: Path) -> dict[str, str]:
    rows = pq.read_table(data / QUARANTINE_NAME).to_pylist()
    return {row["source"]: row["reason"] for row in rows}


def stored_image(data: Path, row: dict[str, Any]) -> Image.Image:
    tar = (data / f"shard-{row['shard']:06d}.tar").read_bytes()
    return Image.open(BytesIO(tar[row["offset"] : row["offset"] + row["bytes"]]))


# Rows 10 and 11: what is known of ImageNet's training images, in small.

CMYK = frozenset(range(3, 3 + 22 * 17, 17))
PNG = 200


@pytest.fixture(scope="module")
def like_imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 files of 4 classes, all called .JPEG: 22 are CMYK and one is a PNG."""
    root = tmp_path_factory.mktemp("like-imagenet") / "train"
    for number in range(400):
        image = faults.photo(number, 40, 30)
        folder = root / f"n0000000{number % 4}"
        folder.mkdir(parents=True, exist_ok=True)
        mode, kind = "CMYK" if number in CMYK else "RGB", "PNG" if number == PNG else "JPEG"
        image.convert(mode).save(folder / f"{number}.JPEG", kind)
    return root


def number_of(row: dict[str, Any]) -> int:
    return int(Path(row["source"]).stem)


def test_the_known_odd_files_of_imagenet_are_counted_and_named(
    like_imagenet: Path, tmp_path: Path, done: Callable[..., list[str]]
):
    data = tmp_path / "DATA"
    lines = done("pack", like_imagenet, data)
    assert lines[0] == "stored as they are, and flagged: 22 cmyk, 1 misnamed"
    assert dict(Manifest.read(data).kinds) == {"cmyk": 22, "jpg": 399, "misnamed": 1, "png": 1}
    flags = {number_of(row): Flag(row["flags"]) for row in rows_of(data)}
    assert {number for number, flag in flags.items() if Flag.CMYK in flag} == CMYK
    assert {number for number, flag in flags.items() if Flag.MISNAMED in flag} == {PNG}


def test_resized_storage_turns_all_of_them_into_rgb_jpegs(
    like_imagenet: Path, tmp_path: Path, done: Callable[..., list[str]]
):
    data = tmp_path / "DATA"
    done("pack", like_imagenet, data, "--store", "resized", "--short-side", 24)
    rows = rows_of(data)
    assert len(rows) == 400
    for row in rows:
        with stored_image(data, row) as image:
            assert (image.format, image.mode, min(image.size)) == ("JPEG", "RGB", 24)
    kinds = Counter(Manifest.read(data).kinds)
    assert kinds["jpg"] == 400
    assert not kinds["cmyk"]


# Rows 8 to 16: odd files, one of each in a folder of plain ones.

FLAGS = {
    "CMYK JPEG": Flag.CMYK,
    "PNG named .JPEG": Flag.MISNAMED,
    "WebP named .jpg": Flag.MISNAMED,
    "grey JPEG": Flag.GREY,
    "palette PNG": Flag.PALETTE,
    "PNG with alpha": Flag.ALPHA,
    "progressive JPEG": Flag.PROGRESSIVE,
    "EXIF-rotated JPEG": Flag.EXIF_ROTATED,
    "16-bit PNG": Flag.DEEP | Flag.GREY,
    "one pixel": Flag(0),
    "bytes after the image": Flag(0),
    "damaged EXIF block": Flag(0),
    # No decoder can see it: the same flip is found by the hashes once the file is packed (row 7).
    "quietly wrong JPEG": Flag(0),
}
REASONS = {
    "truncated JPEG": "truncated",
    "JPEG without end": "truncated",
    "garbage in a JPEG": "undecodable",
    "GIF named .jpg": "unsupported-format",
    "BMP named .jpg": "unsupported-format",
    "TIFF named .jpg": "unsupported-format",
    "empty file": "empty",
    "web page": "not-an-image",
    "random bytes": "not-an-image",
    "PNG bomb": "too-large",
    "JPEG that lies": "too-large",
    "JPEG bomb": "too-large",
}


def odd_name(number: int, odd: OddImage) -> str:
    return f"{faults.class_name(number)}/odd-{odd.name}"


@pytest.fixture
def odd_folder(tmp_path: Path) -> Path:
    """A class for each odd file, which has one plain file beside it; and 150 plain ones."""
    root = faults.write_photos(tmp_path / "src", len(ODD_IMAGES))
    for number, odd in enumerate(ODD_IMAGES):
        data = faults.jpeg_bomb(10_000) if odd.make is faults.jpeg_bomb else odd.make()
        (root / odd_name(number, odd)).write_bytes(data)
    (root / "plain").mkdir()
    for number in range(150):
        (root / "plain" / f"{number}.jpg").write_bytes(faults.jpeg(number))
    return root


def test_every_odd_image_is_stored_and_flagged_or_listed_with_its_reason(
    odd_folder: Path, tmp_path: Path, coreset: Callable[..., Told]
):
    assert {odd.fault for odd in ODD_IMAGES} == FLAGS.keys() | REASONS.keys()
    data = tmp_path / "DATA"
    told = coreset("pack", odd_folder, data)
    expected = {
        odd_name(number, odd): REASONS[odd.fault]
        for number, odd in enumerate(ODD_IMAGES)
        if odd.fault in REASONS
    }
    limit = 10
    assert len(expected) > limit  # a data set of this size may not lose as many
    assert (told.code, told.err.count("\n")) == (3, 1)
    with (tmp_path / "DATA.quarantine.csv").open(newline="") as file:
        listed = {row["source"]: row["reason"] for row in csv.DictReader(file)}
    assert listed == expected
    for name in [*expected][limit:]:
        (odd_folder / name).unlink()
    assert coreset("pack", odd_folder, data).code == 0
    assert refused_of(data) == dict([*expected.items()][:limit])
    flags = {row["source"]: Flag(row["flags"]) for row in rows_of(data)}
    assert {name: flags[name] for name in flags if "odd-" in name} == {
        odd_name(number, odd): FLAGS[odd.fault]
        for number, odd in enumerate(ODD_IMAGES)
        if odd.fault in FLAGS
    }
    assert Manifest.read(data).kinds["exif_rotated"] == 1


def test_deep_and_rotated_images_are_resized_with_the_pixels_that_they_show(
    tmp_path: Path, done: Callable[..., list[str]]
):
    src, data = tmp_path / "src" / "c", tmp_path / "DATA"
    src.mkdir(parents=True)
    (src / "deep.png").write_bytes(faults.deep_png())
    (src / "turned.jpg").write_bytes(faults.rotated_jpeg())
    done("pack", src.parent, data, "--store", "resized", "--short-side", 72, "--one-class")
    for row in rows_of(data):
        with stored_image(data, row) as image:
            pixels = np.asarray(image.convert("RGB"), int)
        deep = "deep" in row["source"]
        truth = (
            faults.scaled_16_bit(faults.deep_png()) if deep else faults.rgb(faults.rotated_jpeg())
        )
        assert pixels.shape == truth.shape == (72, 96, 3)  # not turned
        assert np.abs(pixels - truth).mean() < 4


def test_bombs_are_refused_before_they_take_memory(tmp_path: Path):
    src = faults.write_photos(tmp_path / "src", 3)
    bombs = {"png": faults.png_bomb(), "jpg": faults.jpeg_bomb(), "JPEG": faults.lying_jpeg()}
    for label, (extension, bomb) in enumerate(bombs.items()):
        (src / faults.class_name(label) / f"bomb.{extension}").write_bytes(bomb)
    # In a child of a small child: this process's own memory would count as theirs.
    code = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    command = [sys.executable, "-c", code, *CORESET, "pack", str(src), str(tmp_path / "DATA")]
    told = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert int(told.stdout.splitlines()[-1]) < 600 * 1024
    assert refused_of(tmp_path / "DATA") == {
        f"c{label:02d}/bomb.{extension}": "too-large" for label, extension in enumerate(bombs)
    }


# Row 20: classes.


def test_a_class_that_the_list_has_and_the_folder_lacks_is_named(
    tmp_path: Path, refused: Callable[..., str], done: Callable[..., list[str]]
):
    src = faults.write_photos(tmp_path / "src", 6)
    names = faults.write_class_names(tmp_path / "classes.txt", 7)
    said = refused(tmp_path, "pack", src, tmp_path / "DATA", "--classes", names)
    assert "class c06 is not in" in said
    assert "(1 of 7 asked for are not)" in said
    said = refused(tmp_path, "pack", src, tmp_path / "DATA", "--classes", "imagenet-1k")
    assert "(1,000 of 1,000 asked for are not)" in said
    (src / ".cache").mkdir()
    (src / ".cache" / "photo.jpg").write_bytes(faults.jpeg())
    done("pack", src, tmp_path / "DATA", "--classes", faults.write_class_names(names, 6))
    assert Manifest.read(tmp_path / "DATA").classes == tuple(map(faults.class_name, range(6)))


def test_an_empty_class_is_named(tmp_path: Path, refused: Callable[..., str]):
    src = faults.write_photos(tmp_path / "src", 6)
    (src / "c03" / "photo-03.JPEG").unlink()
    assert "class c03 of" in refused(tmp_path, "pack", src, tmp_path / "DATA")


# Rows 18, 30 and 31: shards by others.


def shard_of(path: Path, odd: Sequence[TarMember]) -> tuple[object, ...]:
    """Two plain samples and ``odd`` between them; the words that pack them."""
    members = [*faults.sample_members(0), *odd, *faults.sample_members(2)]
    faults.write_tar(path, members)
    names = faults.write_class_names(path.with_name("classes.txt"), 3)
    return "pack", path, path.with_name("DATA"), "--class-names", names


@pytest.mark.parametrize("key", ["größe-五", "a photo", "__x__", "train/1", "K" * 250])
def test_unusual_keys_of_foreign_shards_are_kept(
    tmp_path: Path, done: Callable[..., list[str]], key: str
):
    done(*shard_of(tmp_path / "a.tar", faults.sample_members(1, key)))
    keys = {row["class"]: row["key"] for row in rows_of(tmp_path / "DATA")}
    assert keys["c01"] == f"c01/{key.rpartition('/')[2]}"


def test_a_key_with_dots_is_refused_with_its_members(tmp_path: Path, refused: Callable[..., str]):
    words = shard_of(tmp_path / "a.tar", faults.sample_members(1, "a.b"))
    said = refused(tmp_path, *words, code=3)
    assert "has sample 'a' at byte" in said
    assert "(b.jpg, b.cls)" in said


def test_extensions_in_capitals_are_those_of_images(tmp_path: Path, done: Callable[..., list[str]]):
    image, label = faults.sample_members(1, "x")
    done(*shard_of(tmp_path / "a.tar", [TarMember("x.JPEG", image.content), label]))
    assert {row["class"] for row in rows_of(tmp_path / "DATA")} == {"c00", "c01", "c02"}


@pytest.mark.parametrize("name", ["../../escaped", "/escaped", "a/../../escaped", "k" * 300])
def test_a_name_that_could_leave_its_folder_is_refused_and_nothing_is_written(
    tmp_path: Path, refused: Callable[..., str], name: str
):
    words = shard_of(tmp_path / "in" / "a.tar", faults.sample_members(1, name))
    said = refused(tmp_path, *words, code=3)
    assert "a.tar: member name" in said
    assert name[:40] in said


@pytest.mark.parametrize(
    ("kind", "link", "detail"),
    [
        (tarfile.SYMTYPE, "/etc/hostname", "symbolic link"),
        (tarfile.LNKTYPE, "0000.jpg", "hard link"),
        (tarfile.CHRTYPE, "", "character device"),
        (tarfile.FIFOTYPE, "", "fifo"),
    ],
)
def test_what_is_no_file_in_a_tar_is_listed_and_never_followed(
    tmp_path: Path, done: Callable[..., list[str]], kind: bytes, link: str, detail: str
):
    link_and_label = [TarMember("0001.jpg", kind=kind, link=link), faults.sample_members(1)[1]]
    odd = [*link_and_label, *faults.sample_members(1, "plain")]
    done(*shard_of(tmp_path / "a.tar", odd))
    data = tmp_path / "DATA"
    (row,) = pq.read_table(data / QUARANTINE_NAME).to_pylist()
    assert (row["source"], row["reason"], row["detail"]) == (
        "a.tar/0001.jpg",
        "not-a-file",
        detail,
    )
    assert len(rows_of(data)) == 3


@pytest.mark.parametrize("extension", ["pyd", "pkl", "pickle", "pth", "pt"])
def test_a_pickle_in_a_shard_is_refused_by_name_and_never_runs(
    tmp_path: Path, refused: Callable[..., str], extension: str
):
    canary = tmp_path / "canary"
    payload = faults.pickle_that_touches(canary)
    odd = [*faults.sample_members(1), TarMember(f"0001.{extension}", payload)]
    said = refused(tmp_path, *shard_of(tmp_path / "a.tar", odd), code=3)
    assert f"a.tar has member '0001.{extension}' at byte" in said
    assert not canary.exists()


# Row 39: leaks.


def test_validation_images_among_the_training_images_are_told_and_listed(
    tmp_path: Path, done: Callable[..., list[str]]
):
    src, val = (
        faults.write_photos(tmp_path / name, 8, first_seed=seed)
        for name, seed in (("train", 0), ("val", 100))
    )
    for label, other in ((1, 1), (3, 6)):  # the second under another label
        leaked = val / f"c{other:02d}" / "leaked.JPEG"
        shutil.copy(src / f"c{label:02d}" / f"photo-{label:02d}.JPEG", leaked)
    done("pack", src, tmp_path / "DATA", "--store", "resized", "--short-side", 32)
    done("pack", val, tmp_path / "VAL")
    listed = tmp_path / "pairs.csv"
    lines = done("verify", tmp_path / "DATA", "--against", tmp_path / "VAL", "--pairs", listed)
    assert lines[1].startswith("warning: 2 of 10 images of")
    assert "1 under another label" in lines[1]
    with listed.open(newline="") as file:
        pairs = {(row["key"], row["other_key"]) for row in csv.DictReader(file)}
    assert pairs == {("c01/photo-01", "c01/leaked"), ("c03/photo-03", "c06/leaked")}
