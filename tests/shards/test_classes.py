"""Class lists by name and from files."""

import json

import pytest

from coreset.shards.errors import UsageError
from coreset.shards.format.classes import (
    IMAGENET_100_WNIDS,
    IMAGENETTE_WNIDS,
    class_list,
    recognise,
)
from coreset.shards.format.manifest import classes_digest


def test_well_known_lists_have_names_and_are_recognised_in_any_order():
    # The digest that was taken of the published list.
    digest = "5ee5db69d488bb799a286d8e181801c3d02798776c1ce9203e5450f64e086e07"
    assert classes_digest(IMAGENET_100_WNIDS) == digest
    assert class_list("imagenette") == IMAGENETTE_WNIDS
    assert class_list("imagenet100") == class_list("ImageNet-100") == IMAGENET_100_WNIDS
    assert recognise(IMAGENETTE_WNIDS[::-1]) == "imagenette"
    assert recognise(IMAGENET_100_WNIDS[::-1]) == "imagenet-100"
    assert recognise(class_list("imagenet-1k")) == "imagenet-1k"
    assert set(IMAGENET_100_WNIDS) | set(IMAGENETTE_WNIDS) < set(class_list("imagenet-1k"))
    wnids = [f"n{number:08d}" for number in range(1000)]
    for unknown in (["cat", "dog"], wnids[:100], wnids[:999], [*wnids[:999], "cat"]):
        assert recognise(unknown) is None


TWELVE = tuple(f"c{label}" for label in range(12))
WNIDS = ("n02119789", "n01440764", "n02100735")
WORDS = ("kit fox, Vulpes macrotis", "tench, Tinca tinca", "English setter")
NUMBERED = list(enumerate(WNIDS))
PUBLISHED = {
    "synset_words.txt": "\n".join(map(" ".join, zip(WNIDS, WORDS, strict=True))),
    "words_tab.txt": "\n\n ".join(map("\t".join, zip(WNIDS, WORDS, strict=True))),
    "number_first.txt": "".join(f"{n} {w}\n" for n, w in NUMBERED[::-1]),
    "clsloc_from_0.txt": "".join(f"{w} {n} kit_fox\n" for n, w in NUMBERED[::-1]),
    "colon.txt": "".join(f"{n}: {w}\n" for n, w in NUMBERED[::-1]),
    "index.csv": "index,wnid\n" + "".join(f"{n},{w}\n" for n, w in NUMBERED[::-1]),
    "excel.csv": "\ufeffwnid;name;label\r\n"
    + "".join(f"{w};kit fox;{n}\r\n" for n, w in NUMBERED[::-1]),
    "headless.csv": "".join(f"{n},{w}\n" for n, w in NUMBERED[::-1]),
    "part_of_a_frame.csv": ",wnid\n" + "".join(f"{7 * n},{w}\n" for n, w in NUMBERED),
    "names.tsv": "label\tclass_name\n" + "".join(f"{n}\t{w}\n" for n, w in NUMBERED[::-1]),
    "imagenet_class_index.json": json.dumps({n: [w, "tench"] for n, w in NUMBERED[::-1]}),
    "id2label.json": json.dumps(dict(NUMBERED[::-1])),
    "class_to_idx.json": json.dumps({w: n for n, w in NUMBERED[::-1]}),
    "labels.json": json.dumps(dict(zip(WNIDS, WORDS, strict=True))),
    "list.json": json.dumps(WNIDS),
    "_info.json": json.dumps({"splits": {}, "class_names": WNIDS}),
    "coco.json": json.dumps({"categories": [{"id": n, "name": w} for n, w in NUMBERED[::-1]]}),
    "yolo.json": json.dumps({"names": dict(NUMBERED)}),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_forms_give_the_names_in_the_order_of_their_labels(tmp_path, name):
    (tmp_path / name).write_text(PUBLISHED[name])
    assert class_list(str(tmp_path / name)) == WNIDS
    assert set(class_list(str(tmp_path / name), ordered=False)) == set(WNIDS)


@pytest.mark.parametrize(
    ("name", "content", "names"),
    [
        ("x.txt", "".join(f"{name[1:]} {name}\n" for name in sorted(TWELVE)), TWELVE),
        ("x.txt", "".join(f"{name} {name[1:]}\n" for name in sorted(TWELVE)), TWELVE),
        ("x.json", json.dumps({name[1:]: name for name in sorted(TWELVE)}), TWELVE),
        ("x.csv", "name,id\n" + "".join(f"{n},{n[1:]}\n" for n in sorted(TWELVE)), TWELVE),
        ("x.txt", "Acura Type R 2001\nAudi S4 2007\n", ("Acura Type R 2001", "Audi S4 2007")),
        ("x.txt", "0\n1\n2\n", ("0", "1", "2")),
        ("x.txt", "file, file cabinet\nchair\n", ("file, file cabinet", "chair")),
        ("x.txt", "n02085620-dog\nn02085782-spaniel\n", ("n02085620-dog", "n02085782-spaniel")),
        ("x.txt", "n01440764\ncat\n", ("n01440764", "cat")),
        ("x.txt", "class\ncat\ndog\n", ("cat", "dog")),
    ],
)
def test_names_stay_whole_and_numbers_are_no_text(tmp_path, name, content, names):
    (tmp_path / name).write_text(content)
    assert class_list(str(tmp_path / name)) == names


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.txt", "n02119789 1 kit\nn02100735 2 setter\n", r"numbers \(1, 2 \.\.\.\) that are"),
        ("x.csv", "wnid,a,b\nn02119789,0,1\nn02100735,1,0\n", r"the columns wnid, a, b, with num"),
        ("x.csv", "species\ncat\ndog\n", "begins with 'species', which may be a header or a class"),
        ("x.csv", "a,b\ncat,felis\ndog,canis\n", "do not tell where the class names are"),
        ("x.csv", ",class\n1,cat\n0,dog\n", "class, which do not tell where the labels are"),
        ("x.csv", "class,name\ncat,felis\ndog,canis\n", "class, name, which do not tell"),
        ("x.txt", "n02119789 kit fox\ncat\n", "not one WordNet id in every line"),
        ("x.txt", "{0: 'tench, Tinca tinca',\n 1: 'goldfish'}", "cannot be read as JSON"),
        ("x.json", '{"0": "cat", "0": "dog"}', "'0' twice in one map"),
        ("x.json", "[" * 100_000, "cannot be read as JSON"),
        ("x.json", "{}", "is empty"),
        ("x.txt", "cat\ndog\ncat\n", "names cat twice"),
        ("x.txt", "\n \n", "is empty"),
        ("x.txt", b"\xff\xfe", "as UTF-8 text"),
    ],
)  # fmt: skip
def test_a_list_that_says_nothing_clear_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UsageError, match=message) as refusal:
        class_list(str(tmp_path / name))
    assert "\n" not in str(refusal.value)


def test_numbers_do_not_matter_where_classes_are_only_chosen(tmp_path):
    (tmp_path / "map_clsloc.txt").write_text("n02119789 1 kit_fox\nn02100735 2 English_setter\n")
    chosen = class_list(str(tmp_path / "map_clsloc.txt"), ordered=False)
    assert chosen == ("n02119789", "n02100735")
