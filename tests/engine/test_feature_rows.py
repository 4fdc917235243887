"""Rows of features: the same from memory and from a file, against plain NumPy in float64."""

import shutil
import tracemalloc

import numpy as np
import pytest
import torch

from coreset.engine.artifacts.store import RowWriter, feature_chunk_rows
from coreset.engine.models.feature_rows import (
    FEATURE_ROWS_NAME,
    RESIDENT_BYTES,
    SPARE_BYTES,
    StandardRows,
    feature_rows,
    feature_table,
    resident_limit,
)
from coreset.shards.errors import MachineError, StoreError

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
N, WIDTH = 2500, 12  # more rows than one block of the moments has
RESIDENT, MAPPED = 1 << 30, 0
AVAILABLE = "coreset.engine.data.residency.available_bytes"
KINDS = pytest.mark.parametrize("limit_bytes", [RESIDENT, MAPPED], ids=["resident", "mapped"])
DTYPES = pytest.mark.parametrize("dtype", [np.float16, np.float32])
CHUNK_BYTES = "coreset.engine.artifacts.store.FEATURE_CHUNK_BYTES"


def table_of(n=N, width=WIDTH, seed=0, dtype=np.float16):
    """Columns whose centre may be a thousand times their spread, and two constant ones."""
    rng = np.random.default_rng(seed)
    spread, centre = rng.uniform(0.1, 20, width), rng.uniform(-100, 100, width)
    table = (rng.normal(size=(n, width)) * spread + centre).astype(dtype)
    table[:, 1], table[:, 2] = -37.3, 0
    return table


def standardised(table):
    """Slow reference: all of it at once, in float64."""
    columns = table.astype(np.float64)
    spread = columns.std(axis=0, ddof=1)
    return (columns - columns.mean(axis=0)) / np.where(spread > 1e-6, spread, 1)


def store_of(path, table):
    writer = RowWriter(path, len(table), table.shape[1], {"content": "c"}, dtype=table.dtype)
    step = feature_chunk_rows(table.shape[1])
    for first in range(0, len(table), step):
        writer.write(first, table[first : first + step])
    return path


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    """Chunks of 700 rows of ``WIDTH``: four in a store of ``N``, the last of them short."""
    monkeypatch.setattr(CHUNK_BYTES, 700 * WIDTH * 2)


@pytest.fixture
def store(tmp_path):
    return store_of(tmp_path / "features.zarr", table_of())


def opened(store, limit_bytes=MAPPED, *, write=True):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("coreset.engine.models.feature_rows.resident_limit", lambda _: limit_bytes)
        return feature_rows(StandardRows, store, CPU, scratch=store.parent, write=write)


def all_rows(features):
    return features.rows(np.arange(features.n)).numpy().copy()


@KINDS
@DTYPES
def test_rows_are_standardised_by_column_and_belong_to_their_caller(tmp_path, limit_bytes, dtype):
    table = table_of(dtype=dtype)
    features = opened(store_of(tmp_path / "f.zarr", table), limit_bytes)
    expected = standardised(table)
    assert (features.n, features.width) == (N, WIDTH)
    draws = np.random.default_rng(1).integers(0, N, (6, 64))
    held = [(ids, features.rows(ids)) for ids in draws]
    for ids, rows in held:  # no later batch overwrites them
        assert (rows.shape, rows.dtype, rows.device) == ((64, WIDTH), torch.float32, CPU)
        np.testing.assert_allclose(rows.numpy(), expected[ids], rtol=1e-4, atol=1e-4)
        rows.zero_()
    np.testing.assert_allclose(all_rows(features), expected, rtol=1e-4, atol=1e-4)
    assert features.rows(np.empty(0, np.int64)).shape == (0, WIDTH)


@DTYPES
def test_resident_and_mapped_rows_are_the_same_whatever_the_chunks_of_the_store(
    tmp_path, monkeypatch, dtype
):
    store = store_of(tmp_path / "f.zarr", table_of(dtype=dtype))
    resident, mapped = all_rows(opened(store, RESIDENT)), all_rows(opened(store))
    np.testing.assert_array_equal(resident, mapped)
    monkeypatch.setattr(CHUNK_BYTES, 64 * WIDTH * 2)
    other_chunks = store_of(tmp_path / "64" / "f.zarr", table_of(dtype=dtype))
    monkeypatch.setattr(CHUNK_BYTES, 700 * WIDTH * 2)
    np.testing.assert_array_equal(all_rows(opened(other_chunks, RESIDENT)), mapped)
    np.testing.assert_array_equal(all_rows(opened(other_chunks)), mapped)


@KINDS
@pytest.mark.parametrize("value", [0.0, 1000.0, -37.3, 65504.0])
def test_a_constant_column_is_exactly_zero(tmp_path, limit_bytes, value):
    table = table_of(131_071, width=3)  # so many that a mean in float32 would be 4e-6 beside it
    table[:, 1] = value
    rows = all_rows(opened(store_of(tmp_path / "f.zarr", table), limit_bytes))
    assert not rows[:, 1].any()
    assert rows[:, 0].std() == pytest.approx(1, abs=1e-4)


