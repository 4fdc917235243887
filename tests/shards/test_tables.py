"""Tables made elsewhere: bytes of any kind, names of samples, cells of formulas, class lists."""

import csv
import io
import json
import string
from collections.abc import Sequence
from functools import partial
from importlib.machinery import ModuleSpec
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from coreset.shards.errors import CoresetError, MachineError, UsageError
from coreset.shards.format.classes import (
    IMAGENET_100_CMC_WNIDS,
    IMAGENET_100_WNIDS,
    IMAGENETTE_WNIDS,
    class_list,
    recognise,
)
from coreset.shards.format.dataset import classes_digest
from coreset.shards.sources.table import find_table
from coreset.shards.tables.formats import csv_table, guarded, unguarded
from coreset.shards.tables.sample_names import SEVERAL, UNKNOWN, SampleNames, read_list
from coreset.shards.tables.table import read_table

SAMPLES = pa.table({"key": ["cat/1", "dog/1"], "source": ["cat/1.jpg", "dog/1.jpg"]})
words = st.sampled_from(
    ["path", "id", "label", "class", "cat/1", "dog/1.jpg", "0", "1", "n01440764", "cat", "", "\0"]
)
tables = st.lists(
    st.lists(words, min_size=1, max_size=4).map(",".join), min_size=1, max_size=5
).map(lambda rows: "\n".join(rows).encode())
SUFFIXES = (".csv", ".tsv", ".txt", ".json", ".parquet", "")


@given(
    st.binary(max_size=80) | st.text(string.printable, max_size=80).map(str.encode) | tables,
    st.sampled_from(SUFFIXES),
)
@example(b"PAR1" * 3, ".parquet")
@example(b"[" * 100_000, ".json")
@example(b"\xef\xbb\xbf", ".csv")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=80)
def test_whatever_a_file_holds_it_is_read_or_refused(tmp_path, content, suffix):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    reads = (
        lambda: read_list(path, SAMPLES),
        lambda: class_list(str(path)),
        partial(find_table, path),
    )
    for read in reads:
        try:
            read()
        except CoresetError as error:
            assert "\n" not in str(error)  # noqa: PT017 - no error is right too


def test_a_line_that_never_ends_is_refused_before_it_fills_the_memory(tmp_path):
    (tmp_path / "x.txt").write_text("cat/1\n" + "a" * (1 << 21))
    with pytest.raises(UsageError, match="a line of more than 1,048,576 characters"):
        list(read_table(tmp_path / "x.txt", "list").rows())


def test_rows_behind_the_first_lines_are_read_with_their_numbers(tmp_path):
    n = 20_000
    lines = "".join(f'"é {number}\n",cat\n' for number in range(n))
    (tmp_path / "x.csv").write_text(f"path,label\n{lines}", encoding="utf-8")
    table = read_table(tmp_path / "x.csv", "list")
    rows = list(table.rows())
    assert (table.header, len(rows)) == (("path", "label"), n)
    assert rows[-1] == (2 * n + 1, [f"é {n - 1}\n", "cat"])


part = st.sampled_from(["cat", "dog", "old", "1", "1.jpg", "2.b", "x y"])
path = st.lists(part, min_size=1, max_size=4).map("/".join)
key = st.lists(part, min_size=2, max_size=3).map("/".join)
FOLDER = "old"
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp")


def without_extension(name: str) -> str:
    return name[: name.rindex(".")] if name.lower().endswith(EXTENSIONS) else name


def found_one_by_one(entry: str, keys: Sequence[str], sources: Sequence[str]) -> int:
    """Slow reference: try every end of a path, the longest first, on every sample."""
    parts = entry.split("/")
    last = 1 if len(parts) == 1 or parts[-2] == FOLDER else 2
    ends = ["/".join(parts[at:]) for at in range(len(parts) - last + 1)]
    for end in ends:
        for names, name in ((sources, end), (keys, end), (keys, without_extension(end))):
            there = [at for at, other in enumerate(names) if other == name]
            if there:
                return there[0] if len(there) == 1 else SEVERAL
    if len(parts) > 1:
        return UNKNOWN
    files = [at for at, name in enumerate(keys) if name.split("/")[-1] == without_extension(entry)]
    return UNKNOWN if not files else files[0] if len(files) == 1 else SEVERAL


@given(st.lists(st.tuples(key, path), unique_by=lambda pair: pair[0], max_size=8), st.lists(path))
def test_entries_mean_what_a_search_through_all_samples_finds(samples, entries):
    keys, sources = [sample[0] for sample in samples], [sample[1] for sample in samples]
    names = SampleNames(
        pa.array(keys, pa.string()), pa.array(sources, pa.large_string()), folder=FOLDER
    )
    expected = [found_one_by_one(entry, keys, sources) for entry in entries]
    assert list(map(names.position, entries)) == expected
    named = {entry for entry, at in zip(entries, expected, strict=True) if at != UNKNOWN}
    assert names.known(entries) == {entry for entry in named if not entry.isdigit()}


