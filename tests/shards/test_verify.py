"""Verification: damage by name at every depth, shards built again, images that occur twice."""

import csv
import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from coreset.engine.stages.pack import Pack
from coreset.engine.stages.verify import Verify
from coreset.shards.errors import DataError, UsageError
from coreset.shards.format.dataset import QUARANTINE_NAME, SAMPLES_NAME, Dataset
from coreset.shards.format.files import sha256_of_file
from coreset.shards.format.manifest import MANIFEST_NAME, Manifest
from coreset.shards.format.tar import walk

Damage = Callable[[Path], None]


@pytest.fixture
def copy(packed: Path, tmp_path: Path) -> Path:
    return shutil.copytree(packed, tmp_path / "DATA")


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def cut_after_samples(path: Path, samples: int) -> None:
    """Cut between two samples, where other readers see nothing wrong."""
    member = list(walk(path))[2 * samples]
    path.write_bytes(path.read_bytes()[: member.offset - 512])


def recount(data: Path) -> None:
    document = json.loads((data / MANIFEST_NAME).read_bytes())
    document["shards"][0]["samples"] = 17
    (data / MANIFEST_NAME).write_text(json.dumps(document))


def unlink_shards(data: Path) -> None:
    for path in data.glob("shard-*.tar"):
        path.unlink()


def test_a_whole_data_set_is_called_whole_at_every_depth(packed):
    n_bytes = sum(path.stat().st_size for path in packed.glob("*.tar"))
    notes = ("sizes and counts only", "every byte read", "every image decodes")
    for passes, note in enumerate(notes):
        (line,) = Verify(data=packed, workers=3, fast=passes == 0, deep=passes == 2).run().lines
        assert f"is whole: 60 samples in 4 shards, {passes * n_bytes:,} bytes read; {note}" in line


