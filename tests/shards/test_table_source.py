import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coreset.shards.errors import DataError, UsageError
from coreset.shards.sources.base import DEFAULTS, Source, SourceOptions
from coreset.shards.sources.detect import find_folder
from coreset.shards.sources.names import listed_key, whole_key
from coreset.shards.sources.table import find_table, is_table

CLASSES = ("cat", "dog", "emu")
FILES = (
    "cat/1.jpg", "cat/2.JPEG", "cat/by night/a.b.png", "dog/1.jpg", "dog/cat/x.jpg", "emu/é.webp",
)  # fmt: skip
part = st.sampled_from(["cat", "dog", "a", "b.c", "x y", ".", "..", ""])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in FILES:
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).write_bytes(name.encode())
    return tmp_path


def class_of(name: str) -> str:
    return name.partition("/")[0]


def write_csv(path: Path, *rows: Sequence[Any], header: Sequence[str] = ("path", "label")) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def contents(source: Source) -> list[tuple[str, str, int, bytes]]:
    return [
        (sample.key, source.classes[sample.label], sample.size, source.contents.read(sample))
        for sample in source.samples(range(len(source)))
    ]


def refusal(src: Path, wanted: SourceOptions = DEFAULTS) -> str:
    with pytest.raises((UsageError, DataError)) as caught:
        find_table(src, wanted)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_labels_of_parquet_lists_are_names_or_positions_in_those_of_their_schema(root):
    columns = {"path": [f"images/{name}" for name in FILES], "label": [class_of(n) for n in FILES]}
    pq.write_table(pa.table(columns), root / "list.parquet")
    assert contents(find_table(root / "list.parquet")) == contents(find_folder(root / "images"))
    features = {"label": {"names": CLASSES, "_type": "ClassLabel"}}
    columns["label"] = pa.array(map(CLASSES.index, columns["label"]), pa.uint8())
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), root / "list.parquet")
    assert contents(find_table(root / "list.parquet")) == contents(find_folder(root / "images"))


def test_integers_are_positions_in_the_class_names(root):
    rows = [(f"images/{name}", ("emu", "cat", "dog").index(class_of(name))) for name in FILES]
    table = write_csv(root / "list.csv", *rows)
    source = find_table(table, SourceOptions(class_names=("emu", "cat", "dog")))
    assert contents(source) == contents(find_folder(root / "images"))
    assert "integer labels without names; name a class list with --class-names" in refusal(table)
    short = SourceOptions(class_names=("emu", "cat"))
    assert re.search(r"label 2 of .* is not in \[0, 2\)", refusal(table, short))


def test_labels_may_differ_from_the_folders_and_links_are_followed(root):
    (root / "linked.jpg").symlink_to(root / "images/cat/1.jpg")
    rows = [("images/cat/1.jpg", "dog"), ("images/dog/cat/x.jpg", "cat"), ("linked.jpg", "cat")]
    assert [row[0::3] for row in contents(find_table(write_csv(root / "list.csv", *rows)))] == [
        ("cat/linked", b"cat/1.jpg"), ("cat/x", b"dog/cat/x.jpg"), ("dog/1", b"cat/1.jpg"),
    ]  # fmt: skip


def test_rows_of_other_classes_are_passed_over_with_their_files(root):
    table = write_csv(
        root / "list.csv",
        *((f"images/{name}", class_of(name)) for name in FILES),
        ("images/emu/gone.jpg", "emu"),
    )
    some = SourceOptions(only=("cat", "dog"))
    assert contents(find_table(table, some)) == contents(find_folder(root / "images", some))