@pytest.mark.parametrize(
    ("entry", "position"),
    [
        ("cat/1.JPEG", 0), ("cat/1", 0), ("./cat//1.png", 0), (" /data/train/cat/1.JPEG ", 0),
        ("C:\\data\\cat\\1.JPEG", 0), ("../train/dog/old/1", 1), ("2.b", 2), ("2.b.jpg", 2),
        ("fish/2.b", UNKNOWN), ("cat", UNKNOWN), ("1", SEVERAL), ("cat/1.b", UNKNOWN),
        ("", UNKNOWN), ("/", UNKNOWN), ("..", UNKNOWN),
    ],
)  # fmt: skip
def test_paths_of_all_kinds_end_in_a_name(entry, position):
    names = SampleNames(
        pa.array(["cat/1", "dog/old/1", "dog/2.b"]),
        pa.chunked_array([["cat/1.JPEG"], ["dog/old/1.JPEG", "dog/2.b.png"]]),
    )
    assert names.position(entry) == position


def test_a_folder_of_another_class_is_not_passed_over():
    names = SampleNames(pa.array(["cat/1", "cat/2"]), pa.array(["1.jpg", "2.jpg"]), folder="val")
    entries = ["dog/1.jpg", "/data/val/1.jpg", "val/2.jpg", "1.jpg", "train/1.jpg"]
    assert list(map(names.position, entries)) == [UNKNOWN, 0, 1, 0, UNKNOWN]


SOURCES = Path(__file__).parents[2]
# Where CSV is made; anybody else passes rows to `csv_table`, or cells through `guarded`.
WRITERS = {"shards/tables/formats.py", "engine/evaluation/row_files.py"}
odd = st.text(st.sampled_from("'=+-@\t\r\n,\"a1.e"), max_size=6) | st.text(max_size=6)


def test_text_that_a_spreadsheet_runs_gets_an_apostrophe_and_nothing_else():
    for text in ("=1+1", "+cmd", "-x/1.jpg", "@SUM(A1)", "\t=1", "\r=1", "-"):
        assert guarded(text) == f"'{text}"
        assert guarded(f"'{text}") == f"''{text}"  # so that there is one way back
    for cell in ("a=1", "'quoted'", "", "-1", "+2.5", "-1e-5", -1, -0.5, None):
        assert guarded(cell) == cell


@given(odd)
def test_every_text_comes_back_and_none_is_a_formula(text):
    cell = guarded(text)
    assert isinstance(cell, str)
    assert unguarded(cell) == text
    assert not cell.startswith(("=", "@", "\t", "\r", "\n"))


@given(st.lists(st.tuples(odd, odd), max_size=4))
def test_rows_come_back_from_the_file(rows):
    text = csv_table(["=name", "-kind"], rows).decode()
    header, *cells = csv.reader(io.StringIO(text, newline=""))
    assert header == ["'=name", "'-kind"]
    assert cells == [[str(guarded(cell)) for cell in row] for row in rows]


def test_nobody_writes_csv_on_the_side():
    found = {
        path.relative_to(SOURCES).as_posix()
        for package in ("kernels", "shards", "engine")
        for path in (SOURCES / package).rglob("*.py")
        if any(word in path.read_text() for word in ("csv.writer(", "DictWriter(", "write_csv("))
    }
    assert found <= WRITERS


# Class lists.


def test_well_known_lists_have_names_and_are_recognised_in_any_order(monkeypatch):
    # The digest that was taken of the published list.
    digest = "5ee5db69d488bb799a286d8e181801c3d02798776c1ce9203e5450f64e086e07"
    assert classes_digest(IMAGENET_100_WNIDS) == digest
    # Likewise of its lines as they are.
    digest = "79f3f1552ccc478ce24bd934b4573625db584ddc1f4643ae23c994a94cb11397"
    assert classes_digest(IMAGENET_100_CMC_WNIDS) == digest
    assert class_list("imagenette") == IMAGENETTE_WNIDS
    assert class_list("imagenet100") == class_list("ImageNet-100") == IMAGENET_100_WNIDS
    assert recognise(IMAGENETTE_WNIDS[::-1]) == "imagenette"
    assert recognise(IMAGENET_100_WNIDS[::-1]) == "imagenet-100"
    with monkeypatch.context() as patch:
        patch.setattr("coreset.shards.format.classes.find_spec", lambda _: ModuleSpec("timm", None))
        with pytest.raises(MachineError, match="comes with timm, which is not installed"):
            class_list("imagenet-1k")
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
