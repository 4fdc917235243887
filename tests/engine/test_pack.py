"""Packing for a user: what is stored, what is refused, and what survives an interruption."""

import csv
import hashlib
import os
import resource
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from PIL import Image

from coreset.engine.artifacts.ledger import read_ledger
from coreset.engine.artifacts.provenance import Provenance
from coreset.engine.stages.pack import Pack
from coreset.kernels.seeds import permutation
from coreset.shards.errors import DataError, MachineError, UsageError
from coreset.shards.format.dataset import SAMPLES_SCHEMA, Dataset, Manifest
from coreset.shards.format.files import temporary_name
from coreset.shards.images.probe import MAX_FILE_BYTES


def pack(src, data, samples_per_shard: int = 16, workers: int = 2, **options: Any) -> Path:
    Pack(src=src, data=data, samples_per_shard=samples_per_shard, workers=workers, **options).run()
    return data


def rows_of(data) -> list[dict[str, Any]]:
    return Dataset.open(data).samples.to_pylist()


def test_the_table_is_what_the_folder_holds(photos, packed, stored_samples):
    files = sorted(photos.glob("*/*"), key=lambda path: path.with_suffix("").as_posix())
    classes = sorted(path.name for path in photos.iterdir())
    dataset = Dataset.open(packed)
    assert dataset.samples.schema.equals(SAMPLES_SCHEMA)
    assert dataset.classes == tuple(classes)
    order = permutation(len(files), 0)
    for sample_id, (row, stored) in enumerate(stored_samples(packed)):
        path = files[order[sample_id]]
        content = path.read_bytes()
        with Image.open(path) as image:
            kind = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}[image.format or ""]
            width, height = image.size
        content_hash, label = xxhash.xxh3_128(content).digest(), classes.index(path.parent.name)
        assert stored == content
        del row["offset"], row["flags"]  # the stored bytes and `verify --deep` tell
        assert row == {
            "id": sample_id,
            "key": path.relative_to(photos).with_suffix("").as_posix(),
            "source": path.relative_to(photos).as_posix(),
            "label": label,
            "folder_label": label,
            "class": path.parent.name,
            "member": f"{sample_id:09d}.{kind}",
            "format": kind,
            "width": width,
            "height": height,
            "bytes": len(content),
            "content_hash": content_hash,
            "source_hash": content_hash,
            "shard": sample_id // 16,
        }


def test_manifest_provenance_and_ledger_account_for_what_is_stored(packed):
    manifest, provenance = Manifest.read(packed), Provenance.read(packed)
    assert (manifest.n_found, manifest.n_samples, manifest.n_quarantined) == (60, 60, 0)
    assert [shard.first_position for shard in manifest.shards] == [0, 16, 32, 48]
    assert [shard.found for shard in manifest.shards] == [16, 16, 16, 12]
    assert (provenance.kind, provenance.digest) == ("dataset", manifest.digest)
    assert provenance.binds["identity"] == manifest.identity
    assert provenance.binds["content"] == manifest.content
    (line,) = read_ledger(packed)
    assert (line["stage"], line["images"], line["interrupted"]) == ("pack", 60, False)
    assert line["bytes_read"] == sum(row["bytes"] for row in rows_of(packed))
    assert line["bytes_written"] > line["bytes_read"]


@pytest.mark.parametrize(
    ("place", "options", "expected"),
    [
        ("birds/val", {}, ("birds", "val")),
        ("fish", {}, ("fish", "fish")),
        ("fish", {"name": "cod", "split": "test"}, ("cod", "test")),
        ("ILSVRC2012_img_train", {}, ("ILSVRC2012_img_train", "train")),
        ("my-val-images", {}, ("my-val-images", "validation")),
    ],
)
def test_names_and_splits_are_taken_from_folders(make_photos, tmp_path, place, options, expected):
    src = make_photos(tmp_path / place, per_class=1)
    manifest = Manifest.read(pack(src, tmp_path / "DATA", **options))
    assert (manifest.name, manifest.split) == expected


def test_a_copied_source_and_any_number_of_threads_give_the_same_bytes(
    photos, packed, tmp_path, stored_bytes
):
    src = tmp_path / "elsewhere" / "train"
    shutil.copytree(photos, src, copy_function=shutil.copyfile)  # times differ
    for workers in (1, 3):
        data = pack(src, tmp_path / str(workers), workers=workers, name=Manifest.read(packed).name)
        assert stored_bytes(data) == stored_bytes(packed)