NO_INDEX = r"shard-000000.idx: expected the index"
# Damage, what a fast check says, and what a full one says if that differs.
DAMAGES: dict[str, tuple[Damage, str, str]] = {
    "cut": (
        lambda d: cut_after_samples(d / "shard-000002.tar", 5),
        r"shard-000002.tar: bytes expected \d+, found \d+",
        r"header at byte .* is cut; shard-000002.tar: samples expected 16, found 5;",
    ),
    "missing": (
        lambda d: (d / "shard-000003.tar").unlink(),
        r"shard-000003.tar: bytes expected \d+, found no file",
        r"shard-000003.tar: expected 12 samples, found no file",
    ),
    "all missing": (unlink_shards, "and 1 more;", ""),
    "no index": (
        lambda d: (d / "shard-000000.idx").unlink(),
        r"shard-000000.idx: bytes expected",
        NO_INDEX,
    ),
    "no quarantine": (
        lambda d: (d / QUARANTINE_NAME).unlink(), r"sha256 expected \w+, found no file", ""
    ),
    "quarantine": (
        lambda d: flip(d / QUARANTINE_NAME, 9), r"quarantine.parquet: sha256 expected \w+", ""
    ),
    "count": (recount, r"n_samples is 60, the shards hold 61", ""),
    "table": (lambda d: flip(d / SAMPLES_NAME, 0), SAMPLES_NAME, ""),
    "manifest": (lambda d: flip(d / MANIFEST_NAME, 0), MANIFEST_NAME, ""),
    "flip": (
        lambda d: flip(d / "shard-000001.tar", 700),
        "",
        r"shard-000001.tar: sha256 expected \w+, found \w+",
    ),
    "index": (lambda d: flip(d / "shard-000000.idx", 9), "", NO_INDEX),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named_with_what_was_expected_and_found(copy, name):
    damage, fast, full = DAMAGES[name]
    damage(copy)
    with pytest.raises(DataError, match=full or fast):
        Verify(data=copy).run()
    # Some damage shows neither in sizes nor in counts.
    with pytest.raises(DataError, match=fast) if fast else nullcontext():
        Verify(data=copy, fast=True).run()


@pytest.mark.parametrize("name", ["shard-000001.tar", "1"])
def test_a_damaged_shard_is_built_again_from_the_source(copy, packed, photos, name):
    flip(copy / "shard-000001.tar", 700)
    (copy / "shard-000001.idx").unlink()
    first, second = Verify(data=copy, repair=name, src=photos).run().lines
    assert first == f"built again from {photos}: shard-000001.tar"
    assert "is whole" in second
    for path in packed.iterdir():
        assert (copy / path.name).read_bytes() == path.read_bytes()
    assert sorted(path.name for path in copy.parent.iterdir()) == ["DATA"]


def test_a_shard_is_not_replaced_by_another(make_photos, tmp_path):
    src, data = make_photos(tmp_path / "src", per_class=4), tmp_path / "DATA"
    Pack(src=src, data=data, samples_per_shard=5).run()
    before = (data / "shard-000000.tar").read_bytes()
    for path in src.rglob("*.JPEG"):
        path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(DataError, match="the source has changed"):
        Verify(data=data, repair="0").run()
    assert (data / "shard-000000.tar").read_bytes() == before
    with pytest.raises(UsageError, match=r"has no shard 7; it has shard-000000\.tar"):
        Verify(data=data, repair="7").run()
    shutil.rmtree(src)
    with pytest.raises(UsageError, match=r"is not at .* any more; name it with --src"):
        Verify(data=data, repair="0").run()


def test_images_that_occur_twice_are_told(make_photos, tmp_path):
    src, val = (make_photos(tmp_path / name, per_class=5, seed=n) for n, name in enumerate("ab"))
    shutil.copy(src / "n01440764/photo_000.png", src / "n01440764/photo_900.png")
    shutil.copy(src / "n01440764/photo_001.webp", src / "n02102040/photo_901.webp")
    shutil.copy(src / "n01440764/photo_002.JPEG", val / "n01440764/photo_902.JPEG")
    for name in "ab":
        Pack(src=tmp_path / name, data=tmp_path / f"DATA-{name}").run()
    lines = Verify(data=tmp_path / "DATA-a").run().lines
    assert "warning: 2 of 17 images are copies, 1 under another label" in lines[-1]
    listed = tmp_path / "pairs.csv"
    lines = Verify(data=tmp_path / "DATA-a", against=tmp_path / "DATA-b", pairs=listed).run().lines
    assert "1 of 16 images of" in lines[1]
    (row,) = csv.DictReader(listed.read_text().splitlines())
    assert (row["key"], row["other_key"]) == ("n01440764/photo_002", "n01440764/photo_902")
    assert len(Verify(data=tmp_path / "DATA-b").run().lines) == 1


def bless(data: Path, shard: int) -> None:
    """Write the manifest anew so that the digests fit the damage."""
    manifest = Manifest.read(data)
    old = manifest.shards[shard].sha256
    new = sha256_of_file(data / manifest.shards[shard].name)
    path = data / MANIFEST_NAME
    path.write_text(path.read_text().replace(old, new))


def test_deep_verification_finds_what_no_digest_of_a_file_tells(copy):
    row = Dataset.open(copy).samples.to_pylist()[20]
    flip(copy / "shard-000001.tar", row["offset"] + row["bytes"] // 2)
    flip(copy / "shard-000000.tar", list(walk(copy / "shard-000000.tar"))[1].offset)
    for shard in (0, 1):
        bless(copy, shard)
    Verify(data=copy).run()
    image = rf"shard-000001.tar:{row['offset']}:{row['key']}: hash expected"
    with pytest.raises(DataError, match=rf"label expected b'\d', found .*; {image}"):
        Verify(data=copy, deep=True).run()


def test_what_is_no_data_set_is_refused(tmp_path):
    with pytest.raises(UsageError, match="is not a packed data set"):
        Verify(data=tmp_path).run()
