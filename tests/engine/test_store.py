"""Zarr stores: what was written comes back, and what was lost or damaged is never a number."""

import json

import numpy as np
import pytest

from coreset.engine.artifacts.store import (
    FEATURE_CHUNK_BYTES,
    Columns,
    RowWriter,
    feature_chunk_rows,
    feature_chunks,
    feature_layout,
    read_feature_rows,
    read_features,
    write_columns,
)
from coreset.shards.errors import StoreError

pytestmark = pytest.mark.filterwarnings("ignore:Object at:UserWarning")  # zarr, of damaged files

N_ROWS, WIDTH = 50, 6


@pytest.fixture
def columns():
    rng = np.random.default_rng(0)
    aum = rng.normal(size=300).astype(np.float32)
    return {"visits": np.full(300, 7, np.int64), "aum": aum, "el2n": -aum.astype(np.float64)}


@pytest.fixture
def scores(tmp_path, columns):
    write_columns(tmp_path / "scores.zarr", columns, {"epochs": 7})
    return tmp_path / "scores.zarr"


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of 16 rows: an array of 50 has four, the last of them short."""
    monkeypatch.setattr("coreset.engine.artifacts.store.FEATURE_CHUNK_BYTES", 16 * WIDTH * 2)


@pytest.fixture
def matrix():
    return np.random.default_rng(1).normal(size=(N_ROWS, WIDTH)).astype(np.float16)


def write_features(path, matrix, chunks=(0, 1, 2, 3)):
    rows = RowWriter(path, N_ROWS, WIDTH, {"content": "c"})
    for chunk in chunks:
        rows.write(16 * chunk, matrix[16 * chunk : 16 * chunk + 16])
    return path


def flip(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 0x10
    path.write_bytes(data)


def list_chunks(path):
    return list(feature_chunks(path))


# columns


def test_columns_come_back_with_their_types_when_they_are_asked_for(scores, columns):
    read = Columns(scores)
    assert list(read) == ["aum", "el2n", "visits"]
    for name, values in columns.items():
        assert read[name].dtype == values.dtype
        np.testing.assert_array_equal(read[name], values)
    assert "concept_aum" not in read
    with pytest.raises(KeyError, match="concept_aum"):
        read["concept_aum"]
    (scores / "visits/c/0").write_text("damaged")
    np.testing.assert_array_equal(Columns(scores)["aum"], columns["aum"])


def test_a_lost_chunk_is_nan_and_never_a_score(tmp_path, monkeypatch, columns):
    monkeypatch.setattr("coreset.engine.artifacts.store.ROWS_PER_SCORE_CHUNK", 100)
    columns["aum"][:100] = np.nan  # left out as empty, these chunks would look like lost ones
    columns["visits"][:] = 0
    write_columns(tmp_path / "s.zarr", columns, {})
    for name in ("aum/c/0", "visits/c/0", "visits/c/2"):
        assert (tmp_path / "s.zarr" / name).is_file()
    (tmp_path / "s.zarr/aum/c/1").unlink()
    aum = Columns(tmp_path / "s.zarr")["aum"]
    assert np.isnan(aum[:200]).all()
    np.testing.assert_array_equal(aum[200:], columns["aum"][200:])


def test_a_flipped_bit_anywhere_in_a_chunk_is_found(scores):
    chunk = scores / "aum/c/0"
    size = chunk.stat().st_size
    for position in [*range(0, size, 97), *range(size - 5, size)]:
        flip(chunk, position)
        with pytest.raises(StoreError, match=r"scores\.zarr .*make it again"):
            Columns(scores)["aum"]
        flip(chunk, position)
    Columns(scores)["aum"]
    chunk.write_bytes(chunk.read_bytes()[:100])
    with pytest.raises(StoreError, match="make it again"):
        Columns(scores)["aum"]


def test_damaged_metadata_never_end_in_another_error(scores):
    # No codec protects zarr.json; some flips (in an attribute, a level) change nothing that is
    # read, and one in the shape gives fewer rows, which readers compare with the data set.
    metadata = scores / "aum/zarr.json"
    refused = 0
    for position in range(0, metadata.stat().st_size, 5):
        flip(metadata, position)
        try:
            Columns(scores)["aum"]
        except (StoreError, KeyError):
            refused += 1
        flip(metadata, position)
    assert refused > 100


@pytest.mark.parametrize("read", [Columns, read_features, feature_layout, list_chunks])
def test_a_store_without_its_metadata_is_an_error(scores, read):
    (scores / "zarr.json").write_bytes(b"[]")
    with pytest.raises(StoreError, match=r"scores\.zarr cannot be read"):
        read(scores)
    with pytest.raises(StoreError, match=r"none\.zarr cannot be read"):
        read(scores.with_name("none.zarr"))


# metadata forged on purpose


def forge(path, **changes):
    document = json.loads(path.read_bytes()) | changes
    path.write_text(json.dumps(document))


def grid(*sides):
    return {"name": "regular", "configuration": {"chunk_shape": list(sides)}}


def test_columns_of_another_length_than_that_of_the_data_set_are_not_read(scores):
    assert set(Columns(scores, rows=300)) == {"aum", "el2n", "visits"}
    with pytest.raises(StoreError, match="aum has 300 rows for 299 images"):
        Columns(scores, rows=299)["aum"]
    forge(scores / "el2n/zarr.json", shape=[10**12])
    with pytest.raises(StoreError, match="el2n has 1000000000000 rows for 300 images"):
        Columns(scores, rows=300)["el2n"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chunk_grid": grid(10**12, WIDTH)}, "has chunks of"),
        ({"chunk_grid": grid(N_ROWS, 10**12)}, "has chunks of"),
        ({"shape": [N_ROWS, 10**9], "chunk_grid": grid(N_ROWS, 10**9)}, "1000000000 columns"),
        ({"shape": [N_ROWS, 0]}, "0 columns|cannot be read"),
        ({"shape": [N_ROWS], "chunk_grid": grid(N_ROWS)}, r"shape \(50,\)"),
        ({"data_type": "string"}, "make it again"),
        ({"data_type": "float64"}, "holds float64 of shape"),
        ({"data_type": "int16"}, "holds int16 of shape|cannot be read"),
    ],
)
def test_forged_features_are_refused_before_they_take_memory(tmp_path, matrix, changes, message):
    path = tmp_path / "f.zarr"
    RowWriter(path, N_ROWS, WIDTH, {}).write(0, matrix)
    forge(path / "features/zarr.json", **changes)
    for read in (read_features, list_chunks):
        with pytest.raises(StoreError, match=message):
            read(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": [-1]},
        {"shape": [300, 1], "chunk_grid": grid(300, 1)},
        {"chunk_grid": grid(10**12)},
        {"chunk_grid": grid(0)},
        {"data_type": "string"},
        {"codecs": [{"name": "run"}]},
    ],
)
def test_forged_columns_are_refused(scores, changes):
    forge(scores / "aum/zarr.json", **changes)
    with pytest.raises(StoreError, match="again"):
        Columns(scores, rows=300)["aum"]


# features


def test_a_chunk_of_features_is_16_mib_at_most_and_one_row_at_least():
    assert feature_chunk_rows(512) * 512 * 2 == FEATURE_CHUNK_BYTES == 16 * 2**20
    assert feature_chunk_rows(2 * FEATURE_CHUNK_BYTES) == 1


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("rows", [1, 16, 17, 1000])
def test_features_come_back_in_chunks_of_today_whatever_the_store_has(
    tmp_path, matrix, monkeypatch, rows
):
    path = write_features(tmp_path / "f.zarr", matrix)
    assert len(list((path / "features/c").glob("*/0"))) == 4
    monkeypatch.setattr("coreset.engine.artifacts.store.FEATURE_CHUNK_BYTES", rows * WIDTH * 2)
    chunks, whole = list_chunks(path), read_features(path)
    assert feature_layout(path) == (N_ROWS, WIDTH, np.float16)
    assert {len(chunk) for chunk in chunks[:-1]} <= {rows}
    assert {chunk.dtype for chunk in [whole, *chunks]} == {np.dtype(np.float16)}
    np.testing.assert_array_equal(np.concatenate(chunks), matrix)
    np.testing.assert_array_equal(whole, matrix)


def test_a_store_of_another_shape_is_not_continued(tmp_path):
    path = tmp_path / "f.zarr"
    RowWriter(path, N_ROWS, WIDTH, {})
    with pytest.raises(StoreError, match=r"shape \(50, 6\), needed are \(50, 7\)"):
        RowWriter(path, N_ROWS, WIDTH + 1, {}, resume=True)
    with pytest.raises(StoreError, match="cannot be read"):
        RowWriter(tmp_path / "none.zarr", N_ROWS, WIDTH, {}, resume=True)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("damage", ["never written", "infinite", "flipped"])
def test_lost_and_damaged_rows_are_refused_when_they_are_reached(tmp_path, matrix, damage):
    if damage == "infinite":
        matrix[32, 3] = np.inf
    written = (0, 1, 3) if damage == "never written" else (0, 1, 2, 3)
    path = write_features(tmp_path / "f.zarr", matrix, chunks=written)
    if damage == "flipped":
        flip(path / "features/c/2/0", 20)
    message = "make it again" if damage == "flipped" else "sample 32 are not finite; remove it"
    with pytest.raises(StoreError, match=message):
        read_features(path)
    chunks = feature_chunks(path)
    for first in (0, 16):
        np.testing.assert_array_equal(next(chunks), matrix[first : first + 16])
    with pytest.raises(StoreError, match=message):
        next(chunks)
    with pytest.raises(StoreError, match=message):
        read_feature_rows(path, np.array([49, 32, 3]))
    ids = np.array([49, 3, 15, 3])  # of the chunks that hold them alone
    np.testing.assert_array_equal(read_feature_rows(path, ids), matrix[ids])


def test_rows_that_a_store_does_not_have_are_refused(tmp_path, matrix):
    path = write_features(tmp_path / "f.zarr", matrix)
    with pytest.raises(StoreError, match="cannot be read"):
        read_feature_rows(path, np.array([0, N_ROWS]))