def test_a_table_of_another_system_is_read(root):
    text = '\ufeffpath,label\r\n\r\n"images\\cat\\1.jpg", cat \r\n'
    (root / "list.csv").write_text(text, encoding="utf-8", newline="")
    source = find_table(root / "list.csv")
    assert (source.keys, source.sample(0).name) == (["cat/1"], "images/cat/1.jpg")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("images/cat/0.jpg", "cat"), ("cat/1.jpg", "cat"), ("images/cat/1.jpg", "cat")],
         r"list.csv line 2: images/cat/0.jpg does not exist .*\(2 of 3 listed files do not\)"),
        ([("images/cat", "cat")], "line 2: images/cat is no file"),
        ([("images/cat/1.jpg/x.jpg", "cat")], "line 2: images/cat/1.jpg/x.jpg does not exist"),
        ([("/dev/null", "cat")], "line 2: /dev/null is no file"),
        ([("a" * 300, "cat")], r"line 2: 'a+' cannot be read \(.*File name too long"),
        ([("a\0b", "cat")], r"line 2: 'a\\x00b' cannot be read"),
        ([("images/cat/1.jpg", "cat"), (" ", "cat")], "line 3 has no path"),
        ([("images/cat/1.jpg", "")], "line 2 has no label"),
        ([("images/cat/1.jpg",)], "line 2 has no label"),
        ([("images/cat/1.jpg", "a/b")], "class 'a/b' of .*list.csv cannot begin a sample key"),
        ([("images/cat/1.jpg", "..")], r"class '\.\.' of"),
        ([("images/cat/1.jpg", "-1")], "integer labels without names"),
        ([("images/cat/1.jpg", "cat"), ("x.jpg", "cat"), ("images/cat/1.jpg", "dog")],
         "line 4 gives images/cat/1.jpg the class dog, line 2 the class cat"),
        ([], "holds no samples"),
    ],
)  # fmt: skip
def test_a_row_that_leads_nowhere_is_refused_by_its_line(root, rows, message):
    assert re.search(message, refusal(write_csv(root / "list.csv", *rows)))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"path": ["a.jpg"], "label": [None]}, "list.parquet row 0 has no label"),
        ({"path": ["a.jpg", None], "label": ["cat", "cat"]}, "list.parquet row 1 has no path"),
        ({"path": [1], "label": ["cat"]}, "column path of .* holds int64, not paths"),
        ({"path": ["images/cat/1.jpg"], "label": [7]}, "integer labels without names"),
        ({"path": ["images/cat/1.jpg"]}, "has no label column"),
    ],
)  # fmt: skip
def test_a_parquet_list_with_other_columns_is_refused(root, columns, message):
    pq.write_table(pa.table(columns), root / "list.parquet")
    assert re.search(message, refusal(root / "list.parquet"))
    (root / "list.parquet").write_bytes(b"PAR1")
    assert "list.parquet is damaged or not a parquet file" in refusal(root / "list.parquet")
    assert "list.csv does not exist; name a file (.csv," in refusal(root / "list.csv")


@given(st.lists(part, max_size=6), st.sampled_from(["cat", "dog", "emu"]))
def test_a_key_never_leaves_its_class(parts, class_name):
    path = "/".join([*parts, "x.y.jpg"])
    key, whole = listed_key(path, class_name), whole_key(path, class_name)
    assert key.split("/")[0] == class_name
    assert not {"", ".", ".."} & set(key.split("/"))
    assert key.endswith("/x.y")
    assert whole.split("/") == [class_name, *(p for p in parts if p not in {"", ".", ".."}), "x.y"]


@given(st.lists(st.sampled_from(["cat", "a", "b c"]), max_size=4), st.lists(part, max_size=4))
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_what_stands_before_the_class_folder_does_not_change_the_key(inside, before):
    path = "/".join(["dog", *inside, "x.jpg"])
    outside = [name for name in before if name != "dog"]
    assert listed_key("/".join([*outside, path]), "dog") == listed_key(path, "dog")
    assert listed_key(path, "dog") == path.removesuffix(".jpg")
    assert [listed_key(path, "cat") for path in ("", ".", "..", "/", "a/..")] == [""] * 5


def test_tables_are_told_by_their_extension(root):
    tables = ("list.csv", "LIST.CSV", "list.parquet", "list.tsv", "list.txt", "list.json")
    for name in (*tables, "list.md"):
        (root / name).write_text("")
    assert all(is_table(root / name) for name in tables)
    assert not any(is_table(root / name) for name in ("list.md", "gone.csv", "images"))


