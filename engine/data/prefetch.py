"""Work ahead of the consumer in a background thread, and the process whose thread that is."""

import os
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar, cast

from coreset.shards.errors import UsageError

T = TypeVar("T")
_END = object()


class OwningProcess:
    """The process whose threads do some work; one forked from it has none of them."""

    def __init__(self) -> None:
        self._number = 0  # not in use yet

    @property
    def is_another(self) -> bool:
        """Tell whether the threads are those of the process that this one was forked from."""
        return self._number not in {0, os.getpid()}

    def enter(self) -> None:
        """Take the work for this process.

        Raises:
            UsageError: The process that this one was forked from has it; here it would be waited
                for without end.
        """
        if self.is_another:
            raise UsageError(
                f"images are decoded by threads of process {self._number}, which process "
                f"{os.getpid()}, forked from it, does not have; open a loader of its own there"
            )
        self._number = os.getpid()


def prefetch(items: Generator[T], depth: int) -> Generator[T]:
    """Yield ``items`` in order while one thread computes up to ``depth`` of them in advance.

    An exception in ``items`` is raised here, after the items before it. When the consumer stops
    early (``break``, an exception, ``close``) the thread ends with the item it is at, and ``items``
    is closed. A consumer that goes on in a forked process is refused.
    """
    process = OwningProcess()
    thread = ThreadPoolExecutor(1, thread_name_prefix="ahead")
    try:
        pending: deque[Future[object]] = deque(
            thread.submit(next, items, _END) for _ in range(depth)
        )
        while True:
            process.enter()
            # Before waiting, so that the thread need not wait for this one between two items.
            pending.append(thread.submit(next, items, _END))
            if (item := pending.popleft().result()) is _END:
                break
            yield cast("T", item)
    finally:
        if not process.is_another:  # where `items` may stand in the middle of a step for ever
            thread.shutdown(cancel_futures=True)
            items.close()
