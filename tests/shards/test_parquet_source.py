import fcntl
import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from coreset.shards.errors import DataError, LockedError, MachineError, UsageError
from coreset.shards.sources.base import Source, SourceOptions
from coreset.shards.sources.parquet import find_parquet, is_parquet

CLASSES = ("n01440764", "n02102040", "n03000684")
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
Row = tuple[bytes | None, str | None, Any]


ROWS: list[Row] = [
    (f"{name} {index} ".encode() * (1 + 37 * index), f"{name}_{index}.JPEG", label)
    for label, name in enumerate(CLASSES)
    for index in range(7)
]


def write_parquet(
    path: Path,
    rows: Sequence[Row],
    *,
    names: Sequence[str] | None = CLASSES,
    label: Any = None,
    image: Any = IMAGE,
    column: str = "label",
    rows_per_group: int = 5,
) -> Path:
    label, metadata = label or pa.int64(), {}
    if names is not None:
        features = {column: {"names": list(names), "_type": "ClassLabel"}}
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    schema = pa.schema([("image", image), (column, label)], metadata=metadata)
    nested = pa.types.is_struct(image)
    images = [{"bytes": row[0], "path": row[1]} if nested else row[0] for row in rows]
    table = pa.table([pa.array(images, image), pa.array([row[2] for row in rows], label)], schema)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=rows_per_group, compression="zstd")
    return path


def write_split(root: Path, n_files: int) -> Path:
    for number in range(n_files):
        write_parquet(root / f"train-{number:05}-of-{n_files:05}.parquet", ROWS[number::n_files])
    return root


def contents(source: Source) -> list[tuple[str, str, int, bytes]]:
    return [
        (sample.key, source.classes[sample.label], sample.size, source.contents.read(sample))
        for sample in source.samples(range(len(source)))
    ]


def written(spool: Path) -> dict[str, int]:
    """Inode of each spooled file: another one if it was written again."""
    return {path.name: path.stat().st_ino for path in spool.iterdir()}


@pytest.fixture
def wanted(tmp_path: Path) -> SourceOptions:
    return SourceOptions(spool=tmp_path / "spool")


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    return write_split(tmp_path / "hub", 2)


@given(
    images=st.lists(
        st.tuples(st.none() | st.binary(max_size=300), st.integers(0, 2)), min_size=1, max_size=150
    ),
    rows_per_group=st.integers(1, 100),
    only=st.none() | st.sets(st.sampled_from(CLASSES), min_size=1),
)
@example([(b"%d" % at, at % 3) for at in range(150)], 100, {CLASSES[1]})  # groups of two batches
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_every_wanted_row_is_read_back_whatever_the_row_groups(
    tmp_path, images, rows_per_group, only
):
    rows = [(data, None, label) for data, label in images]
    path = write_parquet(tmp_path / "some.parquet", rows, rows_per_group=rows_per_group)
    there = {CLASSES[label] for _, label in images}
    chosen = None if only is None or not only <= there else tuple(sorted(only))
    spool = tmp_path / "spool"
    shutil.rmtree(spool, ignore_errors=True)
    source = find_parquet(path, SourceOptions(spool=spool, only=chosen))
    expected = sorted(
        (f"{CLASSES[label]}/some-{row:06d}", data or b"")
        for row, (data, label) in enumerate(images)
        if chosen is None or CLASSES[label] in chosen
    )
    assert [(key, data) for key, _, _, data in contents(source)] == expected
    null = {f"some-{row:06d}" for row, (data, _) in enumerate(images) if data is None}
    refused = {source.keys[row].split("/")[1] for row in source.unreadable}
    assert refused == {key.split("/")[1] for key, _ in expected} & null
    assert set(source.unreadable.values()) <= {"no image bytes"}


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("n01440764_10026_n01440764.JPEG", "n01440764/n01440764_10026"),
        ("ILSVRC2012_val_00000293_n01440764.JPEG", "n01440764/ILSVRC2012_val_00000293"),
        ("train/n01440764/deep/x.JPEG", "n01440764/deep/x"),
        ("", "n01440764/one-000000"),
        (None, "n01440764/one-000000"),
    ],
)
def test_the_key_is_that_of_the_folder_or_else_the_row(tmp_path, wanted, path, key):
    src = write_parquet(tmp_path / "one.parquet", [(b"x", path, 0)])
    assert find_parquet(src, wanted).keys == [key]


