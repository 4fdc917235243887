"""Shards: what is written is what tarfile, webdataset and DALI read, and damage is noticed."""

import tarfile
from collections.abc import Callable
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

StoredSamples = Callable[[Path], list[tuple[dict[str, Any], bytes]]]


def write_shard(path: Path, images: list[bytes]) -> str:
    writer = ShardWriter(path)
    for number, image in enumerate(images):
        writer.add(number, "jpg", image, label=number * 7)
    return writer.finish()


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / "shard-000000.tar"
    write_shard(path, [b"", b"x", b"y" * BLOCK_BYTES, b"z" * (BLOCK_BYTES + 1)])
    return path


@given(st.integers(0, 8**11 - 1), st.integers(0, 10**9 - 1))
def test_a_header_reads_back_in_tarfile(size: int, number: int):
    info = tarfile.TarInfo.frombuf(member_header(f"{number:09d}.jpg", size), "ascii", "strict")
    assert (info.name, info.size, info.isreg()) == (f"{number:09d}.jpg", size, True)
    assert (info.mode, info.uid, info.gid, info.mtime) == (0o644, 0, 0, 0)


def test_tarfile_reads_what_was_written_and_walk_agrees(shard: Path):
    with tarfile.open(shard, "r:") as tar:
        contents = {info.name: tar.extractfile(info) for info in tar}
        read = {name: file.read() for name, file in contents.items() if file}
        members = [Member(info.name, info.offset_data, info.size) for info in tar]
    assert read["000000003.jpg"] == b"z" * (BLOCK_BYTES + 1)
    assert [read[f"{number:09d}.cls"] for number in range(4)] == [b"0", b"7", b"14", b"21"]
    assert len(read) == 8
    assert list(walk(shard)) == members


def test_the_digest_is_that_of_the_file(tmp_path: Path):
    path = tmp_path / "shard-000000.tar"
    assert write_shard(path, [b"a" * 1000]) == sha256_of_file(path)


def test_the_index_is_that_of_wds2idx(packed: Path, tmp_path: Path):
    index_creator = pytest.importorskip("wds2idx").IndexCreator
    for path in Dataset.open(packed).shard_paths():
        theirs = tmp_path / "theirs.idx"
        with index_creator(str(path), str(theirs), verbose=False) as creator:
            creator.create_index()
        assert index_path(path).read_text() == theirs.read_text()


def test_a_cut_at_every_block_is_noticed(shard: Path):
    whole = shard.read_bytes()
    for at in range(0, len(whole), BLOCK_BYTES):
        shard.write_bytes(whole[:at])
        with pytest.raises(ValueError, match=r"is cut|end mark"):
            list(walk(shard))


def test_a_flipped_bit_in_any_header_is_noticed(shard: Path):
    whole = shard.read_bytes()
    headers = [member.offset - BLOCK_BYTES for member in walk(shard)]
    for header in headers:
        for at in range(header, header + BLOCK_BYTES, 37):
            shard.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            with pytest.raises(ValueError, match=r"at byte|is cut"):
                list(walk(shard))


@pytest.mark.parametrize(
    ("name", "kind", "damage"),
    [
        ("../../etc/passwd", tarfile.REGTYPE, "not one of a sample"),
        ("/000000000.jpg", tarfile.REGTYPE, "not one of a sample"),
        ("000000000.pyd", tarfile.REGTYPE, "not one of a sample"),
        ("a.jpg", tarfile.REGTYPE, "not one of a sample"),
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


def test_an_abandoned_shard_leaves_no_file(tmp_path: Path):
    writer = ShardWriter(tmp_path / "shard-000000.tar")
    writer.add(0, "jpg", b"abc", label=0)
    writer.close()
    assert list(tmp_path.iterdir()) == []


def test_webdataset_reads_the_shards(packed: Path, stored_samples: StoredSamples):
    iterators: Any = import_module("webdataset.tariterators")
    samples: list[dict[str, Any]] = []
    for path in Dataset.open(packed).shard_paths():
        with path.open("rb") as stream:  # webdataset does not close the files that it opens
            files = iterators.tar_file_expander([{"url": str(path), "stream": stream}])
            samples += iterators.group_by_keys(files)
    images = [next(s[kind] for kind in ("jpg", "png", "webp") if kind in s) for s in samples]
    labels = [int(sample["cls"]) for sample in samples]
    stored = [(image, row["label"]) for row, image in stored_samples(packed)]
    assert list(zip(images, labels, strict=True)) == stored


def test_dali_reads_the_shards_by_their_index(packed: Path, stored_samples: StoredSamples):
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
