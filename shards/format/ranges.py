"""Byte ranges of files that stay open between reads, from any thread."""

import os
import resource
import threading
import weakref
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path


class OpenFiles:
    """Files by number, opened once each and read from any thread.

    A data set can have more shards than a process may open: the rest is opened for one use each.
    An object that is dropped without `close` leaves no file open.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths
        self._descriptors: dict[int, int] = {}
        self._lock = threading.Lock()
        self._max_open = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2
        weakref.finalize(self, _close_all, self._descriptors)

    @contextmanager
    def descriptor(self, number: int) -> Generator[int]:
        """Yield the descriptor of a file, valid in the block.

        Raises:
            OSError: The file cannot be opened.
        """
        with self._lock:
            kept = self._descriptors.get(number)
            if kept is None and len(self._descriptors) < self._max_open:
                kept = self._descriptors[number] = os.open(self.paths[number], os.O_RDONLY)
        if kept is not None:
            yield kept
            return
        descriptor = os.open(self.paths[number], os.O_RDONLY)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def kept(self, number: int) -> int | None:
        """Return the descriptor of a file that stays open, else None, without the lock."""
        return self._descriptors.get(number)

    def close(self) -> None:
        """Close all files; no read may be under way."""
        with self._lock:
            _close_all(self._descriptors)


def _close_all(descriptors: dict[int, int]) -> None:
    while descriptors:
        os.close(descriptors.popitem()[1])