@pytest.mark.parametrize(
    ("kind", "label"),
    [
        (pa.binary(), pa.string()),
        (pa.large_binary(), pa.large_string()),
        (pa.binary_view(), pa.string_view()),
        (pa.binary(3), pa.dictionary(pa.int8(), pa.string())),
        (pa.dictionary(pa.int32(), pa.binary()), pa.string()),
        (pa.struct([("bytes", pa.binary_view())]), pa.string()),
        (pa.struct([("bytes", pa.binary(3)), ("path", pa.string_view())]), pa.string()),
    ],
)
def test_columns_of_all_types_are_read(tmp_path, wanted, kind, label):
    rows = [(b"one", "x.png", "cat"), (None, "y.png", "cat"), (b"two", "z.png", "dog")]
    path = write_parquet(tmp_path / "a.parquet", rows, names=None, label=label, image=kind)
    source = find_parquet(path, wanted)
    with_paths = pa.types.is_struct(kind) and kind.num_fields == 2
    stems = ("x", "y", "z") if with_paths else ("a-000000", "a-000001", "a-000002")
    assert [row[0::3] for row in contents(source)] == [
        (f"cat/{stems[0]}", b"one"), (f"cat/{stems[1]}", b""), (f"dog/{stems[2]}", b"two"),
    ]  # fmt: skip
    assert source.unreadable == {1: "no image bytes"}


def test_rows_that_share_a_path_have_keys_from_their_position(tmp_path, wanted):
    """Also across files; the keys of a class do not depend on which classes are taken."""
    first: list[Row] = [(b"a", "image.jpg", 0), (b"b", "image.jpg", 0), (b"c", "image.jpg", 1)]
    second: list[Row] = [(b"d", "image.jpg", 0), (b"e", "own.jpg", 0)]
    write_parquet(tmp_path / "hub/0.parquet", first)
    write_parquet(tmp_path / "hub/1.parquet", second)
    source = find_parquet(tmp_path / "hub", wanted)
    assert [row[0::3] for row in contents(source)] == [
        ("n01440764/0-000000", b"a"), ("n01440764/0-000001", b"b"), ("n01440764/1-000000", b"d"),
        ("n01440764/own", b"e"), ("n02102040/image", b"c"),
    ]  # fmt: skip
    some = find_parquet(tmp_path / "hub", replace(wanted, only=CLASSES[1:2]))
    assert some.keys == ["n02102040/image"]


def test_given_class_names_prevail_and_those_without_a_row_are_told(tmp_path, wanted):
    path = write_parquet(tmp_path / "x.parquet", [(b"a", "a.png", 1)])
    source = find_parquet(path, wanted)
    assert (source.classes, source.sample(0).name) == (("n02102040",), "x.parquet:0")
    assert source.skipped == (f"2 of 3 class names, which no row of {path} has",)
    assert find_parquet(path, replace(wanted, only=("n02102040",))).skipped == ()
    assert find_parquet(path, replace(wanted, class_names=("cat", "dog"))).keys == ["dog/a"]


def test_a_killed_spool_continues_with_what_is_missing(tmp_path, hub, wanted):
    second = hub / "train-00001-of-00002.parquet"
    whole, times = second.read_bytes(), second.stat().st_mtime_ns
    clean = find_parquet(hub, replace(wanted, spool=tmp_path / "clean"))
    damage(second)
    with pytest.raises(DataError, match=r"train-00001-of-00002.parquet is damaged"):
        find_parquet(hub, wanted)
    kept = written(tmp_path / "spool")
    assert sorted(kept) == ["train-00000-of-00002.images", "train-00000-of-00002.rows.parquet"]
    second.write_bytes(whole)
    os.utime(second, ns=(times, times))
    resumed = find_parquet(hub, wanted)
    assert kept.items() <= written(tmp_path / "spool").items()
    assert contents(resumed) == contents(clean)
    assert resumed.state_sha256() == clean.state_sha256()


