"""Read the bytes of found samples: whole files, or byte ranges of a few large files."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os.path import join
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coreset.shards.errors import UsageError
from coreset.shards.format.files import OpenFiles
from coreset.shards.sources.base import Sample


@dataclass(frozen=True, slots=True)
class FileContents:
    """Reader of samples that are files of their own."""

    root: Path
    mtimes_ns: NDArray[np.int64]
    """By row."""

    def read(self, sample: Sample) -> bytes:
        """Return the bytes of one sample, see ``Contents.read``."""
        path = join(self.root, sample.name)  # noqa: PTH118 - a Path costs 20 us an image
        expected = sample.size, int(self.mtimes_ns[sample.row])
        try:
            status, data = _read_file(path, expected[0])
        except OSError as error:
            raise UsageError(
                f"{path} cannot be read ({error.strerror}); mend that, and the same command "
                "continues"
            ) from error
        if (status.st_size, status.st_mtime_ns) != expected or len(data) != expected[0]:
            raise UsageError(
                f"{path} changed while it was being packed; pack again when nothing writes to "
                f"{self.root}"
            )
        return data

    def state(self) -> Iterator[str]:
        """Yield sizes and times, see ``Contents.state``."""
        return (f"{mtime}\n" for mtime in self.mtimes_ns.tolist())


def _read_file(path: str, size: int) -> tuple[os.stat_result, bytes]:
    """Read a file with its status; one byte more than ``size`` if it has grown."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        status = os.fstat(descriptor)
        data = os.read(descriptor, size + 1)
        # A signal or a network file system may cut a read short.
        while len(data) < size and (more := os.read(descriptor, size - len(data))):
            data += more
    finally:
        os.close(descriptor)
    return status, data


class RangeContents:
    """Reader of samples that are byte ranges of files, which must stay as they were found."""

    def __init__(
        self, files: Sequence[Path], file_of: NDArray[np.int32], offsets: NDArray[np.int64]
    ) -> None:
        """Bind the ranges.

        Args:
            files: The files.
            file_of: Position in ``files`` of each row.
            offsets: First byte of each row.
        """
        self._open = OpenFiles(files)
        self._file_of, self._offsets = file_of, offsets
        self._states = [_state(path) for path in files]

    def read(self, sample: Sample) -> bytes:
        """Return the bytes of one sample, see ``Contents.read``."""
        number, size = int(self._file_of[sample.row]), sample.size
        path = self._open.paths[number]
        try:
            with self._open.descriptor(number) as descriptor:
                data = os.pread(descriptor, size, int(self._offsets[sample.row]))
        except OSError as error:
            raise UsageError(
                f"{path} cannot be read ({error.strerror}); mend that, and the same command "
                "continues"
            ) from error
        if len(data) != size or _state(path) != self._states[number]:
            raise UsageError(
                f"{path} changed while it was being packed; pack again when nothing writes to it"
            )
        return data

    def state(self) -> Iterator[str]:
        """Yield sizes and times, see ``Contents.state``."""
        return (f"{size}\t{mtime}\n" for size, mtime in self._states)


def _state(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns
