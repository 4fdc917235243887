"""Labels from tables: how rows name images, and tables that are refused."""

import os
from pathlib import Path

import numpy as np
import pytest

from coreset.shards.errors import UsageError
from coreset.shards.packing.plan import read_labels
from coreset.shards.sources.base import Source
from coreset.shards.sources.folder import find_folder as find_images

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
    path.write_text(table, errors="surrogateescape", newline="")
    labels = read_labels(path, column, source)
    assert labels.dtype == np.int64
    return {name: source.classes[label] for name, label in zip(source.names, labels, strict=True)}


@pytest.mark.parametrize(
    "names",
    [
        ("train/cat/1.JPEG", "cat/2", "dog/1.JPEG", "dog/old/9.JPEG"),
        ("{}/cat/1.JPEG", "/elsewhere/src/cat/2.png", r"C:\data\dog\1.JPEG", "{}/dog/old/9.JPEG"),
        ("{}/cat/1.JPEG", "2.png", "dog/1", "9"),
    ],
    ids=["keys and parts of paths", "paths of any depth", "lone names"],
)
def test_rows_name_images_by_keys_paths_and_lone_file_names(source, names):
    new = ("dog", "dog", "cat", "cat")
    rows = [f"{n},{label},x\n" for n, label in zip(names, new, strict=True)]
    table = "".join(["image_id,noisy,other\n", *rows, "val/fish/3.JPEG,fish,fish\n"])
    labels = labels_from(source, table.replace("{}", str(source.place)))
    assert labels == dict(zip(IMAGES, new, strict=True))


def test_names_stand_in_any_column_and_labels_may_be_a_wordnet_id_inside_a_text(source):
    (source.place / "dog").rename(source.place / "n01440764")
    renamed = find_images(source.place)
    rows = "".join(f"n01440764 1 2 3 4,{name}\n" for name in renamed.names)
    assert set(labels_from(renamed, f"noisy,file name\n{rows}").values()) == {"n01440764"}


WHOLE = "path,noisy\n" + "".join(f"{name},{name[:3]}\n" for name in IMAGES)


@pytest.mark.parametrize(
    ("table", "column", "message"),
    [
        (WHOLE, "noisy_25", r"has no label column 'noisy_25'; choose one of noisy$"),
        (WHOLE, "path", "has no label column 'path'"),
        ("", "noisy", "has no label column 'noisy'; it has no header and no rows; write"),
        (WHOLE.replace("/", "-"), "noisy", r"'cat-1.JPEG', looked for was '(cat|dog)/.*',"),
        (WHOLE.replace(",", "^"), "noisy", r"columns path\^noisy; .* by comma, semicolon"),
        (WHOLE[11:], "noisy", r"it has no header, and line 1 is 'cat/1.JPEG, cat'; write a header"),
        (WHOLE.replace("path,", "noisy,"), "noisy", "has no label column 'noisy'"),
        (WHOLE.replace("1.JPEG,cat", "1.JPEG,fish"), "noisy", "line 2: noisy is 'fish'"),
        (WHOLE + "cat/1.JPEG,dog\n", "noisy", r"line 6 contradicts an earlier row of cat/1.JPEG"),
        (WHOLE.replace("dog/", "d/"), "noisy", r"2 of 4 files have none"),
        ("path,noisy\n1.JPEG,cat\n", "noisy", r"line 2 names several images; list their"),
        (WHOLE.replace("cat/2", "cat/3"), "noisy", r"cat/2.JPEG has no row .* \(1 of 4 files"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(source, table, column, message):
    with pytest.raises(UsageError, match=message):
        labels_from(source, table, column)


def test_equal_rows_are_no_contradiction_and_a_file_that_is_no_image_needs_none(source):
    (source.place / "cat/page.jpg").write_bytes(b"no image")
    labels = labels_from(find_images(source.place), WHOLE + "val/cat/1.JPEG,cat\n")
    assert (labels["cat/1.JPEG"], labels["cat/page.jpg"]) == ("cat", "cat")


def test_a_published_table_of_noisy_labels_flips_the_share_in_its_name():
    data = Path(os.environ.get("CORESET_DATA", Path(__file__).parents[3] / "shared" / "data"))
    table = data / "labels" / "noisy_imagenette.csv"
    if not table.is_file():
        pytest.skip(f"{table} is not on this machine (CORESET_DATA)")
    source = find_images(data / "imagenette" / "train")
    for percent in (0, 1, 5, 25, 50):
        labels = read_labels(table, f"noisy_labels_{percent}", source)
        assert (labels != source.labels).mean() == pytest.approx(percent / 100, abs=0.002)
