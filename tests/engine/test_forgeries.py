"""Forged artifacts whose digests fit: one line and an exit code, and no memory by a header."""

import io
import json
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from coreset.engine.artifacts.provenance import PROVENANCE_NAME
from coreset.engine.condensed.condensed_set import IDS_NAME, SET_NAME
from coreset.engine.evaluation.result_tables import STUDENTS, STUDENTS_SCHEMA
from coreset.engine.evaluation.results import Results
from coreset.shards.format.dataset import MANIFEST_NAME, QUARANTINE_NAME, SAMPLES_NAME
from coreset.shards.format.files import digest_of, sha256_of_file

pytestmark = pytest.mark.filterwarnings("ignore:Object at:UserWarning")  # zarr, of forged metadata

Json = dict[str, Any]
DEEP = b"[" * 100_000
HUGE = 1 << 62


def edit(path, change):
    document = json.loads(path.read_bytes())
    change(document)
    path.write_text(json.dumps(document))


def setting(*keys, to):
    """Set one value deep in a document."""

    def change(document):
        for key in keys[:-1]:
            document = document[key]
        document[keys[-1]] = to

    return change


@pytest.fixture
def data(packed, tmp_path):
    return shutil.copytree(packed, tmp_path / "DATA")


@pytest.fixture
def stopped(coreset):
    """Run a command that finds a forgery when it has begun to write; returns what it says."""

    def run(*words):
        ended = coreset(*words)
        assert (ended.code, ended.out, ended.err.count("\n")) == (3, "", 1)
        return ended.err

    return run


@pytest.fixture
def checked(tmp_path, refused):
    """Run a command that must find a forgery of data; returns what it says."""
    return lambda *words: refused(tmp_path, *words, code=3)


# data sets: manifest.json


