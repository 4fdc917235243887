"""Folders of classes, names that are no classes and no images, and labels from tables."""

import os
from pathlib import Path

import numpy as np
import pytest

from coreset.kernels.seeds import permutation
from coreset.shards.errors import UsageError
from coreset.shards.packing.plan import read_labels
from coreset.shards.sources.base import Source, SourceOptions
from coreset.shards.sources.detect import find_folder, what_to_name
from coreset.shards.sources.names import require_classes


def write(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(os.fsencode(name))
    return root


def names_in(source: Source) -> list[str]:
    return [sample.name for sample in source.samples(range(len(source)))]


SIDE_CARS = ("Thumbs.db", "desktop.ini", "n01_boxes.txt", "a.xml", "a.JSON", "b.csv", "list.TXT")


def test_every_visible_file_below_a_class_folder_is_found_in_key_order(tmp_path):
    write(tmp_path, "b/2.jpg", "b/10.jpg", "a/deep/er/x.y.png", "a-b/1.", "B/plain", "ä/ö.jpg")
    write(tmp_path, "b/.DS_Store", ".git/config", "README")
    found = find_folder(tmp_path)
    assert found.classes == ("B", "a", "a-b", "b", "ä")
    assert found.keys == ["B/plain", "a-b/1", "a/deep/er/x.y", "b/10", "b/2", "ä/ö"]
    names = ["B/plain", "a-b/1.", "a/deep/er/x.y.png", "b/10.jpg", "b/2.jpg", "ä/ö.jpg"]
    assert names_in(found) == names
    assert [found.classes[label] for label in found.labels] == [n.split("/")[0] for n in names]
    assert found.row_sizes.tolist() == [len(name.encode()) for name in names]
    assert found.skipped == (
        f"1 files of {tmp_path} that lie in no class folder",
        f"2 hidden files and folders of {tmp_path}",
    )


def test_pack_order_is_the_seeded_permutation_of_key_order(tmp_path):
    found = find_folder(write(tmp_path, *(f"{c}/{i}.jpg" for c in "abc" for i in range(9))))
    shuffled, order = found.in_order("shuffled", 5), permutation(27, 5)
    assert names_in(shuffled) == [names_in(found)[at] for at in order]
    np.testing.assert_array_equal(shuffled.labels, found.labels[order])
    np.testing.assert_array_equal(shuffled.row_sizes[shuffled.rows], found.row_sizes[order])
    assert names_in(shuffled.in_order("source", 5)) == names_in(found)


def test_links_are_followed_unless_they_lead_up(tmp_path):
    write(tmp_path / "store", "x.jpg", "y/z.jpg")
    write(tmp_path / "src", "cat/a.jpg")
    (tmp_path / "src/cat/b.jpg").symlink_to(tmp_path / "store/x.jpg")
    (tmp_path / "src/dog").symlink_to(tmp_path / "store/y")
    assert names_in(find_folder(tmp_path / "src")) == ["cat/a.jpg", "cat/b.jpg", "dog/z.jpg"]
    (tmp_path / "src/cat/again").symlink_to(tmp_path / "src/cat")
    with pytest.raises(UsageError, match="links to a folder above itself"):
        find_folder(tmp_path / "src")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["a.jpg", ".hidden/b.jpg"], "has no class folder"),
        (["cat/a.jpg", "dog/.keep"], "class dog .* holds no images; .* with --classes"),
        (["cat/a.jpg", "dog/a.xml"], "class dog .* holds no images; .* with --classes"),
        (["cat/a\nb.jpg"], "control characters or is not UTF-8"),
        (["cat/a\tb.jpg"], "control characters or is not UTF-8"),
        (["cat/\udcff.jpg"], "control characters or is not UTF-8"),
        (["train/a/1.jpg", "val/a/2.jpg"], "holds the splits train, val, not classes"),
    ],
)
def test_what_is_no_folder_of_classes_is_refused(tmp_path, names, words):
    write(tmp_path, *names)
    with pytest.raises(UsageError, match=words):
        find_folder(tmp_path)


