"""Export: names of files, contents of each format, and lists that are read back."""

import json
import os
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coreset.shards.errors import DataError, UsageError
from coreset.shards.export import (
    ExportPlan,
    StoredSample,
    class_folder,
    ids_list,
    image_name,
    paths_list,
    standard_split,
    write_image_folder,
    write_parquet,
    write_webdataset,
)
from coreset.shards.format.tar import walk
from coreset.shards.tables.sample_names import read_list

SAMPLES = pa.table(
    {
        "id": [0, 1, 2, 3, 4],
        "key": ["cat/1", "cat/2", "dog/old/9", "dog/a b", "dog/1"],
        "source": ["cat/1.JPEG", "cat/2.png", "dog/old/9.JPEG", "dog/a b.jpg", "dog/1.JPEG"],
        "label": [0, 0, 1, 1, 1],
    }
)


def sample(key="cat/1", class_name="cat", **fields):
    usual: dict[str, Any] = {"sample_id": 0, "label": 0, "image": b"image", "extension": "jpg"}
    return StoredSample(key=key, class_name=class_name, **usual | fields)


def plan(n_samples, **fields):
    usual: dict[str, Any] = {"classes": ("cat", "dog"), "samples_per_shard": 1000}
    return ExportPlan(name="pets", split="train", n_samples=n_samples, **usual | fields)


# names


@pytest.mark.parametrize(
    ("key", "class_name", "name"),
    [
        ("cat/tabby.1", "cat", "cat/tabby.1.jpg"),
        ("cat/old/100%", "cat", "cat/old%2F100%25.jpg"),  # loaders see the class in the folder
        ("cat/1", "dog", "dog/%2Fcat%2F1.jpg"),  # of another class: the whole key
    ],
)
def test_the_name_of_an_image_is_its_class_and_the_rest_of_its_key(key, class_name, name):
    assert image_name(sample(key, class_name)) == name


@pytest.mark.parametrize(
    "key",
    ["", "cat", "cat/", "cat//1", "/cat/1", "../../etc/passwd", "cat/../../1", "cat/./1",
     "cat/.bashrc", "cat/1\0", "cat/1\n2", "cat/" + "1" * 252, "cat/" + "/".join(["1" * 8] * 30)],
)  # fmt: skip
def test_a_hostile_key_is_refused_by_name(key, tmp_path):
    for write in (write_image_folder, write_parquet):
        with pytest.raises(UsageError, match=r"^sample key '.*; use --to webdataset.*\Z"):
            write([sample(key)], tmp_path, plan(1))
    assert not list(tmp_path.rglob("*.jpg"))


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "a/b", "/etc", "a\0b", "a\nb", "\x7f", "é" * 128]
)
def test_a_hostile_class_name_is_refused(name, tmp_path):
    for refused in (lambda: class_folder(name), lambda: image_name(sample(class_name=name))):
        with pytest.raises(UsageError, match=r"^class '.*cannot be the name of a folder"):
            refused()
    with pytest.raises(UsageError, match=r"^class '"):
        write_image_folder([], tmp_path, plan(0, classes=("cat", name)))
    assert list(tmp_path.iterdir()) == []


names = st.text(st.sampled_from("ab./%2F\\~é \0\n"), max_size=12)


@given(names, names)
def test_a_name_is_refused_or_lies_directly_in_its_class_and_gives_the_key_back(key, class_name):
    try:
        name = image_name(sample(key, class_name))
    except UsageError:
        return
    assert os.path.normpath(f"/out/{name}") == f"/out/{name}"
    assert str(PurePosixPath(name).parent) == class_name
    below = PurePosixPath(name).name.removesuffix(".jpg").replace("%2F", "/").replace("%25", "%")
    assert key == (below[1:] if below.startswith("/") else f"{class_name}/{below}")


def test_two_files_of_one_name_are_refused_and_the_first_one_stays(tmp_path):
    twice = [sample(image=b"first"), sample(image=b"second")]
    with pytest.raises(UsageError, match=r"^two samples of class cat would be called 1\.jpg"):
        write_image_folder(twice, tmp_path, plan(2))
    assert (tmp_path / "cat" / "1.jpg").read_bytes() == b"first"
    with pytest.raises(UsageError, match=r"^class classes\.txt has the name of"):
        write_image_folder([], tmp_path, plan(0, classes=("cow", "classes.txt")))


def test_a_split_gets_the_name_that_loaders_know():
    splits = ("val", "Valid", "test", "train", "../../x", "")
    standard = ["validation", "validation", "test", "train", "train", "train"]
    assert [standard_split(split) for split in splits] == standard


