"""Zarr stores of scores and features: the only module that imports zarr.

``crc32c`` after the compressor finds a flipped bit. The fill value is NaN, and all chunks are
written, so that a lost chunk reads as NaN and never as a score.
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from coreset.shards.errors import StoreError
from coreset.shards.format.files import remove_tree

SCORES_NAME = "scores.zarr"
FEATURES_NAME = "features.zarr"
ROWS_PER_SCORE_CHUNK = 131_072  # 1.28 M x 10 float32 commit in 0.2 s; 4,096-row chunks take 1.4 s
FEATURE_CHUNK_BYTES = 16 << 20
MOST_FEATURES = 1 << 16  # several times the widest backbone

Features: TypeAlias = NDArray[np.float16 | np.float32]
"""Features of shape (n, d), of the dtype of their store."""
_FEATURE_DTYPES = np.dtype(np.float16), np.dtype(np.float32)


def write_columns(
    path: Path, columns: Mapping[str, NDArray[Any]], attributes: Mapping[str, Any]
) -> None:
    """Write a new group of one-dimensional arrays of equal length, one row per sample id."""
    import zarr

    group = zarr.create_group(path, zarr_format=3, attributes=dict(attributes))
    for name, values in sorted(columns.items()):
        chunks = (min(ROWS_PER_SCORE_CHUNK, max(1, len(values))),)
        _new_array(group, name, values.shape, values.dtype, chunks)[:] = values


def _new_array(group: Any, name: str, shape: Any, dtype: np.dtype[Any], chunks: Any) -> Any:  # noqa: ANN401 - zarr.Group, zarr.Array
    from zarr.codecs import Crc32cCodec, ZstdCodec

    return group.create_array(
        name,
        shape=shape,
        dtype=dtype,
        chunks=chunks,
        compressors=(ZstdCodec(level=1), Crc32cCodec()),
        fill_value=np.nan if dtype.kind == "f" else 0,
        config={"write_empty_chunks": True},
    )


class Columns(Mapping[str, NDArray[Any]]):
    """Columns of a store by name, each of shape (n,) and read when it is first asked for."""

    def __init__(self, path: Path, *, rows: int | None = None) -> None:
        """Open the store ``path``, whose columns must have ``rows`` rows if that is given."""
        self._path, self._rows = path, rows
        with _opened(path) as group:
            names = sorted(group.array_keys())
        self._columns: dict[str, NDArray[Any] | None] = dict.fromkeys(names)

    def __getitem__(self, name: str) -> NDArray[Any]:
        column = self._columns[name]
        if column is None:
            with _opened(self._path) as group:
                array = _checked(self._path, group[name], dimensions=1)
                if self._rows not in {None, array.shape[0]}:
                    raise StoreError(
                        f"{self._path}/{name} has {array.shape[0]} rows for {self._rows} images; "
                        "remove it, score again"
                    )
                column = self._columns[name] = np.asarray(array[...])
        return column

    def __contains__(self, name: object) -> bool:
        return name in self._columns

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)


def _checked(path: Path, array: Any, *, dimensions: int) -> Any:  # noqa: ANN401 - zarr.Array
    """Check an array before it is read: its metadata, which no codec protects, may say anything."""
    shape, chunks, fault = array.shape, array.chunks, ""
    known = array.dtype.kind in "biuf" if dimensions == 1 else array.dtype in _FEATURE_DTYPES
    if not known or len(shape) != dimensions:
        fault = f"holds {array.dtype} of shape {shape}"
    elif dimensions == 2 and not 1 <= shape[1] <= MOST_FEATURES:
        fault = f"has {shape[1]} columns"
    elif any(chunk > max(1, side) for chunk, side in zip(chunks, shape, strict=True)):
        fault = f"has chunks of {chunks} for the shape {shape}"  # zarr allocates whole chunks
    if fault:
        raise StoreError(f"{path} {fault}; remove it and make it again")
    return array


class RowWriter:
    """An (n, d) array written in order and resumable at borders of chunks."""

    def __init__(
        self,
        path: Path,
        n_rows: int,
        width: int,
        attributes: Mapping[str, Any],
        *,
        name: str = "features",
        dtype: np.dtype[Any] = _FEATURE_DTYPES[0],
        chunks: tuple[int, int] | None = None,
        resume: bool = False,
    ) -> None:
        import zarr

        if resume:
            for leftover in path.rglob("*.partial"):  # zarr's own, of a kill during a write
                leftover.unlink()
            with _opened(path, mode="r+") as group:
                self._array: Any = group[name]
                if self._array.shape != (n_rows, width):
                    raise StoreError(
                        f"{path} has {name} of shape {self._array.shape}, needed are "
                        f"{(n_rows, width)}; remove it and run again"
                    )
            return
        remove_tree(path)
        group = zarr.create_group(path, zarr_format=3, attributes=dict(attributes))
        chunks = chunks or (min(feature_chunk_rows(width), max(1, n_rows)), width)
        self._array = _new_array(group, name, (n_rows, width), dtype, chunks)

    def write(self, first_row: int, rows: Features) -> None:
        """Write whole chunks (or the rest) from ``first_row``, which starts a chunk."""
        self._array[first_row : first_row + len(rows)] = rows


def feature_chunk_rows(width: int) -> int:
    """Return the rows of one chunk of ``width`` features: about 16 MiB of float16."""
    return max(1, FEATURE_CHUNK_BYTES // (2 * width))


def read_features(path: Path) -> Features:
    """Read all features of a store into memory."""
    with _opened(path) as group:
        features = np.asarray(_checked(path, group["features"], dimensions=2)[...])
    _require_finite(path, features, range(len(features)))
    return features


def read_feature_rows(path: Path, ids: NDArray[np.int64]) -> Features:
    """Read the features of some samples; of the others only those in the same chunks."""
    with _opened(path) as group:
        array = _checked(path, group["features"], dimensions=2)
        features = np.asarray(array.oindex[ids, :])
    _require_finite(path, features, ids)
    return features


def feature_layout(path: Path) -> tuple[int, int, np.dtype[Any]]:
    """Return rows, columns and dtype of a store of features, from its metadata alone."""
    with _opened(path) as group:
        array = _checked(path, group["features"], dimensions=2)
        return *array.shape, array.dtype


def feature_chunks(path: Path) -> Iterator[Features]:
    """Read features in the order of their rows, ``feature_chunk_rows(d)`` at a time."""
    with _opened(path) as group:
        array = _checked(path, group["features"], dimensions=2)
        step = feature_chunk_rows(array.shape[1])
        for first in range(0, array.shape[0], step):
            chunk = np.asarray(array[first : first + step])
            _require_finite(path, chunk, range(first, first + len(chunk)))
            yield chunk


def _require_finite(path: Path, features: Features, ids: Sequence[int] | NDArray[np.int64]) -> None:
    if not np.isfinite(features).all():
        row = ids[int(np.flatnonzero(~np.isfinite(features).all(axis=1))[0])]
        raise StoreError(
            f"{path}: the features of sample {row} are not finite; remove it and make it again"
        )


_DAMAGED = (
    ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError,
)  # fmt: skip


@contextmanager
def _opened(path: Path, mode: Literal["r", "r+"] = "r") -> Generator[Any]:
    """Open the group of a store; any error that zarr raises becomes a ``StoreError``."""
    import zarr

    try:
        yield zarr.open_group(path, mode=mode)
    except _DAMAGED as error:
        # Damaged metadata end in any of these: no codec protects zarr.json.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise StoreError(
            f"{path} cannot be read ({reason}); remove it and make it again"
        ) from error
