import os
from pathlib import Path

import numpy as np
import pytest

from shards.errors import UsageError
from shards.labels import read_labels
from shards.sources.base import Source
from shards.sources.folder import find_folder as find_images

IMAGES = ("cat/1.JPEG", "cat/2.JPEG", "dog/1.JPEG", "dog/old/9.JPEG")


@pytest.fixture
def source(tmp_path: Path, photos: Path) -> Source:
    image = next(photos.glob("*/photo_006.JPEG")).read_bytes()
    for name in IMAGES:
        (tmp_path / "src" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "src" / name).write_bytes(image)
    return find_images(tmp_path / "src").in_order("shuffled", 3)


def labels_from(source: Source, table: str, column: str = "noisy") -> dict[str, str]:
    path = source.place.parent / "labels.csv"
    path.write_text(table)
    labels = read_labels(path, column, source)
    assert labels.dtype == np.int64
    return {name: source.classes[label] for name, label in zip(source.names, labels, strict=True)}


def test_rows_match_by_key_by_path_and_by_the_last_two_parts(source: Source):
    table = """path,noisy,other
train/cat/1.JPEG,dog,cat
cat/2,dog,cat
dog/1.JPEG,cat,cat
dog/old/9.JPEG,cat,cat
val/fish/1.JPEG,fish,fish
"""
    assert labels_from(source, table) == {
        "cat/1.JPEG": "dog", "cat/2.JPEG": "dog", "dog/1.JPEG": "cat", "dog/old/9.JPEG": "cat",
    }  # fmt: skip


WHOLE = "path,noisy\n" + "".join(f"{name},{name[:3]}\n" for name in IMAGES)


@pytest.mark.parametrize(
    ("table", "column", "message"),
    [
        (WHOLE, "noisy_25", r"has no label column 'noisy_25'; choose one of noisy$"),
        (WHOLE, "path", "has no label column 'path'"),
        ("", "noisy", "has no label column 'noisy'"),
        (WHOLE.replace("1.JPEG,cat", "1.JPEG,fish"), "noisy", "line 2: noisy is 'fish'"),
        (WHOLE + "cat/1.JPEG,dog\n", "noisy", r"line 6 contradicts an earlier row of cat/1.JPEG"),
        (WHOLE.replace("dog/", "d/"), "noisy", r"2 of 4 files have none"),
        (WHOLE.replace("cat/2", "cat/3"), "noisy", r"cat/2.JPEG has no row .* \(1 of 4 files"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(
    source: Source, table: str, column: str, message: str
):
    with pytest.raises(UsageError, match=message):
        labels_from(source, table, column)


def test_repeated_equal_rows_are_no_contradiction(source: Source):
    assert labels_from(source, WHOLE + "val/cat/1.JPEG,cat\n")["cat/1.JPEG"] == "cat"


def test_a_file_that_is_no_image_needs_no_row(source: Source):
    (source.place / "cat/page.jpg").write_bytes(b"no image")
    labels = labels_from(find_images(source.place), WHOLE)
    assert labels["cat/page.jpg"] == "cat"


def test_a_missing_table_is_refused(source: Source):
    with pytest.raises(UsageError, match=r"labels table .* does not exist"):
        read_labels(source.place / "none.csv", "noisy", source)


def test_a_table_that_is_no_text_is_refused(source: Source):
    path = source.place.parent / "labels.csv"
    path.write_bytes(b"path,noisy\n\xff\xfe,\x00\n")
    with pytest.raises(UsageError, match="cannot be read as CSV"):
        read_labels(path, "noisy", source)


def test_a_published_table_of_noisy_labels_flips_the_share_in_its_name():
    data = Path(os.environ.get("CORESET_DATA", Path(__file__).parents[3] / "shared" / "data"))
    table = data / "labels" / "noisy_imagenette.csv"
    if not table.is_file():
        pytest.skip(f"{table} is not on this machine (CORESET_DATA)")
    source = find_images(data / "imagenette" / "train")
    for percent in (0, 1, 5, 25, 50):
        labels = read_labels(table, f"noisy_labels_{percent}", source)
        assert (labels != source.labels).mean() == pytest.approx(percent / 100, abs=0.002)
