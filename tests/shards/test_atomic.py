"""Writing all or nothing: what a reader may see, and what a killed writer leaves."""

import hashlib
import json
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coreset.shards.format import files as atomic
from coreset.shards.format.files import (
    digest_of,
    exchange_directories,
    files_below,
    fsync_directory,
    json_bytes,
    new_directory,
    new_file,
    remove_tree,
    rename_directory,
    sha256_of_file,
    sync_and_rename,
    temporary_name,
    tree_digests,
    write_atomically,
)

leaves = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
values = leaves | st.lists(leaves, max_size=3) | st.dictionaries(st.text(), leaves, max_size=3)
json_documents = st.dictionaries(st.text(max_size=5), values, max_size=4)


def test_a_write_replaces_the_old_bytes_and_leaves_nothing_beside_them(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_writer_left_does_not_block_the_next(tmp_path):
    path = tmp_path / "file"
    temporary_name(path).write_bytes(b"half of a much longer text")
    write_atomically(path, b"whole")
    assert path.read_bytes() == b"whole"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_keeps_the_old_bytes(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    temporary_name(path).mkdir()
    with pytest.raises(IsADirectoryError):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"


def test_a_link_under_the_temporary_name_is_replaced_and_not_followed(tmp_path):
    precious, path = tmp_path / "precious", tmp_path / "file"
    precious.write_text("do not touch")
    for target in (precious, tmp_path / "nothing"):
        temporary_name(path).symlink_to(target)
        write_atomically(path, b"new")
        assert path.read_bytes() == b"new"
        assert not path.is_symlink()
    assert sorted(tmp_path.iterdir()) == [path, precious]
    assert precious.read_text() == "do not touch"


def test_a_temporary_file_is_never_one_that_is_there(tmp_path):
    path = tmp_path / "file"
    path.write_text("from a killed run")
    (tmp_path / "second name").hardlink_to(path)
    with new_file(path) as file:
        file.write(b"new")
    assert (tmp_path / "second name").read_text() == "from a killed run"


def test_a_directory_under_a_temporary_name_is_new_and_empty(tmp_path):
    elsewhere, scratch = tmp_path / "elsewhere", tmp_path / "deep" / "scratch"
    elsewhere.mkdir()
    (elsewhere / "file").write_text("do not touch")
    new_directory(scratch)
    (scratch / "leftover").touch()
    new_directory(scratch)
    assert list(scratch.iterdir()) == []
    scratch.rmdir()
    scratch.symlink_to(elsewhere)
    new_directory(scratch)
    assert not scratch.is_symlink()
    assert (elsewhere / "file").read_text() == "do not touch"


def test_removing_a_tree_does_not_follow_a_link_in_its_way(tmp_path):
    tree, elsewhere = tmp_path / "tree", tmp_path / "elsewhere"
    for folder in (tree, elsewhere):
        folder.mkdir()
        (folder / "file").touch()
    (tmp_path / ".tree.deleting").symlink_to(elsewhere)
    remove_tree(tree)
    assert list(tmp_path.iterdir()) == [elsewhere]
    assert (elsewhere / "file").exists()


def test_a_reader_sees_one_of_the_contents_and_never_a_mixture(tmp_path):
    path, contents = tmp_path / "file", [bytes([value]) * 50_000 for value in range(4)]
    write_atomically(path, contents[0])
    seen: set[bytes] = set()
    stop = threading.Event()

    def read():
        while not stop.is_set():
            seen.add(path.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for repeat in range(40):
        write_atomically(path, contents[repeat % 4])
    stop.set()
    reader.join()
    assert seen <= set(contents)


def test_a_directory_appears_under_its_final_name_with_everything_in_it(tmp_path):
    scratch, final = tmp_path / "scratch", tmp_path / "final"
    (scratch / "deep" / "deeper").mkdir(parents=True)
    (scratch / "deep" / "deeper" / "file").write_bytes(b"content")
    rename_directory(scratch, final)
    assert (final / "deep" / "deeper" / "file").read_bytes() == b"content"
    assert list(tmp_path.iterdir()) == [final]


def test_publishing_onto_a_directory_that_holds_something_is_refused(tmp_path):
    for name in ("scratch", "final"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    with pytest.raises(OSError, match="not empty"):
        rename_directory(tmp_path / "scratch", tmp_path / "final")
    assert (tmp_path / "final" / "file").read_text() == "final"


# what a power cut leaves


def test_a_written_file_survives_and_its_name_never_stands_for_half_of_it(tmp_path, disk):
    path = tmp_path / "file"
    for content in (b"old", b"new"):
        write_atomically(path, content)
        assert disk.naming("file").beside["file"] == content, "renamed before its bytes were synced"
        assert disk.survivors() == {"file": content}


def test_a_name_that_may_wait_becomes_durable_with_the_next_one(tmp_path, disk):
    with new_file(temporary_name(tmp_path / "first")) as file:
        file.write(b"1")
        sync_and_rename(file, tmp_path / "first", last=False)
    assert disk.naming("first").beside["first"] == b"1"
    write_atomically(tmp_path / "second", b"2")
    assert disk.survivors() == {"first": b"1", "second": b"2"}


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


def test_exchanged_directories_are_whole_before_and_keep_their_names(tmp_path, disk, monkeypatch):
    class Libc:
        def renameat2(self, *arguments):
            failed = libc.renameat2(*arguments)
            disk.named(tmp_path / "final")
            return failed

    libc = atomic._libc()
    for name in ("scratch", "final"):
        (tmp_path / name).mkdir()
    (tmp_path / "final" / "file").write_bytes(b"old")
    disk.settle()
    (tmp_path / "scratch" / "file").write_bytes(b"new")
    monkeypatch.setattr(atomic, "_libc", Libc)
    exchange_directories(tmp_path / "scratch", tmp_path / "final")
    before = disk.naming("final").survivors
    assert before == {"scratch/file": b"new", "final/file": b"old"}
    assert disk.survivors() == {"scratch/file": b"old", "final/file": b"new"}


def test_removing_a_tree_clears_what_an_earlier_killed_removal_left(tmp_path):
    tree, doomed = tmp_path / "tree", tmp_path / ".tree.deleting"
    for folder in (tree, doomed):
        folder.mkdir()
        (folder / "file").write_bytes(b"content")
    remove_tree(tree)
    assert list(tmp_path.iterdir()) == []


def test_removing_what_is_not_there_does_nothing(tmp_path):
    remove_tree(tmp_path / "nothing")
    assert list(tmp_path.iterdir()) == []


def test_syncing_the_names_of_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        fsync_directory(tmp_path / "file")


def test_files_come_sorted_by_their_relative_names(tmp_path):
    for name in ("b/2", "a", "b/1", "c/x/y"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    names = [file.relative_to(tmp_path).as_posix() for file in files_below(tmp_path)]
    assert names == ["a", "b/1", "b/2", "c/x/y"]


@given(json_documents)
def test_json_survives_the_way_to_bytes_and_back(document):
    assert json.loads(json_bytes(document)) == document


@given(json_documents)
def test_the_order_of_keys_does_not_change_the_digest(document):
    reverse = dict(reversed(document.items()))
    assert digest_of(document) == digest_of(reverse)


def test_json_is_sorted_indented_and_ends_in_one_newline():
    assert json_bytes({"b": 1, "a": "é"}).decode() == '{\n  "a": "é",\n  "b": 1\n}\n'


def test_sha256_of_a_file_is_that_of_its_bytes(tmp_path):
    content = bytes(range(256)) * 5000
    (tmp_path / "file").write_bytes(content)
    (tmp_path / "empty").touch()
    digests = tree_digests(tmp_path)
    # The digest of nothing: FIPS 180-4, and every sha256sum.
    assert digests["empty"].startswith("e3b0c44298fc1c149afbf4c8996fb924")
    assert digests["file"] == hashlib.sha256(content).hexdigest()
    assert digests["file"] == sha256_of_file(tmp_path / "file")
    assert list(digests) == ["empty", "file"]