MANIFESTS: dict[str, Callable[[Json], object]] = {
    "no shards": setting("shards", to=[]),
    "a shard less": lambda document: document["shards"].pop(),
    "a negative count": setting("n_samples", to=-1),
    "a count as text": setting("n_samples", to="60"),
    "another count": setting("n_samples", to=61),
    "a shard elsewhere": setting("shards", 0, "name", to="../../etc/passwd"),
    "a shard of few bytes": setting("shards", 1, "bytes", to=600),
    "a shard of negative samples": setting("shards", 0, "samples", to=-HUGE),
    "a shard of many samples": setting("shards", 0, "samples", to=HUGE),
    "a class less": lambda document: document["classes"].pop(),
    "a class twice": setting("classes", 1, to="n01440764"),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_forged_manifest_is_refused(data, checked, name):
    edit(data / MANIFEST_NAME, MANIFESTS[name])
    said = checked("select", data, data.with_name("SET"), "--ipc", 1)
    assert str(data) in said
    assert "pack" in said, "no remedy"
    assert checked("verify", data, "--fast") == said


# data sets: samples.parquet


def bless_table(data):
    """Make the manifest of a data set fit its table."""
    digest = sha256_of_file(data / SAMPLES_NAME)
    edit(data / MANIFEST_NAME, setting("samples_sha256", to=digest))


def forge_table(data, table):
    pq.write_table(table, data / SAMPLES_NAME)
    bless_table(data)


def with_value(column, row, value):
    return lambda table: with_values(
        table, column, [value if at == row else v for at, v in enumerate(table[column].to_pylist())]
    )


def exchanged(column, a, b):
    order = np.arange(60)
    order[[a, b]] = b, a
    return lambda table: with_values(table, column, table[column].take(order).to_pylist())


def with_values(table, column, values):
    at, field = table.schema.get_field_index(column), table.schema.field(column)
    return table.set_column(
        at, column, pa.array(values, values.type if isinstance(values, pa.Array) else field.type)
    )


def with_bad_text(table):
    raw = pa.array([b"\xff\xfe"] * len(table), pa.binary())
    return with_values(table, "key", pa.Array.from_buffers(pa.string(), len(raw), raw.buffers()))


# What is refused when the data set is opened, by the column that is named.
TABLES: dict[str, tuple[str, Callable[[pa.Table], pa.Table]]] = {
    "offset before the shard": ("offset of sample 7 is -1", with_value("offset", 7, -1)),
    "offset beyond the shard": ("offset of sample 7 is", with_value("offset", 7, HUGE)),
    "bytes beyond the shard": ("bytes of sample 20 is", with_value("bytes", 20, HUGE)),
    "no such shard": ("shard of sample 59 is 4", with_value("shard", 59, 4)),
    "another shard": ("shard of sample 16 is 0", with_value("shard", 16, 0)),
    "no such label": ("label of sample 3 is 3", with_value("label", 3, 3)),
    "no label": ("label is not known", with_value("label", 3, None)),
    "no offset": ("offset is not known", with_value("offset", 3, None)),
    "rows less": ("rows expected 60, found 59", lambda table: table.slice(1)),
    "rows more": ("rows expected 60, found 120", lambda table: pa.concat_tables([table] * 2)),
    "no column": ("column bytes", lambda table: table.drop_columns(["bytes"])),
    "no key column": ("column key", lambda table: table.drop_columns(["key"])),
    "column of another type": (
        "column label is not of type int64",
        lambda table: with_values(table, "label", table["label"].cast("double").combine_chunks()),
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_forged_table_is_refused_when_the_data_set_is_opened(data, checked, name):
    expected, change = TABLES[name]
    forge_table(data, change(pq.read_table(data / SAMPLES_NAME)))
    said = checked("verify", data, "--fast")
    assert said.startswith(f"{data / SAMPLES_NAME}: {expected}")
    assert said.endswith("; restore the data set from a copy, or pack again")
    assert checked("decode", data, data.with_name("PIXELS"), "--size", 8) == said


@pytest.mark.parametrize(
    ("change", "verb", "expected"),
    [
        (with_value("width", 5, 0), "decode", "width of sample 5 is 0"),
        (with_value("height", 6, None), "decode", "height is not known"),
        (with_bad_text, "verify", SAMPLES_NAME),
        (with_value("key", 4, None), "verify", SAMPLES_NAME),
    ],
)
def test_a_forged_table_is_refused_by_what_reads_the_column(data, stopped, change, verb, expected):
    forge_table(data, change(pq.read_table(data / SAMPLES_NAME)))
    if verb == "verify":
        assert expected in stopped("verify", data)
        assert expected in stopped("verify", data, "--deep")
    else:
        assert expected in stopped("decode", data, data.with_name("PIXELS"), "--size", 8)


def test_tables_that_are_no_parquet_are_refused(data, checked):
    pq.write_table(pa.table({"position": [1]}), data / QUARANTINE_NAME)
    assert QUARANTINE_NAME in checked("quarantine", "show", data)
    for content in (b"", b"PAR1" * 100):
        (data / QUARANTINE_NAME).write_bytes(content)
        assert QUARANTINE_NAME in checked("quarantine", "show", data)
        (data / SAMPLES_NAME).write_bytes(content)
        bless_table(data)
        assert SAMPLES_NAME in checked("verify", data, "--fast")


# Within the shards, but not where the images lie: found by the walk along the members.
@pytest.mark.parametrize("words", [(), ("--deep",)])
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (exchanged("offset", 17, 18), "offset expected"),
        (exchanged("member", 17, 18), "member expected"),
        (with_value("offset", 17, 512), "offset expected 512, found"),
    ],
)
def test_verify_compares_the_place_of_every_row_with_the_members_of_the_shards(
    data, checked, change, expected, words
):
    table = pq.read_table(data / SAMPLES_NAME)
    key = table["key"][17].as_py()
    forge_table(data, change(table))
    said = checked("verify", data, *words)
    assert "shard-000001.tar:" in said
    assert f":{key}: {expected}" in said


# condensed sets


@pytest.fixture
def condensed(random_set, packed, tmp_path):
    """A coreset, and a command that opens it."""
    path = shutil.copytree(random_set, tmp_path / "SET")
    return path, ("export", path, tmp_path / "OUT", "--to", "ids", "--data", packed)


def bless(path):
    """Make the digest of a coreset fit its files."""
    files = {name: sha256_of_file(path / name) for name in (IDS_NAME, SET_NAME)}
    edit(path / PROVENANCE_NAME, setting("digest", to=digest_of(files)))


def npy(array, **header):
    """An array as a file, and another header than is its own."""
    sink = io.BytesIO()
    facts: Json = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape}
    np.lib.format.write_array_header_1_0(sink, facts | header)  # type: ignore[arg-type] - forged
    return sink.getvalue() + array.tobytes()


