"""Work ahead of the consumer in a background thread."""

from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar, cast

T = TypeVar("T")
_END = object()


def ahead(items: Generator[T], depth: int) -> Generator[T]:
    """Yield ``items`` in order while one thread computes up to ``depth`` of them in advance.

    An exception in ``items`` is raised here, after the items before it. When the consumer stops
    early (``break``, an exception, ``close``) the thread ends with the item it is at, and ``items``
    is closed.
    """
    thread = ThreadPoolExecutor(1, thread_name_prefix="ahead")
    try:
        pending: deque[Future[object]] = deque(
            thread.submit(next, items, _END) for _ in range(depth)
        )
        while True:
            # Before waiting, so that the thread need not wait for this one between two items.
            pending.append(thread.submit(next, items, _END))
            if (item := pending.popleft().result()) is _END:
                break
            yield cast("T", item)
    finally:
        thread.shutdown(cancel_futures=True)
        items.close()
