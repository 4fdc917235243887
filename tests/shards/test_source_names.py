"""Names that are no classes and no images: splits, parts, side-cars, hidden files, lone classes."""

from pathlib import Path

import pytest

from coreset.shards.errors import UsageError
from coreset.shards.sources.base import SourceOptions
from coreset.shards.sources.folder import find_folder, require_classes, what_to_name
from coreset.shards.sources.names import is_hidden, is_side_car


def write(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


SIDE_CARS = ("Thumbs.db", "desktop.ini", "n01_boxes.txt", "a.xml", "a.JSON", "b.csv", "list.TXT")


@pytest.mark.parametrize("name", SIDE_CARS)
def test_files_that_lie_beside_images_are_side_cars(name: str):
    assert is_side_car(name)
    assert is_side_car(f"cat.v2/{name}")


@pytest.mark.parametrize(
    "name", ["a.jpg", "a.PNG", "a.webp", "a.JPEG", "a.gif", "a.bmp", "plain", "a.txt.jpg", "txt"]
)
def test_files_that_may_be_images_are_no_side_cars(name: str):
    assert not is_side_car(name)
    assert not is_side_car(f"xml.json/{name}")


@pytest.mark.parametrize(
    ("name", "hidden"),
    [(".DS_Store", True), ("._a.jpg", True), ("__MACOSX", True), ("@eaDir", True), ("a.jpg", False),
     ("__init__", False), ("cat", False)],
)  # fmt: skip
def test_files_of_the_system_are_hidden(name: str, hidden: bool):
    assert is_hidden(name) is hidden


def test_a_folder_of_images_and_side_cars_is_that_of_its_images_alone(tmp_path: Path):
    images = ("cat/1.jpg", "cat/2.png", "dog/deep/3.jpg")
    plain = find_folder(write(tmp_path / "plain", *images))
    beside = [f"{folder}/{name}" for folder in ("cat", "dog/deep") for name in SIDE_CARS]
    beside += ["cat/1.json", "cat/1.txt", "dog/deep/3.xml"]
    hidden = ["cat/.DS_Store", "@eaDir/cat/1.jpg", "dog/@eaDir/3.jpg/SMALL.jpg", "__MACOSX/a/._b"]
    found = find_folder(write(tmp_path / "full", *images, *beside, *hidden))
    assert (found.keys, found.names, found.classes) == (plain.keys, plain.names, plain.classes)
    assert plain.skipped == ()
    hidden_line, side_car_line = found.skipped
    assert hidden_line == f"4 hidden files and folders of {tmp_path / 'full'}"
    assert side_car_line.startswith(
        f"{len(beside)} files of {tmp_path / 'full'} that are no images"
    )
    assert side_car_line.endswith("such as cat/1.json")


def test_a_class_of_side_cars_alone_is_refused_by_name(tmp_path: Path):
    src = write(tmp_path, "cat/1.jpg", "docs/a.xml", "docs/b.txt")
    with pytest.raises(UsageError, match=r"class docs of .* holds no images; .* with --classes"):
        find_folder(src)
    assert find_folder(src, SourceOptions(only=("cat",))).keys == ["cat/1"]


@pytest.mark.parametrize("other", ["1.bin", "1.gif", "1", "1.heic"])
def test_of_two_files_with_one_key_the_image_is_kept(tmp_path: Path, other: str):
    src = write(tmp_path, f"cat/{other}", "cat/1.png", "cat/2.jpg", "dog/1.jpeg", "dog/1.webp")
    found = find_folder(src, SourceOptions(repeats="first"))
    assert found.names == ["cat/1.png", "cat/2.jpg", "dog/1.jpeg"]
    assert found.skipped == ("2 samples whose key was there already",)
    assert found.sizes.tolist() == [len(name) for name in found.names]


def splits_of(names: list[str], *, with_folders: list[str]) -> str:
    """What is refused of the names of class folders, of which some hold folders."""
    try:
        require_classes(
            sorted(names),
            Path("src"),
            holds_folders=lambda name: name in with_folders,
            remedy=lambda name: f"name src/{name}",
        )
    except UsageError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("names", "with_folders", "splits"),
    [
        (["train", "val"], ["train", "val"], "train, val"),
        (["train", "val", "extra"], ["train", "val", "extra"], "train, val"),
        (["Train", "TEST", "cat"], ["Train"], "TEST, Train"),
        (["train", "test"], [], "test, train"),
        (["train"], ["train"], "train"),
        (["seg_train", "seg_test", "seg_pred"], ["seg_train", "seg_test"], "seg_test, seg_train"),
        (["train.X1", "train.X2", "val.X"], ["train.X1"], "train.X1, train.X2, val.X"),
        (["train", "test1", "other"], ["train"], "test1, train"),
    ],
)
def test_splits_are_no_classes(names: list[str], with_folders: list[str], splits: str):
    said = splits_of(names, with_folders=with_folders)
    first = splits.split(", ", maxsplit=1)[0]
    assert said.startswith(f"src holds the splits {splits}, not classes; name src/{first} (if they")


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
def test_classes_may_be_called_like_a_split(names: list[str], with_folders: list[str]):
    assert splits_of(names, with_folders=with_folders) == ""


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        (["images", "annotations"], "images, annotations"),
        (["Images", "masks", "labels", "cat"], "images, labels, masks"),
    ],
)
def test_parts_of_a_data_set_are_no_classes(names: list[str], parts: str):
    assert f"src holds the parts {parts} of a data set" in splits_of(names, with_folders=[])


def test_classes_that_the_user_lists_may_be_called_anything(tmp_path: Path):
    src = write(tmp_path, "train/a/1.jpg", "val/a/2.jpg", "images/3.jpg", "masks/3.jpg")
    with pytest.raises(UsageError, match="holds the splits train, val, not classes"):
        find_folder(src)
    found = find_folder(
        src, SourceOptions(only=("images", "masks", "train", "val"), one_class=False)
    )
    assert found.keys == ["images/3", "masks/3", "train/a/1", "val/a/2"]


def advice(root: Path, folder: Path) -> str:
    return what_to_name(root, folder).replace(str(root), "SRC")


def test_a_list_beside_the_images_is_named_with_the_command_that_reads_it(tmp_path: Path):
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


def test_a_list_that_no_command_reads_is_named_with_what_to_make_of_it(tmp_path: Path):
    src = write(tmp_path / "val", "images/a.jpg", "images/b.jpg")
    (src / "list.tsv").write_text("name\tclass\nimages/a.jpg\tcat\n")
    said = advice(src, src / "images")
    assert said.startswith("SRC/list.tsv lists its images: write a CSV file with the columns path")


def test_numbers_in_a_text_are_no_names_of_images(tmp_path: Path):
    src = write(tmp_path / "birds", "images/1.jpg", "images/2.jpg")
    (src / "classes.txt").write_text("1 albatross\n2 auklet\n")
    assert advice(src, src / "images") == "name a folder that holds one folder per class"
    (src / "images.csv").write_text("path,label\nimages/1.jpg,albatross\n")
    assert advice(src, src / "images").endswith(": coreset pack SRC/images.csv DATA")


def test_folders_within_the_only_folder_are_named_first(tmp_path: Path):
    src = write(tmp_path / "set", "images/cat/1.jpg", "images/dog/1.jpg", "README.txt")
    assert advice(src, src / "images") == "if its folders are the classes, name SRC/images"
