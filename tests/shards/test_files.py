"""Durable files: what readers see, and what killed writers, links and power cuts leave."""

import errno
import fcntl
import hashlib
import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coreset.shards.format import files, tar
from coreset.shards.format.files import (
    digest_of,
    exchange_directories,
    files_below,
    json_bytes,
    new_directory,
    remove_tree,
    rename_directory,
    replace_files,
    sha256_of_file,
    temporary_name,
    tree_digests,
    write_atomically,
)
from coreset.shards.format.tar import AppendFile


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def append(path, content):
    file = AppendFile(temporary_name(path), len)
    file.append(content)
    file.publish(path)


@pytest.mark.parametrize("write", [write_atomically, append])
def test_a_write_replaces_old_bytes_and_leftovers_and_follows_no_link(tmp_path, write):
    precious, path = tmp_path / "precious", tmp_path / "file"
    precious.write_bytes(b"do not touch")
    partial = temporary_name(path)
    for leave in (
        lambda: partial.write_bytes(b"half of a much longer text"),
        lambda: partial.hardlink_to(precious),
        lambda: partial.symlink_to(precious),
        lambda: partial.symlink_to(tmp_path / "nothing"),
    ):
        leave()
        write(path, b"new")
        assert not path.is_symlink()
        assert contents(tmp_path) == {"file": b"new", "precious": b"do not touch"}


def test_a_write_that_fails_keeps_the_old_bytes(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    temporary_name(path).mkdir()
    with pytest.raises(IsADirectoryError):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"


def test_a_new_directory_is_empty_and_follows_no_link(tmp_path):
    elsewhere, scratch = tmp_path / "elsewhere", tmp_path / "deep" / "scratch"
    elsewhere.mkdir()
    (elsewhere / "file").write_bytes(b"do not touch")
    new_directory(scratch)
    (scratch / "leftover").touch()
    new_directory(scratch)
    assert list(scratch.iterdir()) == []
    scratch.rmdir()
    scratch.symlink_to(elsewhere)
    new_directory(scratch)
    assert not scratch.is_symlink()
    assert contents(elsewhere) == {"file": b"do not touch"}


@pytest.mark.parametrize("leftover", ["nothing", "folder", "link"])
def test_removing_a_tree_takes_an_earlier_removal_along_and_follows_no_link(tmp_path, leftover):
    tree, elsewhere, doomed = (tmp_path / name for name in ("tree", "elsewhere", ".tree.deleting"))
    for folder in (tree, elsewhere, *([doomed] if leftover == "folder" else [])):
        folder.mkdir()
        (folder / "file").write_bytes(b"content")
    if leftover == "link":
        doomed.symlink_to(elsewhere)
    for _ in range(2):  # the second time it is gone
        remove_tree(tree)
        assert contents(tmp_path) == {"elsewhere": None, "elsewhere/file": b"content"}


# what a power cut leaves


def test_a_written_file_survives_and_its_name_never_stands_for_half_of_it(tmp_path, disk):
    path = tmp_path / "file"
    for content in (b"old", b"new"):
        write_atomically(path, content)
        assert disk.naming("file").beside["file"] == content, "renamed before its bytes were synced"
        assert disk.survivors() == {"file": content}


def test_the_name_of_an_appended_file_becomes_durable_with_the_next_one(tmp_path, disk):
    append(tmp_path / "first", b"1")
    assert disk.naming("first").beside["first"] == b"1"
    write_atomically(tmp_path / "second", b"2")
    assert disk.survivors() == {"first": b"1", "second": b"2"}


def test_replaced_files_keep_their_names(tmp_path, disk):
    for name, content in (("scratch", b"new"), ("final", b"old")):
        (tmp_path / name).mkdir()
        for file in "ab":
            (tmp_path / name / file).write_bytes(content)
    disk.settle()
    replace_files([tmp_path / "scratch" / file for file in "ab"], tmp_path / "final")
    survivors = disk.survivors()
    assert {name: survivors[f"final/{name}"] for name in "ab"} == {"a": b"new", "b": b"new"}


def test_a_published_directory_survives_with_all_files_whole_before_it_has_its_name(tmp_path, disk):
    scratch, final = tmp_path / "scratch", tmp_path / "final"
    (scratch / "deep" / "deeper").mkdir(parents=True)
    (scratch / "file").write_bytes(b"1")
    (scratch / "deep" / "deeper" / "file").write_bytes(b"2")
    disk.settle()
    (scratch / "deep" / "deeper" / "another").write_bytes(b"3")
    (scratch / "file").write_bytes(b"4")
    whole = {"file": b"4", "deep/deeper/file": b"2", "deep/deeper/another": b"3"}
    rename_directory(scratch, final)
    before = disk.naming("final").survivors
    assert before == {f"scratch/{name}": content for name, content in whole.items()}
    assert disk.survivors() == {f"final/{name}": content for name, content in whole.items()}
    assert not scratch.exists()


def test_exchanged_directories_are_whole_before_and_keep_their_names(tmp_path, disk, monkeypatch):
    class Libc:
        def renameat2(self, *arguments):
            failed = libc.renameat2(*arguments)
            disk.named(tmp_path / "final")
            return failed

    libc = files._libc()
    for name in ("scratch", "final"):
        (tmp_path / name).mkdir()
    (tmp_path / "final" / "file").write_bytes(b"old")
    disk.settle()
    (tmp_path / "scratch" / "file").write_bytes(b"new")
    monkeypatch.setattr(files, "_libc", Libc)
    exchange_directories(tmp_path / "scratch", tmp_path / "final")
    before = disk.naming("final").survivors
    assert before == {"scratch/file": b"new", "final/file": b"old"}
    assert disk.survivors() == {"scratch/file": b"old", "final/file": b"new"}


# large files, past the page cache


@settings(max_examples=30)
@given(st.lists(st.integers(0, 70_000), max_size=30))
def test_appended_bytes_are_stored_and_seen_in_order(tmp_path_factory, sizes):
    path = tmp_path_factory.mktemp("append") / "file"
    parts = [bytes([number % 251]) * size for number, size in enumerate(sizes)]
    seen = hashlib.sha256()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tar, "_BUFFER_BYTES", 1 << 16)
        file = AppendFile(temporary_name(path), seen.update)
        for part in parts:
            file.append(part)
        file.publish(path)
    assert path.read_bytes() == b"".join(parts)
    assert seen.hexdigest() == hashlib.sha256(b"".join(parts)).hexdigest()


