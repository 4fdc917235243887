"""Samples that are byte ranges of a few large files: tars, packed shards, spooled tables."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coreset.shards.errors import UsageError
from coreset.shards.format.ranges import OpenFiles
from coreset.shards.sources.base import Sample


class RangeContents:
    """Reads samples by file, offset and size; the files must stay as they were when found."""

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
        """See ``Contents.read``."""
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
        """See ``Contents.state``."""
        return (f"{size}\t{mtime}\n" for size, mtime in self._states)


def _state(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns
