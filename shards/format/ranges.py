"""Byte ranges of files that stay open between reads, from any thread."""

import os
import resource
import threading
import weakref
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path


class OpenFiles:
    """Files by number; opened once each, as far as the process may have open files.

    A data set can have more shards than that: what does not fit is opened for one use. Whoever
    drops this object without closing it leaves no file open.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths
        self._descriptors: dict[int, int] = {}
        self._lock = threading.Lock()
        self._max_open = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2
        weakref.finalize(self, _close_all, self._descriptors)

    @contextmanager
    def descriptor(self, number: int) -> Generator[int]:
        """Descriptor of a file for the length of the block.

        Raises:
            OSError: The file cannot be opened.
        """
        with self._lock:
            descriptor = self._descriptors.get(number)
            if descriptor is None and len(self._descriptors) < self._max_open:
                descriptor = self._descriptors[number] = self._open(number)
        if descriptor is not None:
            yield descriptor
            return
        descriptor = self._open(number)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def kept(self, number: int) -> int | None:
        """Descriptor of a file that stays open, by the shortest way; None if it is not."""
        return self._descriptors.get(number)

    def close(self) -> None:
        """Close all files; no read may be under way."""
        with self._lock:
            _close_all(self._descriptors)

    def _open(self, number: int) -> int:
        return os.open(self.paths[number], os.O_RDONLY)


def _close_all(descriptors: dict[int, int]) -> None:
    while descriptors:
        os.close(descriptors.popitem()[1])
