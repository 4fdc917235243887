import threading
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coreset.engine.data.buffers import BatchMemory
from coreset.engine.data.prefetch import prefetch, prefetch_on_stream


def generated(n, log, fail_at=None):
    try:
        for i in range(n):
            if i == fail_at:
                raise ValueError(f"item {i}")
            log.append(i)
            yield i
    finally:
        log.append("closed")


@given(st.integers(0, 20), st.integers(1, 5))
def test_items_come_in_order_and_once(n, depth):
    assert list(prefetch(prefetch(generated(n, []), depth), depth)) == list(range(n))


def test_an_exception_comes_after_the_items_before_it():
    seen = []
    with pytest.raises(ValueError, match="item 3"):
        seen.extend(prefetch(generated(9, [], fail_at=3), 2))
    assert seen == [0, 1, 2]


def test_leaving_early_ends_the_threads_and_computes_only_the_item_under_way():
    log, under_way, release = [], threading.Event(), threading.Event()

    def slow_after_the_first():
        for item in generated(9, log):
            yield item
            under_way.set()
            release.wait(timeout=60)

    unused = []
    prefetch(generated(3, unused), 2).close()
    assert unused == []
    items = prefetch(slow_after_the_first(), 5)
    next(items)
    assert under_way.wait(timeout=60)
    threading.Timer(0.5, release.set).start()
    items.close()
    assert log == [0, 1, "closed"]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


class RecordingStreams:
    """Streams as ``torch.cuda`` has them, which write down in which order they are told to wait."""

    def __init__(self, log):
        self.log, self.current = log, {}
        self.main = self.stream_named("consumer")

    def stream_named(self, name):
        streams = self

        class Stream:
            name: str

            def wait_stream(self, other):
                streams.log.append((name, "waits for", other.name))

            def wait_event(self, event):
                streams.log.append((name, "waits for", event))

            def record_event(self):
                made = [entry[2] for entry in streams.log if entry[:2] == (name, "makes")]
                return f"event after {made[-1]}" if made else "event"

        stream = Stream()
        stream.name = name
        return stream

    def Stream(self, _device):  # noqa: N802 - as torch's
        return self.stream_named("own")

    def current_stream(self, _device=None):
        return self.current.get(threading.get_ident(), self.main)

    @contextmanager
    def stream(self, entered):
        self.current[threading.get_ident()] = entered
        yield
        del self.current[threading.get_ident()]


class OnDevice:
    """Stand-in for a tensor on a GPU."""

    device = torch.device("meta")

    def __init__(self, number, log):
        self.number, self.log = number, log

    def record_stream(self, stream):
        self.log.append((stream.name, "uses", self.number))


def test_the_consumers_stream_waits_for_its_own_batch_and_the_host_for_none(monkeypatch):
    log = []
    streams = RecordingStreams(log)
    monkeypatch.setattr(torch, "get_device_module", lambda _: streams)

    def made() -> Any:
        for number in range(3):
            log.append((streams.current_stream().name, "makes", number))
            yield [OnDevice(number, log)]

    taken = []
    for (tensor,) in prefetch_on_stream(made(), 1, torch.device("meta")):
        assert streams.current_stream() is streams.main
        assert log.index(("own", "makes", tensor.number)) < log.index(
            ("consumer", "waits for", f"event after {tensor.number}")
        )
        taken.append(tensor.number)
    assert taken == [0, 1, 2]
    assert log[0] == ("own", "waits for", "consumer")
    assert [entry for entry in log if entry[0] == "consumer"] == [
        entry
        for number in range(3)
        for entry in (
            ("consumer", "waits for", f"event after {number}"),
            ("consumer", "uses", number),
        )
    ]


def test_memory_for_a_gpu_is_pinned_and_that_of_a_cpu_is_used_again(monkeypatch):
    asked = []
    empty = torch.empty

    def pinning(*args, pin_memory=False, **kwargs):
        asked.append(pin_memory)
        return empty(*args, **kwargs)

    monkeypatch.setattr(torch, "empty", pinning)
    taken = BatchMemory(torch.device("cuda")).take((2, 3), np.dtype(np.float32))
    assert (taken.shape, taken.dtype, asked) == ((2, 3), np.float32, [True])
    memory = BatchMemory(torch.device("cpu"))
    first = memory.take((4, 4), np.dtype(np.uint8)).ctypes.data
    held = memory.take((4, 4), np.dtype(np.uint8))
    assert held.ctypes.data == first
    assert memory.take((4, 4), np.dtype(np.uint8)).ctypes.data != first
    assert asked == [True]
