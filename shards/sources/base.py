"""Samples of a source in pack order, how to read their bytes, and the options of a search."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import numpy as np
import pyarrow.compute
from numpy.typing import NDArray

from coreset.kernels.seeds import permutation
from coreset.shards.arrow import ArrowColumn
from coreset.shards.errors import UsageError
from coreset.shards.images.probe import Probe

Order: TypeAlias = Literal["shuffled", "source"]
Repeats: TypeAlias = Literal["error", "first"]
compute: Any = pyarrow.compute
ROWS_AT_ONCE = 1 << 16


class Sample(NamedTuple):
    """One found sample."""

    row: int
    key: str
    name: str
    size: int
    label: int


class Contents(Protocol):
    """Reader of the bytes of samples; safe in threads and in forked processes."""

    def read(self, sample: Sample) -> bytes:
        """Return the bytes of one sample; UsageError if they changed since they were found."""
        ...

    def state(self) -> Iterator[str]:
        """Yield lines that change when a file is written again: sizes and modification times."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Samples in pack order. Arrays are in row order, which is that of the sample keys."""

    place: Path
    classes: tuple[str, ...]
    """Sorted class names; a label is a position in it."""
    row_keys: ArrowColumn
    row_names: ArrowColumn
    row_sizes: NDArray[np.int64]
    row_labels: NDArray[np.int64]
    contents: Contents
    rows: NDArray[np.int64]
    """Row of each position in pack order."""
    facts: Callable[[int], tuple[bytes, Probe]] | None = None
    """Content hash (xxh3_128) and header of a packed sample, by row; they spare decoding it."""
    unreadable: Mapping[int, str] = field(default_factory=dict[int, str])
    """Kind of what stands in place of a file, such as a link in a tar, by row."""
    skipped: tuple[str, ...] = ()
    """Phrases that tell the user what was passed over."""

    def __len__(self) -> int:
        return self.rows.size

    def sample(self, position: int) -> Sample:
        """Return the sample at a position in pack order."""
        return next(self.samples(range(position, position + 1)))

    def samples(self, positions: range) -> Iterator[Sample]:
        """Yield the samples at consecutive positions in pack order."""
        rows = self.rows[positions.start : positions.stop]
        columns = (
            rows.tolist(),
            self.row_keys.take(rows).to_pylist(),
            self.row_names.take(rows).to_pylist(),
            self.row_sizes[rows].tolist(),
            self.row_labels[rows].tolist(),
        )
        return map(Sample._make, zip(*columns, strict=True))

    @property
    def labels(self) -> NDArray[np.int64]:
        """Labels by the source in pack order, int64."""
        return self.row_labels[self.rows]

    @property
    def keys(self) -> list[str]:
        """Sample keys in pack order."""
        return self.row_keys.take(self.rows).to_pylist()

    def list_sha256(self) -> str:
        """Return the digest of keys, names and sizes, which a copy of the source shares."""
        hasher = hashlib.sha256()
        sorted_by_key = self.in_order("source", 0)
        for first in range(0, len(self), ROWS_AT_ONCE):
            samples = sorted_by_key.samples(range(first, first + ROWS_AT_ONCE))
            hasher.update("".join(f"{s.key}\t{s.name}\t{s.size}\n" for s in samples).encode())
        return hasher.hexdigest()

    def state_sha256(self) -> str:
        """Return the digest of the list and of modification times: it sees a rewritten file."""
        hasher = hashlib.sha256(self.list_sha256().encode())
        for line in self.contents.state():
            hasher.update(line.encode())
        return hasher.hexdigest()

    def in_order(self, order: Order, order_seed: int) -> "Source":
        """Return the same samples sorted by key, or permuted so that readers see mixed classes."""
        n = len(self.row_keys)
        rows = np.arange(n) if order == "source" else permutation(n, order_seed)
        return replace(self, rows=rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceOptions:
    """Options of a search, which mean the same for every layout."""

    only: tuple[str, ...] | None = None
    """Classes to take, all of which must be there; None takes all."""
    class_names: tuple[str, ...] | None = None
    truth: Path | None = None
    """Labels of the ILSVRC validation images: ground-truth file or development kit."""
    one_class: bool = True
    """Accept a single class that ``only`` does not ask for; it may be a folder of all images."""
    repeats: Repeats = "error"
    """Refuse two samples of one key, or keep the first image."""
    spool: Path | None = None
    """Folder for the decompressed images of sources that cannot be read at random."""
    room_to_pack: bool = True
    """Require room on the disk of ``spool`` for packing all of the source beside the spool."""
    on_spooled: Callable[[int, int], None] | None = None
    """Callback of decompressed bytes and their total; never called if there is nothing to do."""

    def chosen(
        self, names: Iterable[str], place: Path, *, advice: Callable[[str], str] | None = None
    ) -> list[str]:
        """Choose the classes to take, in the order of their sample keys.

        ``advice`` says what to do if there is a single class, given its name. A class that is asked
        for and missing is a UsageError, and so is a single one that is not allowed.
        """
        existing, only = set(names), self.only or ()
        missing = sorted(set(only) - existing)
        if missing:
            raise UsageError(
                f"class {missing[0]} is not in {place} ({len(missing):,} of {len(only):,} asked "
                "for are not); name another class list or source"
            )
        if self.only is None and not self.one_class and len(existing) == 1:
            name = existing.pop()
            remedy = advice(name) if advice else "name a source that tells the classes apart"
            raise UsageError(
                f"{place} holds a single class, {name}; {remedy}, or pack one class with "
                "--one-class"
            )
        return sorted(existing if self.only is None else self.only, key=lambda name: f"{name}/")

    def takes(self, name: str) -> bool:
        """Test whether samples of a class are taken."""
        return self.only is None or name in self.only

    def name_of(self, label: int, stored_names: Sequence[str] | None, place: Path) -> str:
        """Return the class of an integer label, by ``class_names`` or the names of the source."""
        names = self.class_names or stored_names
        if names is None:
            raise UsageError(
                f"{place} holds integer labels without names; name a class list with --class-names"
            )
        if not 0 <= label < len(names):
            raise UsageError(
                f"label {label} of {place} is not in [0, {len(names)}), the range of the class "
                "list; name the right list with --class-names"
            )
        return names[label]


DEFAULTS = SourceOptions()
