import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coreset.engine.data.prefetch import prefetch


def generated(n, log=None, fail_at=None):
    try:
        for i in range(n):
            if i == fail_at:
                raise ValueError(f"item {i}")
            if log is not None:
                log.append(i)
            yield i
    finally:
        if log is not None:
            log.append("closed")


def threads_ahead():
    return [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


@given(st.integers(0, 20), st.integers(1, 5))
def test_items_come_in_order_and_once(n, depth):
    assert list(prefetch(prefetch(generated(n), depth), depth)) == list(range(n))


def test_an_exception_comes_after_the_items_before_it():
    seen = []
    with pytest.raises(ValueError, match="item 3"):
        seen.extend(prefetch(generated(9, fail_at=3), 2))
    assert seen == [0, 1, 2]


def test_leaving_early_ends_the_threads_and_closes_the_items():
    log = []
    for item in prefetch(prefetch(generated(100, log), 2), 2):
        if item == 3:
            break
    assert log[-1] == "closed"
    assert len(log) < 15
    assert threads_ahead() == []


def test_nothing_is_drawn_before_the_first_item_is_asked_for():
    log = []
    prefetch(generated(3, log), 2).close()
    assert log == []


def test_leaving_early_computes_only_the_item_under_way():
    log, under_way, release = [], threading.Event(), threading.Event()

    def slow_after_the_first():
        for item in generated(9, log):
            yield item
            under_way.set()
            release.wait(timeout=60)

    items = prefetch(slow_after_the_first(), 5)
    next(items)
    assert under_way.wait(timeout=60)
    threading.Timer(0.5, release.set).start()
    items.close()
    assert log == [0, 1, "closed"]
