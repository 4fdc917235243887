"""Collect the samples of a source, then sort them by key and refuse or drop repeated keys."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from coreset.shards.errors import UsageError
from coreset.shards.images.probe import FORMAT_OF_EXTENSION
from coreset.shards.sources.base import Contents, Facts, Repeats, Source, compute
from coreset.shards.sources.names import PassedOver

_IMAGE_NAME = rf"\.({'|'.join(FORMAT_OF_EXTENSION)})$"
# Control characters would break the lines of digests; surrogates are bytes that are not UTF-8.
_UNSTORABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


@dataclass(slots=True, kw_only=True)
class Finder:
    """Collects samples class by class or file by file, then sorts them into a ``Source``."""

    place: Path
    repeats: Repeats = "error"
    """Refuse two samples of one key, or keep the first image."""
    skipped: list[str] = field(default_factory=list[str])
    passed_over: PassedOver = field(default_factory=PassedOver)
    classes: dict[str, int] = field(default_factory=dict[str, int])
    """Labels of the class names, in the order they were added."""
    _chunks: list[Any] = field(default_factory=list[Any])
    unreadable: dict[str, str] = field(default_factory=dict[str, str])

    def add(
        self,
        class_names: Sequence[str],
        keys: Sequence[str],
        names: Sequence[str],
        sizes: Sequence[int],
        *,
        mtimes_ns: Sequence[int] = (),
        files: Sequence[int] = (),
        offsets: Sequence[int] = (),
    ) -> None:
        """Add samples: files of their own (``mtimes_ns``), or byte ranges (``files``, ``offsets``).

        Args:
            class_names: Class of each sample.
            keys: Sample keys.
            names: Their places, for messages.
            sizes: Bytes.
            mtimes_ns: Modification times.
            files: Numbers of the files that hold the samples.
            offsets: First byte of each in its file.

        Raises:
            UsageError: A name cannot be stored.
        """
        nothing = [0] * len(keys)
        for name in [*keys, *names]:
            _require_storable(name)
        codes = [self.classes.setdefault(name, len(self.classes)) for name in class_names]
        columns = {
            "key": pa.array(keys, pa.large_string()),
            "name": pa.array(names, pa.large_string()),
            "size": pa.array(sizes, pa.int64()),
            "code": pa.array(codes, pa.int32()),
            "mtime": pa.array(mtimes_ns or nothing, pa.int64()),
            "file": pa.array(files or nothing, pa.int32()),
            "offset": pa.array(offsets or nothing, pa.int64()),
        }
        self._chunks.append(pa.table(columns))

    def reject(self, key: str, kind: str) -> None:
        """Record that the sample of a key is no readable file, but a link or device."""
        self.unreadable[key] = kind

    def sorted(self) -> "SortedSamples":
        """Sort the samples by the UTF-8 bytes of their keys.

        Raises:
            UsageError: Nothing was added, or two samples have one key.
        """
        if not any(map(len, self._chunks)):
            raise UsageError(f"{self.place} holds no samples; name a folder or file that does")
        table = pa.concat_tables(self._chunks)
        self._chunks.clear()
        order = compute.sort_indices(table["key"])  # stable: equal keys stay in the order found
        if not bool(
            compute.all(compute.equal(order, pa.array(np.arange(len(table), dtype=np.uint64))))
        ):
            table = table.take(order)
        return self._without_repeats(table)

    def _without_repeats(self, table: Any) -> "SortedSamples":  # noqa: ANN401 - pyarrow.Table
        keys = table["key"].combine_chunks()
        repeated = np.concatenate(
            [[False], compute.equal(keys[1:], keys[:-1]).to_numpy(zero_copy_only=False)]
        )
        if repeated.any() and self.repeats == "error":
            at = int(np.flatnonzero(repeated)[0])
            first, second = (table["name"][row].as_py() for row in (at - 1, at))
            raise UsageError(
                f"{first} and {second} have the same sample key {keys[at]}; rename or remove one "
                f"in {self.place}, or keep the first with --duplicates first"
            )
        if repeated.any():
            self.skipped.append(f"{int(repeated.sum()):,} samples whose key was there already")
            table = table.take(pa.array(_first_images(table["name"], repeated)))
        return SortedSamples(self, table)


class SortedSamples:
    """Samples sorted by key, whose reader is not known yet."""

    def __init__(self, finder: Finder, table: Any) -> None:  # noqa: ANN401 - pyarrow.Table
        self._finder = finder
        self.keys = table["key"].combine_chunks()
        self.names = table["name"].combine_chunks()
        self.sizes = _numbers(table["size"], np.int64)
        self.mtimes_ns = _numbers(table["mtime"], np.int64)
        self.files = _numbers(table["file"], np.int32)
        self.offsets = _numbers(table["offset"], np.int64)
        self.codes = _numbers(table["code"], np.int32)

    def source(
        self,
        contents: Contents,
        *,
        classes: Sequence[str] | None = None,
        facts: Facts | None = None,
    ) -> Source:
        """Return the source; its class list is ``classes`` or the sorted names of the samples."""
        finder = self._finder
        names = list(finder.classes)
        ordered = sorted(names) if classes is None else list(classes)
        label_of = {name: label for label, name in enumerate(ordered)}
        labels = np.array([label_of[name] for name in names], dtype=np.int64)[self.codes]
        return Source(
            place=finder.place,
            classes=tuple(ordered),
            row_keys=self.keys,
            row_names=self.names,
            row_sizes=self.sizes,
            row_labels=labels,
            contents=contents,
            rows=np.arange(len(self.keys)),
            facts=facts,
            unreadable=self._unreadable_rows(finder.unreadable),
            skipped=(*finder.skipped, *finder.passed_over.phrases(finder.place)),
        )

    def _unreadable_rows(self, by_key: Mapping[str, str]) -> dict[int, str]:
        if not by_key:
            return {}
        rows = compute.index_in(
            pa.array(by_key, pa.large_string()), value_set=self.keys
        ).to_pylist()
        return dict(zip(rows, by_key.values(), strict=True))


def _first_images(names: Any, repeated: NDArray[np.bool_]) -> NDArray[np.int64]:  # noqa: ANN401 - pyarrow.ChunkedArray
    """Choose one row of each run of equal keys: the first named like an image, or the first.

    Args:
        names: Names of the rows, in the order of the keys.
        repeated: True where a row has the key of the row before.
    """
    images = compute.match_substring_regex(names, _IMAGE_NAME, ignore_case=True)
    no_images = ~images.to_numpy().astype(np.bool_)
    runs = np.cumsum(~repeated)
    order = np.lexsort((no_images, runs))  # stable
    return order[np.unique(runs, return_index=True)[1]]


def _numbers(column: Any, kind: Any) -> NDArray[Any]:  # noqa: ANN401 - pyarrow.ChunkedArray
    return column.to_numpy().astype(kind, copy=False)


def _require_storable(name: str) -> None:
    if _UNSTORABLE.search(name):
        raise UsageError(f"file name {name!a} holds control characters or is not UTF-8; rename it")