ROWS = [(f"images/{name}", class_of(name)) for name in FILES]
WAYS = {
    "headless.csv": "".join(f"{path},{label}\n" for path, label in ROWS),
    "label_first.csv": "".join(f"{label},{path}\n" for path, label in ROWS),
    "index.csv": ",path,label\n" + "".join(f"{n},{p},{c}\n" for n, (p, c) in enumerate(ROWS)),
    "excel.csv": "\ufeffFile Name;Class\r\n" + "".join(f"{p};{c}\r\n" for p, c in ROWS),
    "quoted.csv": " labels , path \n" + "".join(f'{c},"{p}"\n' for p, c in ROWS),
    "list.tsv": "image_path\ttarget\n" + "".join(f"{p}\t{c}\n" for p, c in ROWS),
    "tabs.txt": "".join(f"{p}\t{c}\n" for p, c in ROWS),
    "map.json": json.dumps(dict(ROWS)),
    "whole.csv": "".join(f"{{root}}/./{path},{label}\n" for path, label in ROWS),
    "outside.csv": "".join(f"../{{root.name}}/{path},{label}\n" for path, label in ROWS),
}  # fmt: skip


@pytest.mark.parametrize("name", WAYS)
def test_every_way_to_write_a_list_gives_what_the_folder_gives(root, name):
    text = WAYS[name].replace("{root}", str(root)).replace("{root.name}", root.name)
    (root / name).write_text(text, encoding="utf-8", newline="")
    assert contents(find_table(root / name)) == contents(find_folder(root / "images"))


def test_lines_of_caffe_hold_a_path_and_a_number(root):
    (root / "train.txt").write_text("images/cat/1.jpg 0\nimages/dog/1.jpg 1\n")
    source = find_table(root / "train.txt", SourceOptions(class_names=CLASSES))
    assert (source.keys, source.classes) == (["cat/1", "dog/1"], ("cat", "dog"))


def test_the_label_may_be_a_wordnet_id_inside_a_text(root):
    table = write_csv(
        root / "list.csv",
        ("images/cat/1.jpg", "n01440764 111 108 293 400"),
        ("images/dog/1.jpg", "n01443537 1 2 3 4 n01443537 5 6 7 8"),
        header=("ImageId", "PredictionString"),
    )
    assert find_table(table).keys == ["n01440764/1", "n01443537/1"]
    columns = {
        "path": [f"images/{name}" for name in FILES[:3]],
        "label": ["n01440764 tench", "n01440764", "n01443537 goldfish"],
    }
    pq.write_table(pa.table(columns), root / "list.parquet")
    assert find_table(root / "list.parquet").keys == ["n01440764/1", "n01440764/2", "n01443537/a.b"]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("images/cat/1.jpg,cat,0\nimages/dog/1.jpg,dog,1\n",
         "has no header, and line 1 is 'images/cat/1.jpg, cat, 0'; write"),
        ("file,image,label\nimages/a,images/b,cat\n",
         "the columns file, image, label, which do not tell"),
        ("path,label,Label\nimages/a,cat,dog\n", "has the columns label, Label; rename one"),
        ("path,species\nimages/a,cat\n", "only path, species; rename the column"),
        ("", "has no label column (label, labels, fine_label, class, "),
        ("", "), only no header"),
        ("path,label\n\udcff,cat\n", "cannot be read as CSV"),
    ],
)  # fmt: skip
def test_a_table_that_does_not_tell_its_columns_is_refused_with_what_was_seen(root, lines, words):
    (root / "list.csv").write_text(lines, encoding="utf-8", errors="surrogateescape")
    assert words in refusal(root / "list.csv")


def test_different_files_of_one_key_get_it_from_their_paths(root):
    for folder in ("a", "b"):
        (root / folder).mkdir()
        (root / folder / "1.jpg").write_text(folder)
    rows = [("a/1.jpg", "cat"), ("./b/1.jpg", "cat"), ("images/cat/2.JPEG", "cat")]
    source = find_table(write_csv(root / "list.csv", *rows))
    assert [row[0::3] for row in contents(source)] == [
        ("cat/2", b"cat/2.JPEG"), ("cat/a/1", b"a"), ("cat/b/1", b"b"),
    ]  # fmt: skip
