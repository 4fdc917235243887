"""Find samples by what tables and lists of others call them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from shards.probe import FORMAT_OF_EXTENSION
from shards.tables import INTEGER

UNKNOWN, SEVERAL = -1, -2
compute: Any = pyarrow.compute  # which has no types


class SampleNames:
    """Names of samples: sample keys and source paths, and whatever ends in one of these.

    A name is a source path or a sample key, with or without the extension of an image format; a
    longer path whose end is one; or a file name without any folder that only one sample has. Of
    several meanings the longest path counts, and a source path before a key.
    """

    def __init__(self, keys: Any, sources: Any) -> None:  # noqa: ANN401 - pyarrow strings
        """Bind the names.

        Args:
            keys: Sample keys, each once; strings of shape (n,), pyarrow Array or ChunkedArray.
            sources: Source paths, of the same shape.
        """
        self._keys, self._sources = _strings(keys), _strings(sources)
        self._depth = max(map(_depth, (self._keys, self._sources)))

    def positions(self, entries: Sequence[str]) -> NDArray[np.int64]:
        """Position of the sample that each entry names.

        Returns:
            int64 of shape (entries,); ``UNKNOWN``, or ``SEVERAL`` where several are named.
        """
        found = np.full(len(entries), UNKNOWN, np.int64)
        columns = (self._sources, self._keys)
        self._look_up(found, dict(enumerate(entries)), *columns)
        parts = {at: _parts(entries[at]) for at in _unknown(found)}
        for depth in range(self._depth, 0, -1):
            ends = {at: parts[at][-depth:] for at in _unknown(found) if len(parts[at]) >= depth}
            paths = {at: "/".join(end) for at, end in ends.items()}
            self._look_up(found, paths, *columns)
            self._look_up(found, {at: _stem(path) for at, path in paths.items()}, self._keys)
        alone = {at: _stem(parts[at][0]) for at in _unknown(found) if len(parts[at]) == 1}
        if alone:
            files = compute.replace_substring_regex(self._keys, pattern="^.*/", replacement="")
            self._look_up(found, alone, files)
        return found

    def known(self, entries: Iterable[str]) -> set[str]:
        """Pick the entries that name a sample; integers alone never do."""
        texts = [text for text in entries if text.strip() and not INTEGER.fullmatch(text)]
        found = self.positions(texts) != UNKNOWN
        return {text for text, is_name in zip(texts, found, strict=True) if is_name}

    def _look_up(
        self,
        found: NDArray[np.int64],
        names: Mapping[int, str],
        *columns: Any,  # noqa: ANN401 - pyarrow.LargeStringArray
    ) -> None:
        """Fill in the entries that have no sample yet, by the first column that has their name."""
        for column in columns:
            missing = {at: name for at, name in names.items() if found[at] == UNKNOWN}
            if not missing:
                return
            wanted = pa.array(missing.values(), pa.large_string())
            rows = compute.index_in(wanted, value_set=column).fill_null(UNKNOWN)
            several = frozenset[str]() if column is self._keys else _repeated(column, wanted)
            found[list(missing)] = [
                SEVERAL if name in several else row
                for name, row in zip(missing.values(), rows.to_pylist(), strict=True)
            ]


def _unknown(found: NDArray[np.int64]) -> list[int]:
    return np.flatnonzero(found == UNKNOWN).tolist()


def _strings(column: Any) -> Any:  # noqa: ANN401 - pyarrow strings
    whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return whole.cast(pa.large_string())


def _depth(names: Any) -> int:  # noqa: ANN401 - pyarrow.LargeStringArray
    """Parts of the deepest path."""
    return 1 + (compute.max(compute.count_substring(names, "/")).as_py() or 0)


def _repeated(column: Any, names: Any) -> frozenset[str]:  # noqa: ANN401 - pyarrow.LargeStringArray
    """Pick the names that are several times in a column."""
    named = column.filter(compute.is_in(column, value_set=names))
    counts = compute.value_counts(named)
    several = compute.greater(counts.field("counts"), 1)
    return frozenset(counts.field("values").filter(several).to_pylist())


def _parts(path: str) -> list[str]:
    return [part for part in path.strip().replace("\\", "/").split("/") if part not in {"", "."}]


def _stem(path: str) -> str:
    """Cut the extension of an image format off."""
    stem, dot, extension = path.rpartition(".")
    return stem if dot and extension.lower() in FORMAT_OF_EXTENSION else path