def damage(path: Path) -> None:
    """Spoil the pages of the images in the middle; footer, labels and sizes stay."""
    chunk = pq.read_metadata(path).row_group(0).column(0)
    data = bytearray(path.read_bytes())
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    data[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(data)


@pytest.mark.parametrize(
    "what", ["images cut", "images gone", "table gone", "table damaged", "table without hashes"]
)
def test_what_a_kill_left_is_spooled_again(tmp_path, wanted, what):
    hub = write_split(tmp_path / "hub", 1)
    expected = contents(find_parquet(hub, wanted))
    images, table = sorted((tmp_path / "spool").iterdir())
    match what:
        case "images cut":
            os.truncate(images, images.stat().st_size - 1)
        case "table without hashes":
            pq.write_table(pq.read_table(table).drop_columns(["hash"]), table)
        case "table damaged":
            table.write_bytes(table.read_bytes()[:-9])
        case _:
            (images if what == "images gone" else table).unlink()
    (tmp_path / "spool" / f".{images.name}.partial").write_bytes(b"half")
    assert contents(find_parquet(hub, wanted)) == expected
    before = written(tmp_path / "spool")
    assert len(before) == 2
    assert contents(find_parquet(hub, wanted)) == expected
    assert written(tmp_path / "spool") == before


def test_spooled_images_are_on_the_disk_before_the_table_that_commits_them(tmp_path, wanted, disk):
    find_parquet(write_parquet(tmp_path / "x.parquet", ROWS), wanted)
    images = (tmp_path / "spool/x.images").read_bytes()
    assert disk.naming("x.rows.parquet").beside["x.images"] == images


def test_a_changed_file_is_spooled_anew_and_changes_the_state(tmp_path, wanted):
    hub = write_split(tmp_path / "hub", 2)
    before, inodes = find_parquet(hub, wanted).state_sha256(), written(tmp_path / "spool")
    changed = [(data.upper(), path, label) for data, path, label in ROWS[1::2] if data is not None]
    write_parquet(hub / "train-00001-of-00002.parquet", changed)
    second = hub / "train-00001-of-00002.parquet"
    with pytest.raises(UsageError, match="changed while it was read; pack again"):
        find_parquet(hub, replace(wanted, on_spooled=lambda *_: os.utime(second, (1, 1))))
    source = find_parquet(hub, wanted)
    again = {name for name, inode in written(tmp_path / "spool").items() if inodes[name] != inode}
    assert again == {"train-00001-of-00002.images", "train-00001-of-00002.rows.parquet"}
    assert source.state_sha256() != before
    assert {data for _, _, _, data in contents(source)} >= {data for data, _, _ in changed}


def test_another_choice_of_classes_is_spooled_anew(tmp_path, wanted):
    write_parquet(tmp_path / "hub/0.parquet", ROWS[:7])
    write_parquet(tmp_path / "hub/1.parquet", ROWS[7:])
    some = replace(wanted, only=CLASSES[1:2])
    images = [row[0] or b"" for row in ROWS]
    assert [row[3] for row in contents(find_parquet(tmp_path / "hub", some))] == images[7:14]
    size = sum(path.stat().st_size for path in (tmp_path / "spool").glob("*.images"))
    assert size == len(b"".join(images[7:14]))
    before = written(tmp_path / "spool")  # also the file without such a row
    find_parquet(tmp_path / "hub", some)
    assert written(tmp_path / "spool") == before
    assert [row[3] for row in contents(find_parquet(tmp_path / "hub", wanted))] == images


def test_spoolers_are_kept_apart_and_readers_are_not(tmp_path, hub, wanted):
    (tmp_path / "spool").mkdir()
    other = os.open(tmp_path / "spool", os.O_RDONLY)
    try:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(LockedError, match="being filled by another process"):
            find_parquet(hub, wanted)
        fcntl.flock(other, fcntl.LOCK_UN)
        first = contents(find_parquet(hub, wanted))
        fcntl.flock(other, fcntl.LOCK_EX)
        assert contents(find_parquet(hub, wanted)) == first
    finally:
        os.close(other)


def needed_bytes(hub: Path, wanted: SourceOptions) -> int:
    with pytest.raises(MachineError) as caught:
        find_parquet(hub, wanted)
    match = re.search(r"needs ([\d,]+) bytes in .*, [\d,]+ are free; ", str(caught.value))
    assert match is not None
    return int(match[1].replace(",", ""))


def test_too_little_space_is_told_before_anything_is_written(tmp_path, wanted, monkeypatch):
    hub, free = write_split(tmp_path / "hub", 2), 100
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=free))
    spool_bytes = needed_bytes(hub, replace(wanted, room_to_pack=False))
    both_bytes = needed_bytes(hub, wanted)
    image_bytes = sum(len(row[0] or b"") for row in ROWS)
    assert image_bytes <= spool_bytes < 2 * image_bytes
    assert both_bytes > 2 * spool_bytes
    free = both_bytes - 1
    assert needed_bytes(hub, wanted) == both_bytes
    assert written(tmp_path / "spool") == {}
    free = both_bytes
    assert len(find_parquet(hub, wanted)) == len(ROWS)
    free = 0  # there is nothing to decompress
    assert len(find_parquet(hub, wanted)) == len(ROWS)
    (tmp_path / "spool/train-00001-of-00002.images").unlink()
    free = 100
    assert spool_bytes < needed_bytes(hub, wanted) < both_bytes


