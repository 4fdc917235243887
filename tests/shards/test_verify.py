"""Shards as tarfile and DALI read them, damage that is named, shards built again."""

import csv
import json
import shutil
import tarfile
from collections.abc import Callable
from contextlib import nullcontext
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coreset.engine.stages.pack import Pack
from coreset.engine.stages.verify import Verify
from coreset.shards.errors import DataError, UsageError
from coreset.shards.format.dataset import (
    MANIFEST_NAME,
    QUARANTINE_NAME,
    SAMPLES_NAME,
    Dataset,
    Manifest,
)
from coreset.shards.format.files import sha256_of_file
from coreset.shards.format.tar import (
    BLOCK_BYTES,
    Member,
    ShardWriter,
    index_path,
    member_header,
    walk,
)
from coreset.shards.verify import duplicates

IMAGES = (b"", b"x", b"y" * BLOCK_BYTES, b"z" * (BLOCK_BYTES + 1))


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / "shard-000000.tar"
    writer = ShardWriter(path)
    for number, image in enumerate(IMAGES):
        writer.add(number, "jpg", image, label=number * 7)
    assert writer.finish() == sha256_of_file(path)
    return path


@given(st.integers(0, 8**11 - 1), st.integers(0, 10**9 - 1))
def test_a_header_reads_back_in_tarfile(size, number):
    info = tarfile.TarInfo.frombuf(member_header(f"{number:09d}.jpg", size), "ascii", "strict")
    assert (info.name, info.size, info.isreg()) == (f"{number:09d}.jpg", size, True)
    assert (info.mode, info.uid, info.gid, info.mtime) == (0o644, 0, 0, 0)


def test_tarfile_reads_what_was_written_and_walk_agrees(shard):
    with tarfile.open(shard, "r:") as tar:
        members = [Member(info.name, info.offset_data, info.size) for info in tar]
    assert list(walk(shard)) == members
    content = shard.read_bytes()
    stored = [content[member.offset : member.offset + member.size] for member in members]
    assert (tuple(stored[::2]), stored[1::2]) == (IMAGES, [b"0", b"7", b"14", b"21"])
    assert [name for name, *_ in members][:2] == ["000000000.jpg", "000000000.cls"]


def test_the_index_is_that_of_wds2idx(packed, tmp_path):
    index_creator = pytest.importorskip("wds2idx").IndexCreator
    for path in Dataset.open(packed).shard_paths():
        theirs = tmp_path / "theirs.idx"
        with index_creator(str(path), str(theirs), verbose=False) as creator:
            creator.create_index()
        assert index_path(path).read_text() == theirs.read_text()


def test_a_cut_at_every_block_and_a_flipped_bit_in_any_header_are_noticed(shard):
    whole = shard.read_bytes()
    damaged = [whole[:at] for at in range(0, len(whole), BLOCK_BYTES)]
    for _, offset, _ in walk(shard):
        places = range(offset - BLOCK_BYTES, offset, 37)
        damaged += [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in places]
    for content in damaged:
        shard.write_bytes(content)
        with pytest.raises(ValueError, match=r"at byte|is cut|end mark"):
            list(walk(shard))


@pytest.mark.parametrize(
    ("name", "kind", "damage"),
    [
        ("../../etc/passwd", tarfile.REGTYPE, "not one of a sample"),
        ("/000000000.jpg", tarfile.REGTYPE, "not one of a sample"),
        ("000000000.pyd", tarfile.REGTYPE, "not one of a sample"),
        ("000000000.jpg", tarfile.SYMTYPE, "damaged"),
    ],
)
def test_a_member_that_no_shard_holds_is_refused(tmp_path, name, kind, damage):
    path = tmp_path / "shard-000000.tar"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, "/etc/passwd" if kind == tarfile.SYMTYPE else ""
        tar.addfile(info, BytesIO())
    with pytest.raises(ValueError, match=f"header at byte 0 is {damage}"):
        list(walk(path))


def test_an_unfinished_shard_leaves_no_file(tmp_path):
    writer = ShardWriter(tmp_path / "shard-000000.tar")
    writer.add(0, "jpg", b"abc", label=0)
    writer.close()
    assert list(tmp_path.iterdir()) == []


def test_dali_reads_the_shards_by_their_index(packed, stored_samples):
    dali: Any = import_module("nvidia.dali")
    shards = Dataset.open(packed).shard_paths()
    expected = [(image, row["label"]) for row, image in stored_samples(packed)]
    pipeline = dali.Pipeline(batch_size=len(expected), num_threads=1, device_id=None)
    with pipeline:
        members = dali.fn.readers.webdataset(
            name="reader",
            paths=[str(path) for path in shards],
            index_paths=[str(index_path(path)) for path in shards],
            ext=["jpg;png;webp", "cls"],
            missing_component_behavior="error",
        )
        pipeline.set_outputs(*members)
    pipeline.build()
    assert pipeline.epoch_size("reader") == len(expected)
    images, labels = pipeline.run()
    read = [(images.at(at).tobytes(), int(labels.at(at).tobytes())) for at in range(len(expected))]
    assert read == expected


# Verification of whole data sets.


Damage = Callable[[Path], None]


@pytest.fixture
def copied(packed: Path, tmp_path: Path) -> Path:
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
def test_damage_is_named_with_what_was_expected_and_found(copied, name):
    damage, fast, full = DAMAGES[name]
    damage(copied)
    with pytest.raises(DataError, match=full or fast):
        Verify(data=copied).run()
    # Some damage shows neither in sizes nor in counts.
    with pytest.raises(DataError, match=fast) if fast else nullcontext():
        Verify(data=copied, fast=True).run()


@pytest.mark.parametrize("name", ["shard-000001.tar", "1"])
def test_a_damaged_shard_is_built_again_from_the_source(copied, packed, photos, name):
    flip(copied / "shard-000001.tar", 700)
    (copied / "shard-000001.idx").unlink()
    first, second = Verify(data=copied, repair=name, src=photos).run().lines
    assert first == f"built again from {photos}: shard-000001.tar"
    assert "is whole" in second
    for path in packed.iterdir():
        assert (copied / path.name).read_bytes() == path.read_bytes()
    assert sorted(path.name for path in copied.parent.iterdir()) == ["DATA"]


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
    first, second = duplicates(Dataset.open(tmp_path / "DATA-b"), Dataset.open(tmp_path / "DATA-b"))
    assert first.tolist() == second.tolist() == list(range(16))


def bless(data: Path, shard: int) -> None:
    """Write the manifest anew so that the digests fit the damage."""
    manifest = Manifest.read(data)
    old = manifest.shards[shard].sha256
    new = sha256_of_file(data / manifest.shards[shard].name)
    path = data / MANIFEST_NAME
    path.write_text(path.read_text().replace(old, new))


def test_deep_verification_finds_what_no_digest_of_a_file_tells(copied):
    row = Dataset.open(copied).samples.to_pylist()[20]
    flip(copied / "shard-000001.tar", row["offset"] + row["bytes"] // 2)
    flip(copied / "shard-000000.tar", list(walk(copied / "shard-000000.tar"))[1].offset)
    for shard in (0, 1):
        bless(copied, shard)
    Verify(data=copied).run()
    image = rf"shard-000001.tar:{row['offset']}:{row['key']}: hash expected"
    with pytest.raises(DataError, match=rf"label expected b'\d', found .*; {image}"):
        Verify(data=copied, deep=True).run()