IDS: dict[str, Callable[[Any], bytes]] = {
    "a huge shape": lambda ids: npy(ids, shape=(1 << 40,)),
    "objects": lambda ids: npy(ids, descr="|O"),
    "a matrix": lambda ids: npy(ids.reshape(2, -1)),
    "no numbers": lambda ids: npy(ids[:0]),
    "too many": lambda ids: npy(np.resize(ids, 61)),
    "a negative id": lambda ids: npy(np.array([-1, *ids[1:]])),
    "an id beyond the set": lambda ids: npy(np.array([*ids[:-1], 60])),
    "an id twice": lambda ids: npy(np.array([ids[0], ids[0], *ids[2:]])),
    "another order": lambda ids: npy(ids[::-1].copy()),
    "nothing": lambda _: b"",
}


@pytest.mark.parametrize("name", IDS)
def test_forged_ids_are_refused(condensed, checked, name):
    path, command = condensed
    (path / IDS_NAME).write_bytes(IDS[name](np.load(path / IDS_NAME)))
    bless(path)
    said = checked(*command)
    assert str(path) in said
    assert said.endswith(("make the set again", "make it again"))


INPUT = {"role": "data", "path": "../DATA", "kind": "dataset", "digest": "d", "inputs": []}


def lineage(length):
    inputs: list[Json] = []
    for _ in range(length):
        inputs = [INPUT | {"inputs": inputs}]
    return inputs


DOCUMENTS: list[tuple[str, Callable[[Json], object]]] = [
    (SET_NAME, setting("n_classes", to=10**9)),
    (SET_NAME, setting("per_class", to=[1, 2, 3])),
    (SET_NAME, setting("per_class", to=[])),
    (PROVENANCE_NAME, setting("inputs", to=[1])),
    (PROVENANCE_NAME, setting("inputs", to=[{"role": "data"}])),
    (PROVENANCE_NAME, setting("inputs", to=[INPUT | {"inputs": "x"}])),
    (PROVENANCE_NAME, setting("inputs", to=lineage(300))),
    (PROVENANCE_NAME, lambda document: document.pop("format_version")),
]


@pytest.mark.parametrize(("document", "change"), DOCUMENTS)
def test_a_forged_document_of_a_set_is_refused(condensed, checked, document, change):
    path, command = condensed
    edit(path / document, change)
    if document == SET_NAME:
        bless(path)
    assert document in checked(*command)
    (path / document).write_bytes(DEEP)
    assert "nested too deeply" in checked(*command)


# scores


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("commit.json", b'{"generations": [{"number": 1, "directory": "../..", "files": {}}]}'),
        ("undecodable.json", DEEP),
        ("undecodable.json", b'{"x": "why"}'),
        (PROVENANCE_NAME, None),
    ],
)
def test_forged_documents_of_scores_are_refused(
    *, scored, packed, tmp_path, checked, name, content
):
    scores = shutil.copytree(scored, tmp_path / "SCORES")
    if content is None:
        edit(scores / name, setting("binds", to={}))
    else:
        (scores / name).write_bytes(content)
    said = checked("select", scores, tmp_path / "SET", "--ipc", 1, "--data", packed)
    assert name in said
    assert ("names no identity" in said) is (content is None)


