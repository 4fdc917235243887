"""Zarr stores of scores and features; the only module that imports zarr.

The stores are Zarr v3 groups with one row per sample id. ``crc32c`` after the compressor finds a
flipped bit. The fill value is NaN and every chunk is written, so that a lost chunk reads as NaN and
never as a score.
"""

from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from coreset.shards.errors import StoreError
from coreset.shards.format.files import remove_tree

SCORES_NAME = "scores.zarr"
FEATURES_NAME = "features.zarr"
ROWS_PER_SCORE_CHUNK = 131_072  # 1.28 M x 10 float32 commit in 0.2 s; 4,096-row chunks take 1.4 s
FEATURE_CHUNK_BYTES = 16 << 20
MOST_FEATURES = 1 << 16
"""Columns of a store of features, at most: several times the widest backbone."""


def write_columns(
    path: Path, columns: Mapping[str, NDArray[Any]], attributes: Mapping[str, Any]
) -> None:
    """Write a new group of one-dimensional arrays of equal length, one row per sample id."""
    import zarr
    from zarr.codecs import Crc32cCodec, ZstdCodec

    group = zarr.create_group(path, zarr_format=3, attributes=dict(attributes))
    for name, values in sorted(columns.items()):
        array = group.create_array(
            name,
            shape=values.shape,
            dtype=values.dtype,
            chunks=(min(ROWS_PER_SCORE_CHUNK, max(1, len(values))),),
            compressors=(ZstdCodec(level=1), Crc32cCodec()),
            fill_value=np.nan if values.dtype.kind == "f" else 0,
            config={"write_empty_chunks": True},
        )
        array[:] = values


class Columns(Mapping[str, NDArray[Any]]):
    """Columns of a store by name, each of shape (n,) and read when it is first asked for."""

    def __init__(self, path: Path, *, rows: int | None = None) -> None:
        """Open a store.

        Args:
            path: Directory of the store.
            rows: Samples that it must hold: the shape is in zarr.json, which no codec protects.

        Raises:
            StoreError: The store is missing or damaged. Reading a column raises it too, also where
                the column has other rows.
        """
        self._path, self._rows = path, rows
        with _opened(path) as group:
            self._names = sorted(group.array_keys())
        self._columns: dict[str, NDArray[Any]] = {}

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self._names:
            raise KeyError(name)
        if name not in self._columns:
            with _opened(self._path) as group:
                self._columns[name] = _read(self._path, group[name], name, self._rows)
        return self._columns[name]

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _read(path: Path, array: Any, name: str, rows: int | None) -> NDArray[Any]:  # noqa: ANN401 - zarr.Array
    """Read a one-dimensional array after a check of its size."""
    _require_plain(path, array, 1)
    if rows is not None and array.shape[0] != rows:
        raise StoreError(
            f"{path}/{name} has {array.shape[0]} rows for {rows} images; remove it, score again"
        )
    return np.asarray(_readable(path, array)[...])


def _require_plain(path: Path, array: Any, dimensions: int) -> None:  # noqa: ANN401 - zarr.Array
    """Check that an array holds numbers or truth values and has the right number of dimensions."""
    if array.dtype.kind not in "biuf" or len(array.shape) != dimensions:
        form = f"{array.dtype} of shape {array.shape}"
        raise StoreError(f"{path} holds {form}; remove it and make it again")


def _readable(path: Path, array: Any) -> Any:  # noqa: ANN401 - zarr.Array
    """Check that chunks are no larger than the array: zarr allocates whole chunks."""
    if any(chunk > max(1, side) for chunk, side in zip(array.chunks, array.shape, strict=True)):
        raise StoreError(
            f"{path} has chunks of {array.chunks} for the shape {array.shape}; remove it and make "
            "it again"
        )
    return array


def _features_of(path: Path, group: Any) -> Any:  # noqa: ANN401 - zarr.Group, zarr.Array
    """Return the array of features in a group, without reading it."""
    array = group["features"]
    _require_plain(path, array, 2)
    if not 1 <= array.shape[1] <= MOST_FEATURES:
        raise StoreError(f"{path} has {array.shape[1]} columns; remove it and make it again")
    return array


class RowWriter:
    """An (n, d) float16 array written in order, chunk by chunk, and resumable at chunk borders."""

    def __init__(
        self,
        path: Path,
        n_rows: int,
        width: int,
        attributes: Mapping[str, Any],
        *,
        name: str = "features",
        chunks: tuple[int, int] | None = None,
        resume: bool = False,
    ) -> None:
        """Create the store ``path``, or continue one.

        Args:
            path: Directory of the store; an existing one is replaced unless ``resume``.
            n_rows: Rows of the whole array.
            width: Columns.
            attributes: Attributes of the group.
            name: Name of the array.
            chunks: Rows and columns of a chunk; None: whole rows, about 16 MiB of them.
            resume: Continue an existing store, some chunks of which are written.

        Raises:
            StoreError: The store to continue cannot be read or has another shape.
        """
        import zarr
        from zarr.codecs import Crc32cCodec, ZstdCodec

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
        self._array = group.create_array(
            name,
            shape=(n_rows, width),
            dtype="float16",
            chunks=chunks or (min(feature_chunk_rows(width), max(1, n_rows)), width),
            compressors=(ZstdCodec(level=1), Crc32cCodec()),
            fill_value=np.nan,
            config={"write_empty_chunks": True},
        )

    def write(self, first_row: int, rows: NDArray[np.float16]) -> None:
        """Write whole chunks (or the rest) from ``first_row``, which starts a chunk."""
        self._array[first_row : first_row + len(rows)] = rows


def feature_chunk_rows(width: int) -> int:
    """Return the rows of one chunk of float16 features of ``width``: about 16 MiB."""
    return max(1, FEATURE_CHUNK_BYTES // (2 * width))


def read_features(path: Path) -> NDArray[np.float16]:
    """Read all features of a store into memory (2 n d bytes), float16 of shape (n, d).

    Raises:
        StoreError: The store is missing or damaged, or a row was never written.
    """
    with _opened(path) as group:
        features = np.asarray(_readable(path, _features_of(path, group))[...])
    _require_finite(path, features, 0)
    return features


def feature_shape(path: Path) -> tuple[int, int]:
    """Return rows and columns of a store of features, from its metadata alone.

    Raises:
        StoreError: The store is missing or its metadata are damaged.
    """
    with _opened(path) as group:
        n_rows, width = _features_of(path, group).shape
        return n_rows, width


def feature_chunks(path: Path) -> Iterator[NDArray[np.float16]]:
    """Read features in the order of their rows, about 16 MiB at a time.

    Yields:
        float16 of shape (r, d), r = ``feature_chunk_rows(d)`` and less in the last one, whatever
        chunks the store itself has.

    Raises:
        StoreError: The store is missing or damaged, or a row was never written.
    """
    n_rows, width = feature_shape(path)
    with _opened(path) as group:
        array = _readable(path, _features_of(path, group))
        for first in range(0, n_rows, feature_chunk_rows(width)):
            chunk = np.asarray(array[first : first + feature_chunk_rows(width)])
            _require_finite(path, chunk, first)
            yield chunk


def _require_finite(path: Path, features: NDArray[np.float16], first_row: int) -> None:
    if not np.isfinite(features).all():
        row = first_row + int(np.flatnonzero(~np.isfinite(features).all(axis=1))[0])
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