def test_a_folder_of_images_and_side_cars_is_that_of_its_images_alone(tmp_path):
    images = ("cat/1.jpg", "cat/2.png", "dog/deep/3.jpg")
    plain = find_folder(write(tmp_path / "plain", *images))
    beside = [f"{folder}/{name}" for folder in ("cat", "dog/deep") for name in SIDE_CARS]
    beside += ["cat/1.json", "cat/1.txt", "dog/deep/3.xml"]
    hidden = ["cat/.DS_Store", "@eaDir/cat/1.jpg", "dog/@eaDir/3.jpg/SMALL.jpg", "__MACOSX/a/._b"]
    found = find_folder(write(tmp_path / "full", *images, *beside, *hidden))
    assert (found.keys, names_in(found), found.classes) == (
        plain.keys,
        names_in(plain),
        plain.classes,
    )
    assert plain.skipped == ()
    hidden_line, side_car_line = found.skipped
    assert hidden_line == f"4 hidden files and folders of {tmp_path / 'full'}"
    assert side_car_line.startswith(
        f"{len(beside)} files of {tmp_path / 'full'} that are no images"
    )
    assert side_car_line.endswith("such as cat/1.json")


@pytest.mark.parametrize("other", ["1.bin", "1.gif", "1", "1.heic"])
def test_of_two_files_with_one_key_the_image_is_kept(tmp_path, other):
    src = write(tmp_path, f"cat/{other}", "cat/1.png", "cat/2.jpg", "dog/1.jpeg", "dog/1.webp")
    found = find_folder(src, SourceOptions(repeats="first"))
    assert names_in(found) == ["cat/1.png", "cat/2.jpg", "dog/1.jpeg"]
    assert found.skipped == ("2 samples whose key was there already",)
    assert found.row_sizes.tolist() == [len(name) for name in names_in(found)]


def splits_of(names: list[str], *, with_folders: list[str]) -> str:
    """What is refused of the names of class folders, of which some hold folders."""
    try:
        require_classes(sorted(names), Path("src"), holds_folders=with_folders.__contains__)
    except UsageError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("names", "with_folders", "splits"),
    [
        (["train", "val", "extra"], ["train", "val", "extra"], "train, val"),
        (["Train", "TEST", "cat"], ["Train"], "TEST, Train"),
        (["train", "test"], [], "test, train"),
        (["train"], ["train"], "train"),
        (["seg_train", "seg_test", "seg_pred"], ["seg_train", "seg_test"], "seg_test, seg_train"),
        (["train.X1", "train.X2", "val.X"], ["train.X1"], "train.X1, train.X2, val.X"),
        (["train", "test1", "other"], ["train"], "test1, train"),
    ],
)
def test_splits_are_no_classes(names, with_folders, splits):
    said = splits_of(names, with_folders=with_folders)
    assert said.startswith(
        f"src holds the splits {splits}, not classes; name the (unpacked) folder"
    )
    assert f"such as {splits.split(', ')[0]} (if they are classes" in said


def test_parts_of_a_data_set_are_no_classes():
    for names, parts in (
        (["images", "annotations"], "images, annotations"),
        (["Images", "masks", "labels", "cat"], "images, labels, masks"),
    ):
        assert f"src holds the parts {parts} of a data set" in splits_of(names, with_folders=[])


@pytest.mark.parametrize(
    ("names", "with_folders"),
    [
        (["cat", "dog"], ["cat"]),
        (["train", "plane", "ship"], ["plane"]),
        (["train"], []),
        (["bullet_train", "test_tube"], []),
        (["bullet_train", "freight_train"], ["bullet_train", "freight_train"]),
        (["labels", "masks"], []),
        (["images"], []),
    ],
)
def test_classes_may_be_called_like_a_split(names, with_folders):
    assert splits_of(names, with_folders=with_folders) == ""


