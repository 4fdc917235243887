"""Workers in forked processes: the same blocks as in threads, and how the processes end."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from coreset.kernels.jpeg.resize import warm_up
from coreset.shards.errors import DataError, MachineError, UsageError
from coreset.shards.packing import workers
from coreset.shards.packing.encode import Block
from coreset.shards.packing.plan import Plan
from coreset.shards.packing.workers import can_fork, start_workers
from coreset.shards.sources.detect import find_folder


def plan_of(src: Path, **changes: Any) -> Plan:
    source = find_folder(src)
    fields: dict[str, Any] = {"source": source, "labels": source.labels, **changes}
    return Plan(samples_per_shard=99, name="photos", split="train", settings={}, **fields)


def never() -> bool:
    return False


def joined(block: Block) -> tuple[Any, ...]:
    return (*block[:3], b"".join(block.parts))


@pytest.fixture
def src(make_photos: Callable[..., Path], tmp_path: Path) -> Path:
    root = make_photos(tmp_path / "src", per_class=4)
    first = min(root.glob("*/*"))
    first.write_bytes(b"no image")
    return root


@pytest.mark.parametrize("short_side", [None, 20])
@pytest.mark.parametrize("block_bytes", [1 << 22, 2000])
def test_processes_encode_as_threads_do(src, short_side, block_bytes, monkeypatch):
    monkeypatch.setattr(workers, "_SHARED_BYTES", block_bytes)  # too few for most images
    if short_side:
        warm_up()
    plan = plan_of(src, short_side=short_side)
    blocks = [range(5), range(5, 6), range(6, len(plan.source))]
    with (
        start_workers(plan, 1, never, processes=False) as (thread,),
        start_workers(plan, 2, never, processes=True) as (first, second),
    ):
        expected = [joined(thread(block)) for block in blocks]
        assert [joined(first(block)) for block in blocks] == expected
        assert [joined(second(block)) for block in blocks] == expected
    assert [len(refused) for *_, refused, _ in expected] == [1, 0, 0]
    assert [len(positions) for positions, *_ in expected] == [4, 1, len(plan.source) - 6]


def test_errors_of_a_process_are_raised_here_and_it_goes_on(src):
    plan = plan_of(src, skip_damaged=False)
    with start_workers(plan, 1, never, processes=True) as (worker,):
        with pytest.raises(DataError, match=r"cannot be packed \(not-an-image"):
            worker(range(3))
        os.utime(sorted(src.glob("*/*"))[1], (1, 1))
        with pytest.raises(UsageError, match="changed while it was being packed"):
            worker(range(1, 3))
        assert worker(range(2, 4)).positions == [2, 3]


def children() -> set[int]:
    path = Path(f"/proc/self/task/{threading.main_thread().native_id}/children")
    return {int(word) for word in path.read_text().split()}


def test_a_killed_process_is_reported_with_its_files_and_none_is_left_after_an_error(src):
    before, plan = children(), plan_of(src)
    with start_workers(plan, 1, never, processes=True) as (worker,):
        (child,) = children() - before
        os.kill(child, signal.SIGKILL)
        for _ in range(2):  # another thread may ask before all have heard of it
            with pytest.raises(MachineError, match=r"by SIGKILL between .*; if memory"):
                worker(range(4))
    assert children() <= before
    with suppress(KeyboardInterrupt), start_workers(plan, 3, never, processes=True):
        assert len(children() - before) == 3
        raise KeyboardInterrupt
    assert children() <= before


FORK_AND_WAIT = """
import sys, time
from pathlib import Path
from coreset.shards.packing.workers import start_workers
from coreset.shards.packing.plan import Plan
from coreset.shards.sources.detect import find_folder
source = find_folder(Path(sys.argv[1]))
plan = Plan(
    source=source, labels=source.labels, samples_per_shard=9, name="", split="", settings={}
)
with start_workers(plan, 2, lambda: False, processes=True):
    print(open("/proc/thread-self/children").read(), flush=True)
    time.sleep(60)
"""


def test_a_kill_of_the_parent_ends_its_processes(src):
    command = [sys.executable, "-c", FORK_AND_WAIT, str(src)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        assert parent.stdout
        forked = [int(word) for word in parent.stdout.readline().split()]
        parent.kill()
    assert len(forked) == 2
    deadline = time.monotonic() + 10
    while any(is_running(process) for process in forked):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_running(process: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_process_forks_only_without_other_threads_and_torch_and_if_it_may(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(threading, "active_count", lambda: 1)
    assert can_fork()
    monkeypatch.setattr(threading, "active_count", lambda: 2)
    assert not can_fork()
    monkeypatch.setattr(threading, "active_count", lambda: 1)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torch", sys)
        assert not can_fork()
    monkeypatch.setattr(workers, "current_process", lambda: SimpleNamespace(daemon=True))
    assert not can_fork()


def test_a_stop_ends_the_current_block_of_a_thread(src):
    with (
        start_workers(plan_of(src), 1, lambda: True, processes=False) as (worker,),
        pytest.raises(CancelledError),
    ):
        worker(range(3))