@given(st.integers(0, 300), st.integers(1, 100))
def test_shards_are_full_but_for_the_last(n_samples, samples_per_shard):
    lengths = plan(n_samples, samples_per_shard=samples_per_shard).shard_lengths
    assert sum(lengths) == n_samples
    assert all(length == samples_per_shard for length in lengths[:-1])
    assert all(0 < length <= samples_per_shard for length in lengths[-1:])


# shards and tables


def test_members_are_named_by_id_whatever_the_keys_are(tmp_path):
    samples = [sample("../../etc/x", "..", sample_id=7), sample("cat/1.2", sample_id=40, label=1)]
    write_webdataset(samples, tmp_path, plan(2))
    members = [member.name for member in walk(tmp_path / "train-000000.tar")]
    assert members == ["000000007.jpg", "000000007.cls", "000000040.jpg", "000000040.cls"]
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {"_info.json", "train-000000.idx", "train-000000.tar"}


def test_parquet_metadata_have_the_form_that_datasets_writes(tmp_path):
    write_parquet([sample()], tmp_path, plan(1))
    stored = pq.read_schema(tmp_path / "data/train-00000-of-00001.parquet")
    assert stored.field("image").type == pa.struct({"bytes": pa.binary(), "path": pa.string()})
    # datasets 5.2 `Dataset.to_parquet` of an Image and a ClassLabel column
    label = {"names": ["cat", "dog"], "_type": "ClassLabel"}
    features = {"image": {"_type": "Image"}, "label": label}
    assert json.loads(stored.metadata[b"huggingface"]) == {"info": {"features": features}}


@pytest.mark.parametrize(
    ("image", "n_samples", "per_file", "groups"),
    [(b"image", 430, 220, [[100, 100, 20], [100, 100, 10]]), (bytes(33 << 20), 3, 9, [[2, 1]])],
    ids=["by number", "by bytes"],
)
def test_row_groups_are_cut_by_number_and_bytes(tmp_path, image, n_samples, per_file, groups):
    samples = [sample(f"cat/{number}", image=image) for number in range(n_samples)]
    write_parquet(samples, tmp_path, plan(n_samples, samples_per_shard=per_file))
    files = [f"train-{at:05d}-of-{len(groups):05d}.parquet" for at in range(len(groups))]
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == files
    for file, expected in zip(files, groups, strict=True):
        metadata = pq.read_metadata(tmp_path / "data" / file)
        rows = [metadata.row_group(at).num_rows for at in range(metadata.num_row_groups)]
        assert rows == expected


# lists


def listed(tmp_path, content, name="list.txt"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("suffix", [".txt", ".npy", ".csv", ""])
def test_ids_and_paths_come_back_from_their_lists(tmp_path, suffix):
    some = SAMPLES.take([0, 2, 3])
    for write in (ids_list, paths_list) if suffix != ".npy" else (ids_list,):
        ids = read_list(listed(tmp_path, write(some, suffix), f"list{suffix}"), SAMPLES)
        assert (ids.dtype, ids.tolist()) == (np.int64, [0, 2, 3])


def test_lists_are_plain_text_and_tables():
    some = SAMPLES.take([3, 1])
    assert ids_list(some, ".txt") == b"3\n1\n"
    assert paths_list(some, ".txt") == b"dog/a b.jpg\ncat/2.png\n"
    header, row, _ = paths_list(some, ".csv").decode().splitlines()
    assert (header, row) == ("path,label,key", "dog/a b.jpg,1,dog/a b")


def test_a_path_that_breaks_the_line_is_kept_by_csv_and_refused_by_text(tmp_path):
    odd = pa.table({"key": ["cat/1\n2"], "source": ["cat/1\n2.jpg"], "label": [0]})
    path = listed(tmp_path, paths_list(odd, ".csv"), "list.csv")
    assert read_list(path, odd).tolist() == [0]
    with pytest.raises(UsageError, match=r"does not fit on a line; write a list that ends in \.c"):
        paths_list(odd, ".txt")


WAYS_TO_LIST = {
    "a frame with its index": ("x.csv", ",path,label\n0,cat/2.png,0\n1,dog/1.JPEG,1\n"),
    "no header and a label": ("x.csv", "cat/2.png,0\ndog/1.JPEG,1\n"),
    "a counter before the path": ("x.csv", "0,cat/2.png\n1,dog/1.JPEG\n"),
    "ids with a frame's index": ("x.csv", ",id\n0,1\n1,4\n"),
    "ids without a header": ("x.csv", "4\n1\n"),
    "a path before a counter": ("x.csv", "id,img_fn,label\n0,cat/2.png,0\n1,dog/1.JPEG,1\n"),
    "columns in text": ("x.txt", "path label\ncat/2 0\ndog/1 1\n"),
    "lines of Caffe": ("x.txt", "cat/2.png 0\ndog/1.JPEG 1\n"),
    "ids in a map": ("x.json", '{"ids": [1, 4]}'),
    "map": ("x.json", '{"cat/2": 0, "dog/1": 1}'),
    "frame": ("x.json", '{"path": {"0": "cat/2", "1": "dog/1"}, "label": {"0": 0, "1": 1}}'),
    "array in text": ("x.txt", "[1, 4]"),
    "paths of elsewhere": ("x.txt", "/data/train/cat/2.JPEG\nD:\\in1k\\dog\\1.jpg\n"),
    "odd paths": ("x.txt", "./cat/2.png\n dog\\1 \n"),
}


@pytest.mark.parametrize("way", WAYS_TO_LIST)
def test_every_way_to_write_a_list_names_the_same_samples(tmp_path, way):
    name, content = WAYS_TO_LIST[way]
    assert read_list(listed(tmp_path, content, name), SAMPLES).tolist() == [1, 4]


def test_parquet_lists_are_read_by_their_columns_of_text_and_integers(tmp_path):
    columns = {"image": [b"x", b"y"], "__index_level_0__": [7, 8], "path": ["cat/2", "dog/1"]}
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    assert read_list(tmp_path / "x.parquet", SAMPLES).tolist() == [1, 4]
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="is damaged or not a parquet file"):
        read_list(tmp_path / "x.parquet", SAMPLES)