@pytest.mark.parametrize("value", [3, -2])
def test_predictions_of_no_class_are_refused(packed, tmp_path, checked, write_scores, value):
    columns = {"aum": np.zeros(60, np.float32), "predicted": np.full(60, value)}
    scores = write_scores(packed, tmp_path / "FORGED", columns)
    assert "predictions that are no class of 3" in checked("scores", "suspects", scores)


# pixels


PIXELS: dict[str, Callable[[Json], object]] = {
    "no images": setting("n_samples", to=0),
    "no size": setting("geometry", "size", to=0),
    "chunks of no batches": setting("batches_per_chunk", to=-1),
    "chunks less": setting("chunks", to=[]),
    "a sample that is not there": setting("undecodable", to={"60": "why"}),
}


@pytest.fixture(scope="module")
def pixels(packed, work, made):
    path = work / "FORGED-PIXELS"
    return made(path, "decode", packed, path, "--size", 24)


@pytest.mark.parametrize("name", PIXELS)
def test_a_forged_index_of_pixels_is_refused(pixels, packed, tmp_path, stopped, name):
    copy = shutil.copytree(pixels, tmp_path / "PIXELS")
    edit(copy / "pixels.json", PIXELS[name])
    command = ("score", packed, tmp_path / "SCORES", "--pixels", copy, "--size", 17)
    assert "pixels." in stopped(*command, "--epochs", 1)


# ledgers and results


LINES = [b"3", b"{}", b'{"stage": 1}', DEEP[:2000], b"\xff\xfe",
         b'{"stage": "pack"}', b'{"stage": "pack", "wall_seconds": "x"}']  # fmt: skip


def test_what_is_no_line_of_a_ledger_is_passed_over(packed, data, done):
    with (data / "ledger.jsonl").open("ab") as file:
        file.write(b"\n".join(LINES) + b"\n")
    said, expected = done("cost", data), done("cost", packed)
    assert [line.replace(str(data), str(packed)) for line in said] == expected


ROW: Mapping[str, Any] = {
    "key": "k", "data": "photos", "method": "random", "ipc": 2, "set_kind": "coreset",
    "set_digest": "d" * 64, "set_path": "../SET", "set_seed": 0, "parameters": "{}", "val": "v",
    "val_path": "../VAL", "val_identity": "i" * 64, "n_val": 18, "protocol": "hard@1",
    "student": "resnet18", "seed": 0, "top1_best": 50.0, "top1_last": 49.0, "top5_last": 90.0,
    "epochs": 1, "evaluations": 1, "size": 64, "batch": 1, "steps": 1, "train_seconds": 1.0,
    "evaluation_seconds": 1.0, "peak_rss_bytes": 1, "image_bytes": 1, "label_bytes": 0,
    "device": "cpu", "runtime": "{}",
}  # fmt: skip
ROWS: dict[str, dict[str, Any]] = {
    "parameters that are no JSON": {"parameters": "{"},
    "parameters without end": {"parameters": DEEP.decode()},
    "a runtime that is no JSON": {"runtime": "x"},
    "no ipc": {"ipc": None},
    "no accuracy": {"top1_best": None},
    "teachers that are no list": {"teachers": "3"},
    "teachers without digests": {"teachers": '[["resnet18"]]'},
    "teachers without end": {"teachers": DEEP.decode()},
}


@pytest.mark.parametrize("name", ROWS)
def test_forged_results_are_refused(tmp_path, checked, name):
    results = tmp_path / "RESULTS"
    results.mkdir()
    table = pa.Table.from_pylist([dict(ROW) | ROWS[name]], schema=STUDENTS_SCHEMA)
    pq.write_table(table, results / "students.parquet", write_page_checksum=True)
    said = checked("report", results, tmp_path / "report.html")
    assert "students.parquet" in said


def test_a_forged_lineage_is_refused(tmp_path, checked):
    results = Results(tmp_path / "RESULTS")
    results.append(STUDENTS, [ROW], [])
    (results.path / "lineage").mkdir()
    (results.path / "lineage" / f"{'d' * 24}.json").write_bytes(DEEP)
    assert "lineage" in checked("report", results.path, tmp_path / "report.html")