@contextmanager
def largest_file(size: int) -> Generator[None]:
    """Let every write beyond ``size`` bytes of a file fail, like a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_keeps_what_was_committed_and_the_same_command_continues(
    make_photos, tmp_path, stored_bytes
):
    src, data = make_photos(tmp_path / "src", per_class=4), tmp_path / "DATA"
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    Image.fromarray(noise).save(src / "n02979186" / "zz.png")
    options: dict[str, Any] = {"order": "source", "samples_per_shard": 4, "workers": 1}
    full = pytest.raises(MachineError, match=r"cannot be written .* bytes are free")
    with largest_file(150_000), full:
        pack(src, data, **options)
    assert not data.exists()
    whole = sorted(path.name for path in temporary_name(data).glob("*.tar"))
    assert whole == [f"shard-{shard:06d}.tar" for shard in range(3)]
    assert not list(temporary_name(data).glob(".shard*"))
    pack(src, data, **options)
    assert stored_bytes(data) == stored_bytes(pack(src, tmp_path / "WHOLE", name="src", **options))
    assert [line["interrupted"] for line in read_ledger(data)] == [True, False]


def test_an_interrupted_run_continues_only_as_it_began(make_photos, tmp_path):
    src, data = make_photos(tmp_path / "src", per_class=3), tmp_path / "DATA"
    with largest_file(5_000), pytest.raises(MachineError):
        pack(src, data)
    with pytest.raises(UsageError, match=r"config.order_seed: 0 there, 4 here"):
        pack(src, data, order_seed=4)
    os.utime(src / "n01440764/photo_000.png", (1, 1))
    with pytest.raises(UsageError, match="written again since the interrupted packing"):
        pack(src, data)
    shutil.copyfile(src / "n01440764/photo_000.png", src / "n01440764/photo_900.png")
    with pytest.raises(UsageError, match=r"config.n_found: 9 there, 10 here"):
        pack(src, data)


def test_a_disk_that_is_too_small_is_noticed_before_the_first_shard(tmp_path):
    src = tmp_path / "src"
    (src / "cat").mkdir(parents=True)
    sparse = tmp_path / "sparse"
    sparse.touch()
    os.truncate(sparse, MAX_FILE_BYTES)  # takes no space
    for number in range(shutil.disk_usage(tmp_path).free // MAX_FILE_BYTES + 2):
        (src / "cat" / f"{number}.jpg").hardlink_to(sparse)
    with pytest.raises(MachineError, match=r"packing needs [\d,]+ bytes in .*, [\d,]+ are free"):
        pack(src, tmp_path / "DATA", one_class=True)


BAD = {
    "n01440764/bad_html.jpg": (b"<html></html>", "not-an-image"),
    "n01440764/bad_empty.jpg": (b"", "empty"),
    "n02102040/bad_gif.JPEG": (b"GIF89a", "unsupported-format"),
}


@pytest.fixture
def with_bad(make_photos, tmp_path) -> Path:
    """12 photos, 4 per class, and three files that cannot be packed."""
    src = make_photos(tmp_path / "src", per_class=4)
    for name, (content, _) in BAD.items():
        (src / name).write_bytes(content)
    return src


def test_refused_files_are_listed_and_every_found_file_is_accounted_for(
    with_bad, tmp_path, refused_files
):
    data = tmp_path / "DATA"
    lines = Pack(src=with_bad, data=data, samples_per_shard=4).run().lines
    assert lines[0].startswith("warning: 3 of 15 files were refused; see")
    manifest, rows, refused = Manifest.read(data), rows_of(data), refused_files(data)
    assert (manifest.n_found, manifest.n_samples, manifest.n_quarantined) == (15, 12, 3)
    reasons = {name: reason for name, (_, reason) in BAD.items()}
    assert {row["source"]: row["reason"] for row in refused} == reasons
    html = next(row for row in refused if row["reason"] == "not-an-image")
    assert html["detail"] == "text/html"
    assert html["content_hash"] == xxhash.xxh3_128(b"<html></html>").digest()
    assert [row["id"] for row in rows] == list(range(12))
    positions = [int(row["member"].split(".")[0]) for row in rows]
    assert sorted(positions + [row["position"] for row in refused]) == list(range(15))
    assert positions == sorted(positions)


def test_too_many_refused_files_leave_nothing_but_their_list(with_bad, tmp_path):
    (with_bad / "n01440764/bad_too.jpg").write_bytes(b"text")
    data = tmp_path / "DATA"
    with pytest.raises(DataError, match=r"n01440764 with 3 of 7 \(limit 2\).*quarantine.csv"):
        pack(with_bad, data)
    listed = tmp_path / "DATA.quarantine.csv"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["DATA.quarantine.csv", "src"]
    with listed.open(newline="") as file:
        sources = [row["source"] for row in csv.DictReader(file)]
    assert sorted(sources) == sorted([*BAD, "n01440764/bad_too.jpg"])
    for name in sources:
        (with_bad / name).unlink()
    assert Manifest.read(pack(with_bad, data)).n_quarantined == 0
    assert not listed.exists()


def test_labels_of_a_table_replace_those_of_the_folders(photos, tmp_path):
    table = tmp_path / "labels.csv"
    turned = {"n01440764": "n02102040", "n02102040": "n02979186", "n02979186": "n01440764"}
    paths = [path.relative_to(photos) for path in photos.glob("*/*")]
    rows = [f"train/{path},{turned[path.parent.name]}" for path in paths]
    table.write_text("\n".join(["path,noisy", *rows]))
    data = pack(photos, tmp_path / "DATA", labels=table, column="noisy")
    for row in rows_of(data):
        assert row["label"] == (row["folder_label"] + 1) % 3
        assert row["class"] == turned[row["key"].split("/")[0]]
        tar = (data / f"shard-{row['shard']:06d}.tar").read_bytes()
        label_at = row["offset"] + -(-row["bytes"] // 512) * 512 + 512
        assert tar[label_at : label_at + 2] == b"%d\0" % row["label"]
    sha256 = hashlib.sha256(table.read_bytes()).hexdigest()
    assert Manifest.read(data).settings["labels"] == {"sha256": sha256, "column": "noisy"}
