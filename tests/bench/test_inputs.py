"""Inputs of the benchmarks, and checks of what contenders write."""

from io import BytesIO

import pytest
from PIL import Image

from coreset.bench.inputs import (
    bytes_error,
    fingerprint,
    repeated_tree,
    samples_of_tars,
    size_error,
    sizes_at,
    sizes_of_tars,
)
from coreset.bench.peers.writers import check_in_full, write_files


@pytest.fixture
def tree(tmp_path):
    source = tmp_path / "source"
    for label, size in enumerate([(40, 30), (30, 60), (20, 20)]):
        folder = source / f"class-{label}"
        folder.mkdir(parents=True)
        Image.new("RGB", size, (label * 80, 90, 10)).save(folder / "image.jpg")
    return repeated_tree(source, tmp_path / "tree", 7)


def test_a_tree_repeats_its_images(tree):
    files = tree.files()
    assert [label for _, label in files] == [0, 0, 0, 1, 1, 2, 2]
    contents = tree.contents()
    assert contents == [path.read_bytes() for path, _ in files]
    assert len(set(map(id, contents))) == 3
    assert tree.source_bytes() == sum(map(len, contents))


def test_shards_are_compared_with_the_bytes_and_labels_of_the_source(tree, tmp_path):
    out, checked = tmp_path / "out", []
    out.mkdir()
    write_files(tree.files(), out, checked.append, 3)
    assert checked == tree.contents()
    assert len(list(out.glob("*.tar"))) == 3
    right = [(label, path.read_bytes()) for path, label in tree.files()]
    assert sorted(samples_of_tars(out)) == sorted(right)
    assert bytes_error(out, fingerprint(reversed(right))) == ""
    with pytest.raises(ValueError, match=r"."):
        check_in_full(right[0][1][:-20])
    relabelled = [(label + 1, data) for label, data in right]
    changed = [*right[1:], (right[0][0], right[0][1] + b"\0")]
    for wrong in (relabelled, changed, right[1:]):
        assert "found 7 samples" in bytes_error(out, fingerprint(wrong))


def test_sizes_may_differ_by_rounding_and_by_nothing_else(tmp_path):
    (tmp_path / "image.jpg").write_bytes(_jpeg(341, 256))
    write_files([(tmp_path / "image.jpg", 5)], tmp_path, len, 1)
    found = sizes_of_tars(tmp_path)
    assert found == [(5, 341, 256)]
    assert size_error(found, [(5, 342, 256)]) == ""
    for wrong in ((5, 343, 256), (5, 341, 254), (4, 341, 256)):
        assert "found (5, 341, 256)" in size_error(found, [wrong])
    assert "expected 2 images" in size_error(found, found * 2)


def test_short_sides_are_bounded_and_never_enlarged():
    samples = [(0, _jpeg(500, 375)), (1, _jpeg(375, 500)), (2, _jpeg(100, 80))]
    assert sizes_at(256, samples) == [(0, 341, 256), (1, 256, 341), (2, 100, 80)]


def _jpeg(width, height):
    encoded = BytesIO()
    Image.new("RGB", (width, height)).save(encoded, "JPEG")
    return encoded.getvalue()
