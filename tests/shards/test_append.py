"""A file that grows in blocks: its bytes, what is seen of them, and a disk that refuses."""

import errno
import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coreset.shards.format import append
from coreset.shards.format.append import AppendFile


@settings(max_examples=30)
@given(st.lists(st.integers(0, 70_000), max_size=30))
def test_what_is_appended_is_what_lies_there_and_what_was_seen(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int]
):
    path = tmp_path_factory.mktemp("append") / "file"
    parts = [bytes([number % 251]) * size for number, size in enumerate(sizes)]
    seen = hashlib.sha256()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(append, "_BUFFER_BYTES", 1 << 16)
        file = AppendFile(path, seen.update)
        for part in parts:
            file.append(part)
        file.sync()
    assert path.read_bytes() == b"".join(parts)
    assert seen.hexdigest() == hashlib.sha256(b"".join(parts)).hexdigest()


def test_a_link_in_the_place_of_the_file_is_replaced_and_not_followed(tmp_path: Path):
    precious, path = tmp_path / "precious", tmp_path / "file"
    precious.write_text("do not touch")
    for target in (precious, tmp_path / "nothing"):
        path.symlink_to(target)
        file = AppendFile(path, len)
        file.append(b"new")
        file.sync()
        assert path.read_bytes() == b"new"
        path.unlink()
    assert list(tmp_path.iterdir()) == [precious]
    assert precious.read_text() == "do not touch"


@pytest.mark.parametrize("where", ["open", "write"])
def test_a_file_system_without_direct_writes_goes_through_the_page_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
):
    really_open, really_write = os.open, os.write

    def opened(path: Path, flags: int, mode: int = 0o777) -> int:
        if where == "open" and flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no direct writes here")
        return really_open(path, flags, mode)

    refused: list[int] = []

    def written(descriptor: int, block: memoryview) -> int:
        if where == "write" and not refused:
            refused.append(descriptor)
            raise OSError(errno.EINVAL, "no direct writes here")
        return really_write(descriptor, block[:5000])  # short, which loses the alignment

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "write", written)
    file = AppendFile(tmp_path / "file", len)
    content = os.urandom(100_001)
    file.append(content)
    file.sync()
    assert (tmp_path / "file").read_bytes() == content


def test_other_errors_of_the_disk_come_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(_descriptor: int, _block: memoryview) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    file = AppendFile(tmp_path / "file", len)
    file.append(b"some")
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        file.sync()
    file.close()
    file.close()