@pytest.mark.parametrize("where", ["open", "write"])
def test_a_file_system_without_direct_writes_gets_cached_ones(tmp_path, monkeypatch, where):
    really_control, really_write = fcntl.fcntl, os.write

    def control(descriptor, command, flags=0):
        if where == "open" and flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no direct writes here")
        return really_control(descriptor, command, flags)

    def written(descriptor, block):
        if really_control(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no direct writes here")
        return really_write(descriptor, block[:5000])  # short, which loses the alignment

    monkeypatch.setattr(fcntl, "fcntl", control)
    monkeypatch.setattr(os, "write", written)
    content = os.urandom(100_001)
    append(tmp_path / "file", content)
    assert (tmp_path / "file").read_bytes() == content


def test_other_errors_of_the_disk_come_out(tmp_path, monkeypatch):
    def full(_descriptor, _block):
        raise OSError(errno.ENOSPC, "No space left on device")

    file = AppendFile(tmp_path / "file", len)
    file.append(b"some")
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        file.publish(tmp_path / "final")
    file.close()
    file.close()


# digests and JSON


def test_json_is_canonical_whatever_the_order_of_its_keys():
    assert json_bytes({"b": 1, "a": "é"}).decode() == '{\n  "a": "é",\n  "b": 1\n}\n'
    assert json.loads(json_bytes({"b": [None, "x"]})) == {"b": [None, "x"]}
    assert digest_of({"b": 1, "a": 2}) == digest_of({"a": 2, "b": 1})


def test_digests_of_a_tree_are_sorted_by_relative_name(tmp_path):
    content = bytes(range(256)) * 5000
    for name in ("b/2", "empty", "b/1", "c/x/y"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"" if name == "empty" else content)
    digests = tree_digests(tmp_path)
    names = [file.relative_to(tmp_path).as_posix() for file in files_below(tmp_path)]
    assert list(digests) == names == ["b/1", "b/2", "c/x/y", "empty"]
    # The digest of nothing: FIPS 180-4, and every sha256sum.
    assert digests["empty"].startswith("e3b0c44298fc1c149afbf4c8996fb924")
    assert digests["b/1"] == sha256_of_file(tmp_path / "b/1") == hashlib.sha256(content).hexdigest()
