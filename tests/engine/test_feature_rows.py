"""Rows of features: the same from memory and from a file, against plain NumPy in float64."""

import shutil
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from coreset.engine.artifacts.store import RowWriter, feature_chunk_rows
from coreset.engine.artifacts.writer import output_digest
from coreset.engine.models.feature_rows import (
    FEATURE_ROWS_NAME,
    RESIDENT_BYTES,
    SPARE_BYTES,
    Mapped,
    Moments,
    Resident,
    feature_rows,
    resident_limit,
)
from coreset.shards.errors import MachineError, StoreError, UsageError
from coreset.shards.format.files import temporary_name

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
N, WIDTH = 2500, 12  # more rows than one block of the moments has
KINDS = pytest.mark.parametrize("limit_bytes", [1 << 30, 0], ids=["resident", "mapped"])


def table_of(n=N, width=WIDTH, seed=0):
    """Columns whose centre may be a thousand times their spread, and two constant ones."""
    rng = np.random.default_rng(seed)
    spread, centre = rng.uniform(0.1, 20, width), rng.uniform(-100, 100, width)
    table = (rng.normal(size=(n, width)) * spread + centre).astype(np.float16)
    table[:, 1], table[:, 2] = -37.3, 0
    return table


def standardised(table):
    """Slow reference: all of it at once, in float64."""
    columns = table.astype(np.float64)
    spread = columns.std(axis=0, ddof=1)
    return (columns - columns.mean(axis=0)) / np.where(spread > 1e-6, spread, 1)


