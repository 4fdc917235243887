"""Names in tables and lists: of columns, of classes in cells, and of samples."""

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from coreset.shards.arrow import ArrowColumn
from coreset.shards.images.probe import FORMAT_OF_EXTENSION

UNKNOWN, SEVERAL = -1, -2
_ROWS_AT_ONCE = 1 << 16
compute: Any = pyarrow.compute

# A column that ranks before another one is taken where both are there.
SAMPLE_COLUMNS = (
    ("path",),
    ("filepath", "imagepath", "file", "filename", "imagefile", "image", "img", "source"),
    ("key", "samplekey"),
)
# Taken where no other column names samples: they may also count the rows.
ID_COLUMNS = (("imageid", "sampleid", "sample", "id", "ids"), ("idx", "index", "indices"))
LABEL_COLUMNS = (
    "label", "labels", "fine_label", "class", "class_name", "category", "target", "wnid", "synset",
    "prediction_string",
)  # fmt: skip
CLASS_COLUMNS = (
    ("wnid", "synset", "synsetid"),
    ("class", "classes", "classname", "classnames", "name", "names", "category", "categories"),
    ("label", "labels"),
)
NUMBER_COLUMNS = (
    ("label", "labels", "labelid", "target", "classid", "classidx", "classindex", "classlabel"),
    ("index", "idx", "id"),
)
OF_CLASSES = {name for rank in (*CLASS_COLUMNS, *NUMBER_COLUMNS) for name in rank}
OF_SAMPLES = {
    name.replace("_", "") for rank in (*SAMPLE_COLUMNS, *ID_COLUMNS, LABEL_COLUMNS) for name in rank
}
INTEGER = re.compile(r"\s*[0-9]{1,18}\s*")
_WNID = re.compile(r"(?<![\w-])n\d{8}(?![\w-])")


def plain_name(column: str) -> str:
    """Normalise the name of a column: ``Image_ID`` and ``imageId`` are one name."""
    return re.sub(r"[\s_-]+", "", column.lower())


def looks_like_path(cell: str) -> bool:
    """Test for a folder or the extension of an image format in a cell."""
    extension = cell.strip().rpartition(".")[2].lower()
    return "/" in cell or "\\" in cell or ("." in cell and extension in FORMAT_OF_EXTENSION)


def wnids_in(cells: Iterable[str]) -> set[str]:
    """Find WordNet ids (n01440764) that stand as words of their own in some cells."""
    return {wnid for cell in cells for wnid in _WNID.findall(cell)}


def class_in(text: str) -> str:
    """Take the one WordNet id that stands in a text as the class, else the text."""
    wnids = wnids_in([text])
    return wnids.pop() if len(wnids) == 1 else text


class SampleNames:
    """Matcher of names with samples, by sample keys and source paths.

    A name is a source path or a sample key, with or without the extension of an image format; a
    longer path that ends in one, folder included; or a file name without any folder that only one
    sample has. Of several meanings the longest path counts, and a source path before a key.
    """

    def __init__(self, keys: ArrowColumn, sources: ArrowColumn, *, folder: str = "") -> None:
        """Index sample keys, each once, and source paths, which begin in ``folder`` if known."""
        self._folder = folder
        self._keys, self._sources = _Index(keys), _Index(sources)

    def positions(self, entries: Sequence[str]) -> NDArray[np.int64]:
        """Return the position of the sample that each entry names, ``UNKNOWN`` or ``SEVERAL``."""
        positions = np.full(len(entries), UNKNOWN, np.int64)
        parts = list(map(_parts, entries))
        for depth in range(max(self._keys.depth, self._sources.depth), 0, -1):
            at = [entry for entry in _unknown(positions) if self._may_end(parts[entry], depth)]
            ends = ["/".join(parts[entry][-depth:]) for entry in at]
            at, ends = _look_up(positions, at, ends, self._sources)
            at, ends = _look_up(positions, at, ends, self._keys)
            _look_up(positions, at, list(map(_stem, ends)), self._keys)
        alone = [entry for entry in _unknown(positions) if len(parts[entry]) == 1]
        if alone:
            _look_up(positions, alone, [_stem(parts[entry][0]) for entry in alone], self._files)
        return positions

    def known(self, entries: Iterable[str]) -> set[str]:
        """Pick the entries that name a sample; integers alone never do."""
        texts = [text for text in entries if text.strip() and not INTEGER.fullmatch(text)]
        is_known = self.positions(texts) != UNKNOWN
        return {text for text, known in zip(texts, is_known, strict=True) if known}

    def _may_end(self, parts: Sequence[str], depth: int) -> bool:
        """Test whether the last parts of a path may be a name: one alone names no folder."""
        within = len(parts) > 1 and parts[-2] == self._folder
        return len(parts) >= depth and (depth > 1 or len(parts) == 1 or within)

    @cached_property
    def _files(self) -> "_Index":
        pattern = {"pattern": "^.*/", "replacement": ""}
        return _Index(compute.replace_substring_regex(self._keys.names, **pattern))


class _Index:
    """Index of names as sorted hashes, 16 bytes a name."""

    def __init__(self, names: ArrowColumn) -> None:
        joined = ("/".join(_parts(name)) for name in _texts(names))
        self.names = pa.array(joined, pa.large_string())
        hashes = np.fromiter(map(_hash, _texts(self.names)), np.uint64, len(self.names))
        self._order = np.argsort(hashes)
        self._hashes = hashes[self._order]
        n_slashes = compute.max(compute.count_substring(self.names, "/")).as_py()
        self.depth = 1 + (n_slashes or 0)
        """Parts of the deepest path."""

    def rows(self, names: Sequence[str]) -> NDArray[np.int64]:
        """Return the row of each name, ``UNKNOWN`` or ``SEVERAL``."""
        hashes = np.fromiter(map(_hash, names), np.uint64, len(names))
        first, end = (np.searchsorted(self._hashes, hashes, side) for side in ("left", "right"))
        matches = np.flatnonzero(end > first)
        rows = np.full(len(names), UNKNOWN, np.int64)
        candidates = self._order[first[matches]]
        asked = pa.array(names, pa.large_string()).take(matches)
        same = compute.equal(self.names.take(candidates), asked).to_numpy(zero_copy_only=False)
        rows[matches] = np.where(same, candidates, UNKNOWN)
        rows[(rows != UNKNOWN) & (end > first + 1)] = SEVERAL
        return rows


def _hash(name: str) -> int:
    return xxh3_64_intdigest(name.encode())


def _look_up(
    positions: NDArray[np.int64], at: list[int], names: list[str], index: _Index
) -> tuple[list[int], list[str]]:
    """Fill in the samples of some entries by their names; return the entries without one."""
    if not at:
        return at, names
    positions[at] = index.rows(names)
    missing = _unknown(positions[at])
    return [at[entry] for entry in missing], [names[entry] for entry in missing]


def _unknown(positions: NDArray[np.int64]) -> list[int]:
    return np.flatnonzero(positions == UNKNOWN).tolist()


def _texts(names: ArrowColumn) -> Iterator[str]:
    for first in range(0, len(names), _ROWS_AT_ONCE):
        yield from names.slice(first, _ROWS_AT_ONCE).to_pylist()


def _parts(path: str) -> list[str]:
    parts = path.strip().replace("\\", "/").split("/")
    return [part for part in parts if part not in {"", "."}]


def _stem(path: str) -> str:
    stem, dot, extension = path.rpartition(".")
    return stem if dot and extension.lower() in FORMAT_OF_EXTENSION else path