@KINDS
@pytest.mark.parametrize("n", [1, 2])
def test_one_row_says_nothing_and_two_are_opposite(tmp_path, limit_bytes, n):
    table = np.array([[1, 5], [3, 5]], np.float16)[:n]
    rows = all_rows(opened(store_of(tmp_path / "f.zarr", table), limit_bytes))
    half = np.sqrt(0.5)
    np.testing.assert_allclose(rows, [[0, 0]] if n == 1 else [[-half, 0], [half, 0]], rtol=1e-6)


@KINDS
@pytest.mark.parametrize("ids", [[-1, 3], [0, N], [N + 5]])
def test_an_id_that_is_no_row_is_an_error_and_not_another_row(store, limit_bytes, ids):
    with pytest.raises(IndexError, match=rf"ids must be in \[0, {N}\), got {ids[0]} to {ids[-1]}"):
        opened(store, limit_bytes).rows(np.array(ids))


# the file


def test_features_are_mapped_where_they_take_more_than_their_share_as_float32(store, monkeypatch):
    file = store.parent / FEATURE_ROWS_NAME
    opened(store, 4 * N * WIDTH)
    assert not file.exists()
    for free, limit in [(4 * 4 * N * WIDTH, 4 * N * WIDTH), (400 << 30, RESIDENT_BYTES)]:
        monkeypatch.setattr(AVAILABLE, lambda free=free: free)
        assert resident_limit(CPU) == limit
    monkeypatch.setattr(AVAILABLE, lambda: 4 * 4 * N * WIDTH - 4)
    feature_rows(StandardRows, store, CPU, scratch=store.parent)
    np.testing.assert_array_equal(np.fromfile(file, np.float16).reshape(N, WIDTH), table_of())
    assert sorted(path.name for path in store.parent.iterdir()) == [file.name, store.name]


def test_one_process_replaces_what_a_kill_left_and_the_others_open_its_file(store):
    file = store.parent / FEATURE_ROWS_NAME
    file.symlink_to(store)  # not followed
    expected, written = all_rows(opened(store)), file.lstat()
    np.testing.assert_array_equal(all_rows(opened(store, RESIDENT, write=False)), expected)
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (written.st_ino, written.st_mtime_ns)
    file.write_bytes(bytes(2 * N * WIDTH - 7))
    np.testing.assert_array_equal(all_rows(opened(store)), expected)
    opened(store, RESIDENT)
    assert not file.exists()
    np.testing.assert_array_equal(all_rows(opened(store, MAPPED, write=False)), expected)
    assert not file.exists()


@KINDS
def test_a_store_that_is_absent_or_not_finite_is_refused(tmp_path, limit_bytes):
    with pytest.raises(StoreError, match=r"none\.zarr cannot be read"):
        opened(tmp_path / "none.zarr", limit_bytes)
    table = table_of()
    table[1500, 4] = np.nan
    store = store_of(tmp_path / "f.zarr", table)
    with pytest.raises(StoreError, match=r"sample 1500 are not finite; remove it and make it"):
        opened(store, limit_bytes)


@DTYPES
def test_a_disk_without_room_is_refused_before_anything_is_written(tmp_path, monkeypatch, dtype):
    store = store_of(tmp_path / "f.zarr", table_of(dtype=dtype))
    needed = np.dtype(dtype).itemsize * N * WIDTH + SPARE_BYTES
    usage = shutil.disk_usage(store)._replace(free=needed - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(MachineError, match=rf"need {needed:,} bytes in .*, {needed - 1:,} are fr"):
        opened(store)
    assert [path.name for path in store.parent.iterdir()] == [store.name]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed))
    opened(store)


@DTYPES
def test_a_table_is_mapped_where_it_takes_more_than_its_share(tmp_path, monkeypatch, dtype):
    table = table_of(dtype=dtype)
    store = store_of(tmp_path / "f.zarr", table)
    for limit, is_mapped in [(table.nbytes, False), (table.nbytes - 1, True)]:
        monkeypatch.setattr("coreset.engine.models.feature_rows.RESIDENT_BYTES", limit)
        opened_table = feature_table(store, tmp_path)
        assert opened_table.dtype == dtype
        np.testing.assert_array_equal(opened_table, table)
        assert opened_table.flags.writeable != is_mapped
        assert [path.name for path in tmp_path.iterdir()] == [store.name]


def traced_peak(store, limit_bytes, **options):
    """Bytes that NumPy took at once to open the features and to show every row."""
    tracemalloc.start()
    features = opened(store, limit_bytes, **options)
    for ids in np.arange(features.n).reshape(-1, 100):
        features.rows(ids)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_mapped_rows_never_take_the_memory_of_all_rows(tmp_path, monkeypatch):
    n, width, step = 40_000, 64, 500
    monkeypatch.setattr(CHUNK_BYTES, step * width * 2)
    table = np.random.default_rng(0).normal(size=(n, width)).astype(np.float16)
    store = store_of(tmp_path / "f.zarr", table)
    assert traced_peak(store, RESIDENT) > 4 * n * width, "of resident rows all are seen"
    for write in (True, False):
        assert traced_peak(store, MAPPED, write=write) < table.nbytes / 4