def test_decompression_is_told_from_nothing_to_all(tmp_path, wanted):
    # One image many times: the file holds it once, so that all of it is more than was estimated.
    rows: list[Row] = [(b"0123456789" * 99, f"{at}.png", at % 3) for at in range(40)]
    for number in range(3):
        write_parquet(tmp_path / f"hub/{number}.parquet", rows, rows_per_group=20)
    told: list[tuple[int, int]] = []
    telling = replace(wanted, repeats="first", on_spooled=lambda *at: told.append(at))
    find_parquet(tmp_path / "hub", telling)
    done, (total,) = [done for done, _ in told], {total for _, total in told}
    assert done == sorted(done)
    assert (done[0], done[-1], len(set(done)) > 6) == (0, total, True)
    told.clear()
    find_parquet(tmp_path / "hub", telling)
    assert told == []
    (tmp_path / "spool/1.images").unlink()
    find_parquet(tmp_path / "hub", telling)
    assert (told[0], told[-1]) == ((0, total // 3), (total // 3, total // 3))


def test_a_full_disk_leaves_nothing_half_written(tmp_path, hub, wanted, monkeypatch):
    full_disk = Path("/dev/full")  # what is written to this device fails
    monkeypatch.setattr("coreset.shards.sources.staging.replacing", lambda _: full_disk.open("wb"))
    with pytest.raises(MachineError, match=r"No space left on device; about [\d,]+ bytes are need"):
        find_parquet(hub, wanted)
    assert written(tmp_path / "spool") == {}


def refusal(src: Path, wanted: SourceOptions) -> str:
    with pytest.raises((UsageError, DataError)) as caught:
        find_parquet(src, wanted)
    assert "\n" not in str(caught.value)
    return f"{type(caught.value).__name__}: {caught.value}"


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (("train-00000-of-00001", "validation-00000-of-00001"), "train, validation"),
        (("train", "test"), "test, train"),
        (("a-train-1", "a-val-1"), "train, validation"),
    ],
)
def test_mixed_splits_are_refused_by_name(tmp_path, wanted, names, splits):
    paths = [write_parquet(tmp_path / f"hub/data/{name}.parquet", ROWS) for name in names]
    assert f"holds the splits {splits}; move or link" in refusal(tmp_path / "hub", wanted)
    assert len(find_parquet(paths[0], wanted)) == len(ROWS)


@pytest.mark.parametrize(
    ("label", "names", "message"),
    [
        (None, CLASSES, "DataError: .*x.parquet row 1 has no label"),
        (3, CLASSES, r"DataError: .*x.parquet row 1 has label 3, not in \[0, 3\)"),
        (1, None, "UsageError: .*integer labels without names; .* --class-names"),
        (1, ("a/b", "cat"), "UsageError: class 'a/b' .*--class-names"),
        (1, ("crane", "crane"), "UsageError: class crane .* stands for two labels"),
    ],
)  # fmt: skip
def test_a_label_without_a_class_is_refused(tmp_path, wanted, label, names, message):
    rows = [(b"a", "a.png", 0), (b"b", "b.png", label)]
    path = write_parquet(tmp_path / "x.parquet", rows, names=names)
    found = refusal(path, wanted)
    assert re.search(message, found)
    assert not (tmp_path / "spool").exists()


def test_missing_columns_are_named(tmp_path, wanted):
    path = write_parquet(tmp_path / "x.parquet", ROWS, column="y")
    assert "has no label column (label, labels, fine_label, class, " in refusal(path, wanted)
    assert "), only image, y; rename" in refusal(path, wanted)
    pq.write_table(pa.table({"a": [b"x"], "b": [b"y"], "label": ["cat"]}), path)
    assert "has 2 columns of image bytes, none of them called image or img" in refusal(path, wanted)
    pq.write_table(pa.table({"image": [b"x"], "label": [1.5]}), path)
    assert "column label of" in refusal(path, wanted)


def test_a_missing_empty_or_damaged_file_is_refused(tmp_path, hub, wanted):
    (hub / "train-00000-of-00002.parquet").unlink()
    assert "lacks train-00000-of-00002.parquet (1 of 2 files are missing)" in refusal(hub, wanted)
    path = tmp_path / "x.parquet"
    assert f"{path} cannot be read (No such file or directory); mend" in refusal(path, wanted)
    assert "holds no samples" in refusal(write_parquet(path, []), wanted)
    for damaged in (b"", b"PAR1", b"no parquet at all"):
        path.write_bytes(damaged)
        assert f"DataError: {path} is damaged or not a parquet file" in refusal(path, wanted)


def test_parquet_images_are_told_from_other_places(tmp_path):
    assert is_parquet(write_split(tmp_path / "hub/data", 2))
    assert is_parquet(tmp_path / "hub")
    assert is_parquet(tmp_path / "hub/data/train-00000-of-00002.parquet")
    pq.write_table(pa.table({"path": ["a"], "label": ["b"]}), tmp_path / "list.parquet")
    for name in ("spool", "gone.parquet", "list.parquet"):
        assert not is_parquet(tmp_path / name), name
