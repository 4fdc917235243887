"""What a loader costs a process: time to its first batch, and memory."""

import os
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any

from coreset.bench.contenders import Absent
from coreset.bench.decode_contenders import ENTRANTS, FAST, OURS, Entrant, racer, reason_of
from coreset.bench.decode_inputs import InputName
from coreset.bench.decode_parts import Row, Setting
from coreset.bench.pack_memory import family_of
from coreset.bench.peers import loaders
from coreset.bench.peers.loaders import Start, Task
from coreset.bench.peers.pools import pool_of

STARTS = 3
FIRST_BATCH_SECONDS = 0.1
COLD_SECONDS, WARM_SECONDS = 4.0, 1.0
"""Of making our loader: with nothing compiled, and with what an earlier process compiled."""
MEMORY_BYTES = 300_000_000
_OTHERS = (
    "torchvision.io, threads",
    "torchvision.io, workers",
    "DALI, shards",
    "webdataset + Pillow, workers",
    "FFCV, jpg",
)
_STARTS: tuple[tuple[InputName, str], ...] = (
    ("imagenette", OURS),
    *(("imagenet", one) for one in (OURS, *_OTHERS)),
)
_CACHE = "CORESET_CACHE"
_EVERY_SECONDS = 0.05
_PROC = Path("/proc")


def starts(setting: Setting) -> Iterator[Row]:
    """Seconds to make a loader and to its first batch, in fresh processes, imports done."""
    for images, name in _STARTS:
        task = _task(setting, images)
        row = _about(setting, images, name) | _attempt(_timed, ENTRANTS[name], task, setting)
        yield row | ({"allowed": _allowed(WARM_SECONDS)} if name == OURS else {})
    row = _about(setting, "imagenette", f"{OURS}, nothing compiled")
    task = _task(setting, "imagenette")
    yield (
        row
        | _attempt(_timed_cold, ENTRANTS[OURS], task, setting)
        | {"allowed": _allowed(COLD_SECONDS)}
    )


def memory(setting: Setting) -> Iterator[Row]:
    """Anonymous and shared memory of a loader, above that of a process that imported torch."""
    task = _task(setting, "imagenet")
    for name in (OURS, FAST, *_OTHERS):
        row = _about(setting, "imagenet", name)
        row |= _attempt(_peak, ENTRANTS[name], task, setting)
        yield row | ({"allowed_bytes": MEMORY_BYTES} if name == OURS else {})


def import_torch() -> dict[str, str]:
    """What all loaders have in common."""
    return loaders.versions_of([], ["torch"])


def memory_bytes(pids: Sequence[int]) -> int:
    """Anonymous and shared memory of processes; what n of them share counts 1/n in each."""
    total = 0
    for pid in pids:
        with suppress(OSError):  # it may end between two lines of this
            for line in (_PROC / str(pid) / "smaps_rollup").read_text().splitlines():
                if line.startswith(("Pss_Anon:", "Pss_Shmem:")):
                    total += int(line.split()[1]) * 1024
    return total


def _about(setting: Setting, images: InputName, name: str) -> Row:
    note = setting.inputs.get(images).note
    about = {"input": images, "input_note": note, "pixels": "uint8", "threads": setting.threads}
    return about | {"contender": name}


def _task(setting: Setting, images: InputName) -> Task:
    crop = "whole" if images == "imagenette" else "centre"
    return setting.inputs.get(images).task(crop, "uint8", setting.threads)


def _allowed(open_seconds: float) -> dict[str, float]:
    return {"open_seconds": open_seconds, "first_batch_seconds": FIRST_BATCH_SECONDS}


def _attempt(
    measure: Callable[[Entrant, Task, Setting], Row], entrant: Entrant, task: Task, setting: Setting
) -> Row:
    """What was measured, or why nothing was."""
    try:
        if entrant.packages:  # its own file is written before the clock
            prepared = racer(entrant, task, setting.processes)
            if isinstance(prepared, Absent):
                return {"absent": prepared.reason}
            prepared.close()
        return measure(entrant, task, setting)
    except Exception as error:  # noqa: BLE001 - whatever a peer raises, the others go on
        return {"absent": reason_of(error)}


def _timed(entrant: Entrant, task: Task, setting: Setting) -> Row:
    return _medians([_start(entrant, task, setting) for _ in range(min(STARTS, setting.repeats))])


def _timed_cold(entrant: Entrant, task: Task, setting: Setting) -> Row:
    """With an empty folder for compiled code, which processes started here inherit."""
    before = os.environ.get(_CACHE)
    try:
        with tempfile.TemporaryDirectory(dir=setting.work) as folder:
            os.environ[_CACHE] = folder
            return _medians([_start(entrant, task, setting)])
    finally:
        os.environ.pop(_CACHE, None)
        if before is not None:
            os.environ[_CACHE] = before


def _start(entrant: Entrant, task: Task, setting: Setting) -> Start:
    with _fresh(entrant, setting, entrant.versions) as pool:
        return pool.submit(loaders.time_to_first_batch, entrant.open, task).result()


def _medians(found: Sequence[Start]) -> dict[str, Any]:
    return {
        "open_seconds": round(median(one.open_seconds for one in found), 3),
        "first_batch_seconds": round(median(one.first_batch_seconds for one in found), 4),
        "starts": len(found),
    }


def _peak(entrant: Entrant, task: Task, setting: Setting) -> Row:
    with _fresh(entrant, setting, import_torch) as pool:
        pid = pool.submit(os.getpid).result()
        before = memory_bytes([pid])
        pool.submit(entrant.versions).result()
        pool.submit(loaders.open_loader, entrant.open, task).result()
        running, peak = pool.submit(loaders.run_turn), 0
        while not running.done():
            peak = max(peak, memory_bytes(family_of(pid)))
            time.sleep(_EVERY_SECONDS)
        running.result()
        return {"peak_bytes": peak - before, "torch_bytes": before}


@contextmanager
def _fresh(
    entrant: Entrant, setting: Setting, first: Callable[[], dict[str, str]]
) -> Generator[ProcessPoolExecutor]:
    folder = setting.processes.peers / entrant.packages if entrant.packages else None
    with pool_of(folder, 1, first) as (pool, _):
        yield pool