def test_the_source_path_counts_where_it_is_the_key_of_another(tmp_path):
    odd = pa.table({"key": ["cat/1.a", "cat/1"], "source": ["cat/1.a.jpg", "cat/1.a"]})
    assert read_list(listed(tmp_path, "cat/1.a"), odd).tolist() == [1]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.txt", "1\n\ncat/3\n", r"x\.txt line 3: 'cat/3' is no id, sample key or source path"),
        ("x.txt", "1\n5\n", r"line 2: id must be in \[0, 5\), got 5$"),
        ("x.txt", "-1\n", r"line 1: '-1' is no id"),
        ("x.txt", "9" * 5000, r"line 1: '9+' is no id"),
        ("x.txt", "1\n0\ncat/2\n", r"line 3 names sample 1 again \('cat/2', first in line 1\)"),
        ("x.txt", "", r"names no samples"),
        ("x.txt", b"\xff\xfe1\n", r"cannot be read as text \('utf-8'"),
        ("x.csv", "path,label\ncat/1.JPEG,0\n,1\n", r"line 3 names no sample"),
        ("x.csv", "0\n3\n", r"line 1 is 0, which may be sample 0 or the header of a column witho"),
        ("x.csv", ",0\n0,3\n1,4\n", r"the columns \(no name\), 0, which do not tell"),
        ("x.csv", "0,3\n1,4\n", r"has no header, and line 1 is '0, 3', which do not tell"),
        ("x.csv", "cat\ndog\n", r"begins with 'cat', which may be a header or not"),
        ("x.csv", "4\n" + '"' + "a" * 200_000, r"cannot be read as CSV"),
        ("x.txt", "1.JPEG\n", r"line 1: '1\.JPEG' names several samples; list sample ids"),
        ("x.json", '["\\ud800"]', r"entry 1: '\?' is no id"),
        ("x.csv", "path\ncat/1.JPEG\n\nfish/1.JPEG,x\n", r"x\.csv line 4: 'fish/1\.JPEG' is no"),
        ("x.npy", b"1\n2\n", r"x\.npy cannot be read"),
        (".", "", "does not exist; name a file|is not a file"),
    ],
)
def test_a_bad_list_is_refused_by_line(tmp_path, name, content, message):
    path = tmp_path if name == "." else listed(tmp_path, content, name)
    with pytest.raises(UsageError, match=message) as refusal:
        read_list(path, SAMPLES)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([0, 7]), r"x\.npy entry 2: id must be in \[0, 5\), got 7"),
        (np.array([3, 1, 3]), r"entry 3 names sample 3 again"),
        (np.array([0, -1]), r"entry 2: '-1' is no id"),
        (np.array([0.5]), r"float64 of shape \(1,\), expected one row of integers"),
        (np.array([[0]]), r"int64 of shape \(1, 1\), expected one row of integers"),
        (np.array([{}]), r"cannot be read"),
    ],
)
def test_a_bad_array_is_refused_by_entry(tmp_path, array, message):
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(UsageError, match=message):
        read_list(tmp_path / "x.npy", SAMPLES)
