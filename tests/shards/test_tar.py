"""Shards: what is written is what tarfile, webdataset and DALI read, and damage is noticed."""

import tarfile
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coreset.shards.format.dataset import Dataset
from coreset.shards.format.files import sha256_of_file
from coreset.shards.format.tar import (
    BLOCK_BYTES,
    Member,
    ShardWriter,
    index_path,
    member_header,
    walk,
)

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
