"""Samples as they are found, sorted by key, and their readers: files, or byte ranges."""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from os.path import join
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import pyarrow as pa

from coreset.shards.arrow import ArrowTable
from coreset.shards.errors import UsageError
from coreset.shards.format.files import OpenFiles
from coreset.shards.images.probe import FORMAT_OF_EXTENSION, extension_of
from coreset.shards.sources.base import Contents, Repeats, Sample, Source, compute
from coreset.shards.sources.names import NAME_LIST, SIDE_CAR_EXTENSIONS
from coreset.shards.sources.tar_scan import REGULAR_FILE, Entry

_IMAGE_NAME = rf"\.({'|'.join(FORMAT_OF_EXTENSION)})$"
# Control characters would break the lines of digests; surrogates are bytes that are not UTF-8.
_UNSTORABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_SCHEMA = pa.schema({
    "code": pa.int32(), "key": pa.large_string(), "name": pa.large_string(), "size": pa.int64(),
    "mtime": pa.int64(), "file": pa.int32(), "offset": pa.int64(), "kind": pa.string(),
})  # fmt: skip


class Found(NamedTuple):
    """Sample that is a file with a modification time, or a byte range of a numbered file."""

    class_name: str
    key: str
    name: str
    size: int
    mtime_ns: int = 0
    file: int = 0
    offset: int = 0
    kind: str = REGULAR_FILE
    """``REGULAR_FILE``, or what stands in its place, such as a link in a tar."""


File = TypeVar("File", Found, Entry)


@dataclass(slots=True, kw_only=True)
class Finder:
    """Collects samples class by class or file by file, then sorts them into a ``Source``."""

    place: Path
    repeats: Repeats = "error"
    skipped: list[str] = field(default_factory=list[str])
    n_hidden: int = 0
    _side_cars: list[str] = field(default_factory=list[str])
    _codes: dict[str, int] = field(default_factory=dict[str, int])
    _chunks: list[ArrowTable] = field(default_factory=list[ArrowTable])

    def add(self, found: Iterable[Found]) -> None:
        """Add samples; UsageError if a name cannot be stored."""
        samples = list(found)
        for name in [text for sample in samples for text in (sample.key, sample.name)]:
            if _UNSTORABLE.search(name):
                raise UsageError(
                    f"file name {name!a} holds control characters or is not UTF-8; rename it"
                )
        classes, *columns = zip(*samples, strict=True) if samples else [()] * len(_SCHEMA)
        codes = [self._codes.setdefault(name, len(self._codes)) for name in classes]
        self._chunks.append(pa.table([codes, *columns], schema=_SCHEMA))

    def skip(self, n: int, what: str) -> None:
        """Note how many of something were passed over, if any."""
        self.skipped += [f"{n:,} {what}"] * bool(n)

    def images(
        self, class_name: str, files: Iterable[File], remedy: str, *, folder: str = ""
    ) -> list[File]:
        """Choose the files of a class, named from ``folder`` on, that are no side-cars."""
        images: list[File] = []
        for file in files:
            if extension_of(file.name) in SIDE_CAR_EXTENSIONS:
                self._side_cars.append(folder + file.name)
            else:
                images.append(file)
        if not images:
            raise UsageError(
                f"class {class_name} of {self.place} holds no images; {remedy}, or list the other "
                f"classes {NAME_LIST}"
            )
        return images

    def source(
        self, reader: Callable[[ArrowTable], Contents], *, classes: Sequence[str] | None = None
    ) -> Source:
        """Sort the samples by the UTF-8 bytes of their keys and bind their ``reader``.

        Without ``classes`` these are the sorted classes of the samples. No samples, or two of one
        key, are a UsageError.
        """
        if not any(map(len, self._chunks)):
            raise UsageError(f"{self.place} holds no samples; name a folder or file that does")
        table = pa.concat_tables(self._chunks)
        self._chunks.clear()
        # Stable: equal keys stay in the order found.
        table = self._without_repeats(table.take(compute.sort_indices(table["key"])))
        keys, names = (table[name].combine_chunks() for name in ("key", "name"))
        ordered = sorted(self._codes) if classes is None else list(classes)
        label_of = {name: label for label, name in enumerate(ordered)}
        labels = np.array([label_of[name] for name in self._codes], dtype=np.int64)
        self.skip(self.n_hidden, f"hidden files and folders of {self.place}")
        for first in self._side_cars[:1]:
            no_images = f"files of {self.place} that are no images by their names"
            self.skip(len(self._side_cars), f"{no_images}, such as {first}")
        unreadable = compute.indices_nonzero(compute.not_equal(table["kind"], REGULAR_FILE))
        kinds = table["kind"].take(unreadable)
        return Source(
            place=self.place,
            classes=tuple(ordered),
            row_keys=keys,
            row_names=names,
            row_sizes=table["size"].to_numpy(),
            row_labels=labels[table["code"].to_numpy()],
            contents=reader(table),
            rows=np.arange(len(keys)),
            unreadable=dict(zip(unreadable.to_pylist(), kinds.to_pylist(), strict=True)),
            skipped=tuple(self.skipped),
        )

    def _without_repeats(self, table: ArrowTable) -> ArrowTable:
        keys = table["key"].combine_chunks()
        equal = compute.equal(keys[1:], keys[:-1]).to_numpy(zero_copy_only=False)
        repeated = np.concatenate([[False], equal])
        if not repeated.any():
            return table
        if self.repeats == "error":
            at = int(np.flatnonzero(repeated)[0])
            first, second = table["name"][at - 1 : at + 1].to_pylist()
            raise UsageError(
                f"{first} and {second} have the same sample key {keys[at]}; rename or remove one "
                f"in {self.place}, or keep the first with --duplicates first"
            )
        self.skip(int(repeated.sum()), "samples whose key was there already")
        # Of each run of equal keys the first that is named like an image, else the first.
        images = compute.match_substring_regex(table["name"], _IMAGE_NAME, ignore_case=True)
        runs = np.cumsum(~repeated)
        order = np.lexsort((~images.to_numpy().astype(np.bool_), runs))  # stable
        return table.take(pa.array(order[np.unique(runs, return_index=True)[1]]))


