"""Names of samples, and lists of them."""

from collections.abc import Iterable
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from coreset.shards.arrow import ArrowColumn, ArrowTable
from coreset.shards.errors import UsageError
from coreset.shards.images.probe import without_extension
from coreset.shards.tables.table import INTEGER, read_table

UNKNOWN, SEVERAL = -1, -2
_Entry: TypeAlias = tuple[int, str]


class SampleNames:
    """Matcher of names with samples, by sample keys and source paths.

    A name is a source path or a sample key, with or without the extension of an image format; a
    longer path that ends in one, folder included; or a file name without any folder that only one
    sample has. Of several meanings the longest path counts, and a source path before a key.
    """

    def __init__(self, keys: ArrowColumn, sources: ArrowColumn, *, folder: str = "") -> None:
        """Index sample keys, each once, and source paths, which begin in ``folder`` if known."""
        self._folder = folder
        self._keys, self._sources = (
            _index(("/".join(_parts(name)), row) for row, name in enumerate(names.to_pylist()))
            for names in (keys, sources)
        )
        self._depth = 1 + max(name.count("/") for name in chain(("",), self._keys, self._sources))

    def position(self, entry: str) -> int:
        """Return the position of the sample that an entry names, ``UNKNOWN`` or ``SEVERAL``."""
        parts = _parts(entry)
        # A file name alone names no sample of another folder.
        shortest = 1 if parts[-2:-1] in ([], [self._folder]) else 2
        for length in range(min(len(parts), self._depth), shortest - 1, -1):
            end = "/".join(parts[-length:])
            row = self._sources.get(end, self._keys.get(end))
            row = self._keys.get(without_extension(end)) if row is None else row
            if row is not None:
                return row
        return self._files.get(without_extension(parts[0]), UNKNOWN) if len(parts) == 1 else UNKNOWN

    def known(self, entries: Iterable[str]) -> set[str]:
        """Pick the entries that name a sample; integers alone never do."""
        texts = (text for text in entries if not INTEGER.fullmatch(text))
        return {text for text in texts if self.position(text) != UNKNOWN}

    @cached_property
    def _files(self) -> dict[str, int]:
        return _index((name.rpartition("/")[2], row) for name, row in self._keys.items())


def _index(named_rows: Iterable[tuple[str, int]]) -> dict[str, int]:
    rows: dict[str, int] = {}
    for name, row in named_rows:
        rows[name] = SEVERAL if name in rows else row
    return rows


def _parts(path: str) -> list[str]:
    parts = path.strip().replace("\\", "/").split("/")
    return [part for part in parts if part not in {"", "."}]


def read_list(path: Path, samples: ArrowTable) -> NDArray[np.int64]:
    """Return the ids of the samples that a list names, int64 in ascending order.

    ``.npy`` holds ids. Any other entry is a sample id, a sample key, a source path, a longer path
    that ends in one of these (``train/n02979186/x.JPEG``), or a file name that only one sample has.
    A path also matches by its sample key, so that an image that was stored with another extension
    is found. ``samples`` has the columns ``key`` and ``source``, one row per sample id. A
    UsageError names the line that is at fault.
    """
    names = SampleNames(samples["key"], samples["source"])
    unit, entries = _entries(path, names)
    if not entries:
        raise UsageError(f"{path} names no samples; list an id, a sample key or a path a line")
    first: dict[int, int] = {}
    for number, text in entries:
        place = f"{path} {unit} {number}"
        sample = int(text) if INTEGER.fullmatch(text) else names.position(text)
        if sample >= len(samples):
            raise UsageError(f"{place}: id must be in [0, {len(samples)}), got {text.strip()}")
        if sample == SEVERAL:
            raise UsageError(f"{place}: {text!a} names several samples; list sample ids or keys")
        if sample == UNKNOWN:
            raise UsageError(
                f"{place}: {text!a} is no id, sample key or source path of the data set; correct "
                "the line or name the data set that was listed"
            )
        if sample in first:
            raise UsageError(
                f"{place} names sample {sample} again ({text!a}, first in {unit} "
                f"{first[sample]}); remove one of them"
            )
        first[sample] = number
    return np.array(sorted(first), dtype=np.int64)


def _entries(path: Path, names: SampleNames) -> tuple[str, list[_Entry]]:
    if path.suffix == ".npy" and path.is_file():
        return "entry", _array_entries(path)
    table = read_table(path, "list", names.known)
    column = table.sample_column()
    entries: list[_Entry] = []
    for at, cells in table.rows():
        if len(cells) <= column or not cells[column].strip():
            raise UsageError(f"{table.where(at)} names no sample; correct the list")
        entries.append((at, cells[column]))
    zero_first = len(entries) > 1 and entries[0][1].strip() == "0"
    if table.may_have_header and zero_first and all(INTEGER.fullmatch(text) for _, text in entries):
        # pandas names a column so that has no name.
        raise UsageError(
            f"{table.where(entries[0][0])} is 0, which may be sample 0 or the header of a column "
            "without a name; write id above the ids, or save them as .txt or .npy"
        )
    return table.unit, entries


def _array_entries(path: Path) -> list[_Entry]:
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except ValueError as error:
        raise UsageError(f"list {path} cannot be read ({error}); save it again") from error
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise UsageError(
            f"list {path} holds {array.dtype} of shape {array.shape}, expected one row of "
            "integers; save the sample ids"
        )
    return list(enumerate(map(str, array.tolist()), 1))
