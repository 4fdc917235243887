"""Items computed ahead by one thread, which on a GPU works on a stream of its own."""

import os
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from coreset.shards.errors import UsageError

T = TypeVar("T")
Tensors = TypeVar("Tensors", bound=Iterable[Tensor])
_END = object()


def prefetch(items: Generator[T], depth: int) -> Generator[T]:
    """Yield ``items`` in order while one thread computes up to ``depth`` of them in advance.

    An exception in ``items`` is raised here, after the items before it. When the consumer stops
    early the thread ends with the item it is at, and ``items`` is closed. A consumer that goes on
    in a forked process is refused.
    """
    process = os.getpid()
    thread = ThreadPoolExecutor(1, thread_name_prefix="ahead")
    try:
        submit = partial(thread.submit, next, items, _END)
        pending: deque[Future[object]] = deque(submit() for _ in range(depth))
        while True:
            require_process(process)
            # Before waiting, so that the thread need not wait for this one between two items.
            pending.append(submit())
            if (item := pending.popleft().result()) is _END:
                break
            yield cast("T", item)
    finally:
        if os.getpid() == process:  # in another, `items` may stand in the middle of a step for ever
            thread.shutdown(cancel_futures=True)
            items.close()


def prefetch_on_stream(
    batches: Generator[Tensors], depth: int, device: torch.device
) -> Generator[Tensors]:
    """Prefetch batches whose copies and kernels run beside those of the consumer.

    The host never waits for the device: the consumer's stream waits for the batch it is given, and
    memory of a batch is reused after the consumer's work on it. On a CPU streams do nothing.
    """
    streams = torch.get_device_module(device)
    own = streams.Stream(device)
    own.wait_stream(streams.current_stream(device))  # what the batches are made from
    with closing(prefetch(_made_on(streams, own, batches), depth)) as made:
        for batch, event in made:
            current = streams.current_stream(device)
            current.wait_event(event)
            for tensor in batch:
                if tensor.device.type != "cpu":
                    tensor.record_stream(current)
            yield batch


def _made_on(streams: Any, own: Any, batches: Generator[T]) -> Generator[tuple[T, object]]:  # noqa: ANN401 - module and stream of any device
    with closing(batches):
        while True:
            with streams.stream(own):  # of this thread; never entered across a yield
                batch = next(batches, _END)
                event = own.record_event()
            if batch is _END:
                return
            yield cast("T", batch), event


def require_process(process: int) -> None:
    """Refuse to wait without end for threads of the process that this one was forked from."""
    if os.getpid() != process:
        raise UsageError(
            f"images are decoded by threads of process {process}, which process "
            f"{os.getpid()}, forked from it, does not have; open a loader of its own there"
        )