def test_classes_that_the_user_lists_may_be_called_anything(tmp_path):
    src = write(tmp_path, "train/a/1.jpg", "val/a/2.jpg", "images/3.jpg", "masks/3.jpg")
    options = SourceOptions(only=("images", "masks", "train", "val"), one_class=False)
    assert find_folder(src, options).keys == ["images/3", "masks/3", "train/a/1", "val/a/2"]


def advice(root: Path, folder: Path) -> str:
    return what_to_name(root, folder).replace(str(root), "SRC")


def test_a_list_beside_the_images_is_named_with_the_command_that_reads_it(tmp_path):
    src = write(tmp_path / "val", "images/val_0.JPEG", "images/val_1.JPEG", "notes.txt")
    (src / "classes.txt").write_text("n01440764\nn02102040\n")
    assert advice(src, src / "images") == "name a folder that holds one folder per class"
    (src / "val_annotations.txt").write_text("val_0.JPEG\tn01440764\t0\t32\t44\t62\n")
    expected = "labels its images: coreset pack SRC DATA --ground-truth SRC/val_annotations.txt"
    assert advice(src, src / "images") == f"SRC/val_annotations.txt {expected}"
    (src / "images/labels.csv").write_text('file,label\n"val_0.JPEG",cat\n')
    assert advice(src, src / "images") == (
        "SRC/images/labels.csv lists its images: coreset pack SRC/images/labels.csv DATA"
    )


def test_a_list_that_no_command_reads_is_named_and_numbers_are_no_names_of_images(tmp_path):
    src = write(tmp_path / "birds", "images/1.jpg", "images/2.jpg", "images/a.jpg")
    (src / "classes.txt").write_text("1 albatross\n2 auklet\n")
    assert advice(src, src / "images") == "name a folder that holds one folder per class"
    (src / "list.tsv").write_text("name\tclass\nimages/a.jpg\tcat\n")
    said = advice(src, src / "images")
    assert said.startswith("SRC/list.tsv lists its images: write a CSV file with the columns path")


def test_folders_within_the_only_folder_are_named_first(tmp_path):
    src = write(tmp_path / "set", "images/cat/1.jpg", "images/dog/1.jpg", "README.txt")
    assert advice(src, src / "images") == "if its folders are the classes, name SRC/images"


# Labels from tables.


IMAGES = ("cat/1.JPEG", "cat/2.JPEG", "dog/1.JPEG", "dog/old/9.JPEG")


@pytest.fixture
def source(tmp_path: Path, photos: Path) -> Source:
    image = next(photos.glob("*/photo_006.JPEG")).read_bytes()
    for name in IMAGES:
        (tmp_path / "src" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "src" / name).write_bytes(image)
    return find_folder(tmp_path / "src").in_order("shuffled", 3)


def labels_from(source: Source, table: str, column: str = "noisy") -> dict[str, str]:
    path = source.place.parent / "labels.csv"
    path.write_text(table, errors="surrogateescape", newline="")
    labels = read_labels(path, column, source)
    assert labels.dtype == np.int64
    return {
        name: source.classes[label] for name, label in zip(names_in(source), labels, strict=True)
    }


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
    renamed = find_folder(source.place)
    rows = "".join(f"n01440764 1 2 3 4,{name}\n" for name in names_in(renamed))
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
    labels = labels_from(find_folder(source.place), WHOLE + "val/cat/1.JPEG,cat\n")
    assert (labels["cat/1.JPEG"], labels["cat/page.jpg"]) == ("cat", "cat")


def test_a_published_table_of_noisy_labels_flips_the_share_in_its_name():
    data = Path(os.environ.get("CORESET_DATA", Path(__file__).parents[3] / "shared" / "data"))
    table = data / "labels" / "noisy_imagenette.csv"
    if not table.is_file():
        pytest.skip(f"{table} is not on this machine (CORESET_DATA)")
    source = find_folder(data / "imagenette" / "train")
    for percent in (0, 1, 5, 25, 50):
        labels = read_labels(table, f"noisy_labels_{percent}", source)
        assert (labels != source.labels).mean() == pytest.approx(percent / 100, abs=0.002)