def store_of(path, table):
    writer = RowWriter(path, len(table), table.shape[1], {"content": "c"})
    step = feature_chunk_rows(table.shape[1])
    for first in range(0, len(table), step):
        writer.write(first, table[first : first + step])
    return path


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of 700 rows of ``WIDTH``: four in a store of ``N``, the last of them short."""
    monkeypatch.setattr("coreset.engine.artifacts.store.FEATURE_CHUNK_BYTES", 700 * WIDTH * 2)


@pytest.fixture
def store(tmp_path, small_chunks):  # noqa: ARG001 - a fixture for its effect
    return store_of(tmp_path / "features.zarr", table_of())


def opened(store, limit_bytes=0):
    return feature_rows(store, CPU, scratch=store.parent, limit_bytes=limit_bytes)


def all_rows(features):
    return features.rows(np.arange(features.n)).numpy().copy()


# the rows


@KINDS
def test_rows_are_standardised_by_column(store, limit_bytes):
    features = opened(store, limit_bytes)
    assert (features.n, features.width) == (N, WIDTH)
    ids = np.random.default_rng(1).integers(0, N, 64)
    rows = features.rows(ids)
    assert (rows.shape, rows.dtype, rows.device) == ((64, WIDTH), torch.float32, CPU)
    np.testing.assert_allclose(rows.numpy(), standardised(table_of())[ids], rtol=1e-4, atol=1e-4)


def test_resident_and_mapped_rows_are_the_same_bit_for_bit(store):
    resident, mapped = opened(store, 1 << 30), opened(store, 0)
    assert (type(resident), type(mapped)) == (Resident, Mapped)
    np.testing.assert_array_equal(all_rows(resident), all_rows(mapped))


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
def test_rows_do_not_depend_on_the_chunks_of_the_store(tmp_path, monkeypatch, limit_bytes):
    found: list[np.ndarray] = []
    for rows in (1000, 64):
        monkeypatch.setattr("coreset.engine.artifacts.store.FEATURE_CHUNK_BYTES", rows * WIDTH * 2)
        store = store_of(tmp_path / str(rows) / "f.zarr", table_of())
        monkeypatch.setattr("coreset.engine.artifacts.store.FEATURE_CHUNK_BYTES", 700 * WIDTH * 2)
        found.append(all_rows(opened(store, limit_bytes)))
    np.testing.assert_array_equal(found[0], found[1])


@settings(max_examples=50)
@given(
    arrays(np.float16, st.tuples(st.integers(2, 40), st.just(3)),
           elements=st.floats(-60000, 60000, width=16)),
    st.lists(st.integers(0, 40), max_size=5),
)  # fmt: skip
def test_moments_by_blocks_are_those_of_all_rows_at_once(table, cuts):
    moments = Moments.none(3)
    for part in np.split(table, sorted(cuts)):
        moments.add(part)
    columns = table.astype(np.float64)
    assert moments.n == len(table)
    np.testing.assert_allclose(moments.mean, columns.mean(axis=0), rtol=1e-9, atol=1e-9)
    deviations = ((columns - columns.mean(axis=0)) ** 2).sum(axis=0)
    np.testing.assert_allclose(moments.squares, deviations, rtol=1e-9, atol=1e-6)


@KINDS
def test_earlier_rows_stay_while_they_are_held(store, limit_bytes):
    features, expected = opened(store, limit_bytes), standardised(table_of())
    held = [(ids, features.rows(ids)) for ids in np.arange(60).reshape(6, 10)]
    for ids, rows in held:
        np.testing.assert_allclose(rows.numpy(), expected[ids], rtol=1e-4, atol=1e-4)


@KINDS
def test_what_a_caller_does_to_its_rows_changes_no_other(store, limit_bytes):
    features, ids = opened(store, limit_bytes), np.array([8, 0, 0, 3])
    rows = features.rows(ids)
    before = rows.clone()
    rows.zero_()
    assert torch.equal(features.rows(ids), before)


@KINDS
@pytest.mark.parametrize("ids", [[-1, 3], [0, N], [N + 5]])
def test_an_id_that_is_no_row_is_an_error_and_not_another_row(store, limit_bytes, ids):
    with pytest.raises(IndexError, match=rf"ids must be in \[0, {N}\), got {ids[0]} to {ids[-1]}"):
        opened(store, limit_bytes).rows(np.array(ids))


@KINDS
def test_no_ids_are_no_rows(store, limit_bytes):
    assert opened(store, limit_bytes).rows(np.empty(0, np.int64)).shape == (0, WIDTH)


@KINDS
@pytest.mark.parametrize("batch", [1000, N, N + 1])
def test_the_pass_in_order_shows_every_row_once(store, limit_bytes, batch):
    features = opened(store, limit_bytes)
    ids, rows = zip(*((ids, rows.clone()) for ids, rows in features.in_order(batch)), strict=True)
    assert np.concatenate(ids).tolist() == list(range(N))
    assert {len(part) for part in ids[:-1]} <= {batch}
    np.testing.assert_array_equal(torch.cat(rows).numpy(), all_rows(features))


@KINDS
def test_batches_of_no_row_are_refused(store, limit_bytes):
    with pytest.raises(UsageError, match="batch"):
        next(opened(store, limit_bytes).in_order(0))


@KINDS
def test_after_close_there_are_no_rows(store, limit_bytes):
    features = opened(store, limit_bytes)
    features.close()
    with pytest.raises(IndexError):
        features.rows(np.array([0]))


# where they are


def test_the_limit_is_the_bytes_of_the_rows_in_float32(store):
    assert isinstance(opened(store, 4 * N * WIDTH), Resident)
    assert isinstance(opened(store, 4 * N * WIDTH - 1), Mapped)


def test_by_default_a_cpu_gives_a_quarter_of_what_is_free_and_a_gib_at_most(monkeypatch, store):
    for free, limit in [(4 * 4 * N * WIDTH, 4 * N * WIDTH), (400 << 30, RESIDENT_BYTES)]:
        monkeypatch.setattr("coreset.engine.data.images.available_bytes", lambda free=free: free)
        assert resident_limit(CPU) == limit
    monkeypatch.setattr("coreset.engine.data.images.available_bytes", lambda: 4 * 4 * N * WIDTH - 4)
    assert isinstance(feature_rows(store, CPU, scratch=store.parent), Mapped)


def test_resident_rows_write_nothing(store):
    opened(store, 1 << 30)
    assert [path.name for path in store.parent.iterdir()] == [store.name]


def test_the_file_holds_the_features_as_they_are_and_nothing_else(store):
    opened(store).close()
    file = store.parent / FEATURE_ROWS_NAME
    np.testing.assert_array_equal(np.fromfile(file, np.float16).reshape(N, WIDTH), table_of())
    assert sorted(path.name for path in store.parent.iterdir()) == [file.name, store.name]


def test_an_artifact_would_take_the_file_so_its_maker_must_remove_it(store):
    before = output_digest(store.parent)
    opened(store).close()
    assert output_digest(store.parent) != before
    (store.parent / FEATURE_ROWS_NAME).unlink()
    assert output_digest(store.parent) == before


def test_a_file_that_is_there_is_not_written_again(store):
    first = all_rows(opened(store))
    file = store.parent / FEATURE_ROWS_NAME
    before = file.stat()
    np.testing.assert_array_equal(all_rows(opened(store)), first)
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def cut(file):
    file.write_bytes(file.read_bytes()[:-1])


def lengthen(file):
    file.write_bytes(file.read_bytes() + b"\0")


def flip(file):
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("damage", [cut, lengthen, flip])
def test_a_file_that_is_short_long_or_of_other_features_is_made_again(store, damage):
    first = all_rows(opened(store))
    damage(store.parent / FEATURE_ROWS_NAME)
    np.testing.assert_array_equal(all_rows(opened(store)), first)


def test_what_a_kill_left_is_replaced(store):
    scratch = temporary_name(store.parent / FEATURE_ROWS_NAME)
    scratch.write_bytes(bytes(10 * N * WIDTH))
    rows = all_rows(opened(store))
    np.testing.assert_allclose(rows, standardised(table_of()), rtol=1e-4, atol=1e-4)
    assert not scratch.exists()


# refusals


@KINDS
@pytest.mark.usefixtures("small_chunks")
def test_a_feature_that_is_not_finite_is_refused_by_its_row(tmp_path, limit_bytes):
    table = table_of()
    table[1500, 4] = np.nan
    store = store_of(tmp_path / "f.zarr", table)
    with pytest.raises(StoreError, match=r"sample 1500 are not finite; remove it and make it"):
        opened(store, limit_bytes)
    assert [path.name for path in tmp_path.iterdir()] == [store.name]


@KINDS
def test_a_store_that_is_not_there_is_an_error(tmp_path, limit_bytes):
    with pytest.raises(StoreError, match=r"none\.zarr cannot be read"):
        opened(tmp_path / "none.zarr", limit_bytes)


def test_a_disk_without_room_is_refused_before_anything_is_written(store, monkeypatch):
    needed = 2 * N * WIDTH + SPARE_BYTES
    usage = shutil.disk_usage(store)._replace(free=needed - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(
        MachineError, match=rf"need {needed:,} bytes in .*, {needed - 1:,} are free"
    ):
        opened(store)
    assert [path.name for path in store.parent.iterdir()] == [store.name]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed))
    opened(store)


# memory


class LargestTensor(TorchDispatchMode):
    """Records the bytes of the largest tensor that any torch operation returns."""

    n_bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [one for one in tree_leaves(result) if isinstance(one, torch.Tensor)]
        self.n_bytes = max([self.n_bytes, *(one.numel() * one.element_size() for one in tensors)])
        return result


def visit(store, limit_bytes):
    """Open the features, and show every row twice."""
    features = opened(store, limit_bytes)
    for ids, _ in features.in_order(100):
        features.rows(ids[::-1].copy())
    features.close()


def traced_peak(store, limit_bytes):
    """Bytes that were taken at once outside torch."""
    tracemalloc.start()
    visit(store, limit_bytes)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def largest_tensor(store, limit_bytes):
    with LargestTensor() as largest:
        visit(store, limit_bytes)
    return largest.n_bytes


def test_mapped_rows_never_take_the_memory_of_all_rows(tmp_path, monkeypatch):
    n, width, step = 40_000, 64, 500
    monkeypatch.setattr("coreset.engine.artifacts.store.FEATURE_CHUNK_BYTES", step * width * 2)
    table = np.random.default_rng(0).normal(size=(n, width)).astype(np.float16)
    store = store_of(tmp_path / "f.zarr", table)
    assert largest_tensor(store, 1 << 30) == 4 * n * width, "of resident rows all are seen"
    assert largest_tensor(store, 0) == 4 * 100 * width
    for made_before in (True, False):
        if not made_before:
            (tmp_path / FEATURE_ROWS_NAME).unlink()
        assert traced_peak(store, 0) < table.nbytes / 4
