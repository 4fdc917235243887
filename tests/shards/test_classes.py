"""Class lists by name and from files."""

from pathlib import Path

import pytest

from shards.classes import IMAGENET_100_WNIDS, IMAGENETTE_WNIDS, class_list, recognise
from shards.errors import UsageError
from shards.manifest import classes_digest


def test_imagenette_is_recognised_whatever_the_order():
    assert recognise(IMAGENETTE_WNIDS[::-1]) == "imagenette"


def test_a_thousand_wordnet_ids_are_imagenet():
    wnids = [f"n{number:08d}" for number in range(1000)]
    assert recognise(wnids) == "imagenet-1k"
    assert recognise(wnids[:999]) is None
    assert recognise([*wnids[:999], "cat"]) is None


def test_other_classes_are_not_recognised():
    assert recognise(["cat", "dog"]) is None
    assert recognise([f"n{number:08d}" for number in range(100)]) is None


def test_class_lists_have_names():
    # The digest that was taken of the published list.
    digest = "5ee5db69d488bb799a286d8e181801c3d02798776c1ce9203e5450f64e086e07"
    assert classes_digest(IMAGENET_100_WNIDS) == digest
    assert class_list("imagenette") == IMAGENETTE_WNIDS
    assert class_list("imagenet100") == class_list("ImageNet-100") == IMAGENET_100_WNIDS
    assert recognise(class_list("imagenet-1k")) == "imagenet-1k"
    assert set(IMAGENET_100_WNIDS) < set(class_list("imagenet-1k"))
    assert set(IMAGENETTE_WNIDS) < set(class_list("imagenet-1k"))


def test_a_file_lists_one_class_a_line(tmp_path: Path):
    path = tmp_path / "classes.txt"
    path.write_text("n02102040 English springer\n\n  n01440764\ttench\n")
    assert class_list(str(path)) == ("n02102040", "n01440764")
    path.write_text("polar bear\ncat\n")
    assert class_list(str(path)) == ("polar bear", "cat")


@pytest.mark.parametrize(
    ("content", "fact"),
    [(b"cat\ndog\ncat\n", "names cat twice"), (b"\n \n", "is empty"), (b"\xff\xfe", "not UTF-8")],
)
def test_a_class_list_that_says_nothing_clear_is_refused(tmp_path: Path, content: bytes, fact: str):
    path = tmp_path / "classes.txt"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=fact):
        class_list(str(path))