class FileContents:
    """Reader of samples that are files of their own, below a folder."""

    def __init__(self, root: Path, table: ArrowTable) -> None:
        self._root, self._mtimes_ns = root, table["mtime"].to_numpy()

    def read(self, sample: Sample) -> bytes:
        """Return the bytes of one sample, see ``Contents.read``."""
        path = join(self._root, sample.name)  # noqa: PTH118 - a Path costs as much as the read
        try:
            status, data = _read_file(path, sample.size)
        except OSError as error:
            raise _unreadable(path, error) from error
        expected = sample.size, int(self._mtimes_ns[sample.row])
        if (status.st_size, status.st_mtime_ns) != expected or len(data) != sample.size:
            raise _changed(path, self._root)
        return data

    def state(self) -> Iterator[str]:
        """Yield times, see ``Contents.state``."""
        return (f"{mtime}\n" for mtime in self._mtimes_ns.tolist())


def _read_file(path: str, size: int) -> tuple[os.stat_result, bytes]:
    """Read a file with its status; one byte more than ``size`` if it has grown."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        status, data = os.fstat(descriptor), os.read(descriptor, size + 1)
        # A signal or a network file system may cut a read short.
        while len(data) < size and (more := os.read(descriptor, size - len(data))):
            data += more
    finally:
        os.close(descriptor)
    return status, data


class RangeContents:
    """Reader of samples that are byte ranges of files, which must stay as they were found."""

    def __init__(self, files: Sequence[Path], table: ArrowTable) -> None:
        """Bind the ranges of the sorted table, whose ``file`` counts in ``files``."""
        self._open = OpenFiles(files)
        self._file_of, self._offsets = table["file"].to_numpy(), table["offset"].to_numpy()
        self._states = list(map(state_of, files))

    def read(self, sample: Sample) -> bytes:
        """Return the bytes of one sample, see ``Contents.read``."""
        number = int(self._file_of[sample.row])
        path = self._open.paths[number]
        try:
            with self._open.descriptor(number) as descriptor:
                data = os.pread(descriptor, sample.size, int(self._offsets[sample.row]))
        except OSError as error:
            raise _unreadable(path, error) from error
        if len(data) != sample.size or state_of(path) != self._states[number]:
            raise _changed(path, path)
        return data

    def state(self) -> Iterator[str]:
        """Yield sizes and times, see ``Contents.state``."""
        return (f"{size}\t{mtime}\n" for size, mtime in self._states)


def state_of(path: Path) -> tuple[int, int]:
    """Return size in bytes and modification time (ns) of a file."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _unreadable(path: Path | str, error: OSError) -> UsageError:
    return UsageError(
        f"{path} cannot be read ({error.strerror}); mend that, and the same command continues"
    )


def _changed(path: Path | str, place: Path) -> UsageError:
    return UsageError(
        f"{path} changed while it was being packed; pack again when nothing writes to {place}"
    )
