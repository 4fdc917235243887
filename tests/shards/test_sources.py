import os
from pathlib import Path

import numpy as np
import pytest

from coreset.kernels.seeds import permutation
from coreset.shards.errors import UsageError
from coreset.shards.sources.folder import find_folder as find_images
from coreset.shards.sources.names import sample_key


def write(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("n01/n01_7.JPEG", "n01/n01_7"),
        ("cat/by night/a.b.jpg", "cat/by night/a.b"),
        ("cat/plain", "cat/plain"),
        ("cat/trailing.", "cat/trailing"),
    ],
)
def test_a_sample_key_is_the_path_without_its_last_extension(name: str, key: str):
    assert sample_key(name) == key


def test_every_visible_file_below_a_class_folder_is_found_in_key_order(tmp_path: Path):
    write(tmp_path, "b/2.jpg", "b/10.jpg", "a/deep/er/x.png", "a-b/1.dat", "B/1.jpg", "ä/ö.jpg")
    write(tmp_path, "b/.DS_Store", ".git/config", "README")
    found = find_images(tmp_path)
    assert found.classes == ("B", "a", "a-b", "b", "ä")
    assert found.keys == sorted(found.keys, key=str.encode)
    assert set(found.names) == {
        "B/1.jpg", "a-b/1.dat", "a/deep/er/x.png", "b/10.jpg", "b/2.jpg", "ä/ö.jpg",
    }  # fmt: skip
    assert [found.classes[label] for label in found.labels] == [
        name.split("/")[0] for name in found.names
    ]
    assert found.sizes.tolist() == [len(name.encode()) for name in found.names]
    assert found.skipped == (
        f"1 files of {tmp_path} that lie in no class folder",
        f"2 hidden files and folders of {tmp_path}",
    )


def test_pack_order_is_the_seeded_permutation_of_key_order(tmp_path: Path):
    found = find_images(write(tmp_path, *(f"{c}/{i}.jpg" for c in "abc" for i in range(9))))
    shuffled = found.in_order("shuffled", 5)
    order = permutation(27, 5)
    assert shuffled.names == [found.names[at] for at in order]
    np.testing.assert_array_equal(shuffled.labels, found.labels[order])
    np.testing.assert_array_equal(shuffled.sizes, found.sizes[order])
    assert shuffled.in_order("source", 5).names == found.names


def test_linked_files_and_folders_are_found(tmp_path: Path):
    write(tmp_path / "store", "x.jpg", "y/z.jpg")
    write(tmp_path / "src", "cat/a.jpg")
    (tmp_path / "src/cat/b.jpg").symlink_to(tmp_path / "store/x.jpg")
    (tmp_path / "src/dog").symlink_to(tmp_path / "store/y")
    assert find_images(tmp_path / "src").names == ["cat/a.jpg", "cat/b.jpg", "dog/z.jpg"]


def test_a_missing_folder_is_refused(tmp_path: Path):
    with pytest.raises(UsageError, match="nowhere does not exist"):
        find_images(tmp_path / "nowhere")


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path):
    with pytest.raises(UsageError, match="is not a folder"):
        find_images(write(tmp_path, "a.jpg") / "a.jpg")


def test_a_folder_without_class_folders_is_refused(tmp_path: Path):
    with pytest.raises(UsageError, match="has no class folder"):
        find_images(write(tmp_path, "a.jpg", ".hidden/b.jpg"))


def test_an_empty_class_is_refused_by_name(tmp_path: Path):
    write(tmp_path, "cat/a.jpg", "dog/.keep")
    with pytest.raises(UsageError, match=r"class dog .* holds no images"):
        find_images(tmp_path)


def test_a_link_to_a_folder_above_is_refused(tmp_path: Path):
    write(tmp_path, "cat/a.jpg")
    (tmp_path / "cat/again").symlink_to(tmp_path / "cat")
    with pytest.raises(UsageError, match="links to a folder above itself"):
        find_images(tmp_path)


@pytest.mark.parametrize("name", [b"a\nb.jpg", b"a\tb.jpg", b"\xff.jpg"])
def test_a_name_that_cannot_be_stored_is_refused(tmp_path: Path, name: bytes):
    write(tmp_path, "cat/a.jpg")
    Path(os.fsdecode(os.fsencode(tmp_path / "cat") + b"/" + name)).write_bytes(b"x")
    with pytest.raises(UsageError, match="control characters or is not UTF-8"):
        find_images(tmp_path)
