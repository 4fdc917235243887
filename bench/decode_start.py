"""Cost of a loader to its process: time to its first batch, and memory."""

import os
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from statistics import median

from coreset.bench.decode_contenders import ENTRANTS, FAST, OURS, Setting, racer, reason_of
from coreset.bench.decode_inputs import InputName
from coreset.bench.harness import Absent, Row
from coreset.bench.peers import loaders
from coreset.bench.peers.loaders import Start, Task
from coreset.bench.processes import environment_of, family_of, pool_of, rollup_bytes

STARTS = 3
FIRST_BATCH_SECONDS = 0.1
COLD_SECONDS, WARM_SECONDS = 4.0, 1.0
"""Of making our loader: with nothing compiled, and with what an earlier process compiled."""
MEMORY_BYTES = 300_000_000
_PEERS = (
    "torchvision.io, threads",
    "torchvision.io, workers",
    "DALI, shards",
    "webdataset + Pillow, workers",
    "FFCV, jpg",
)
_PLACES: tuple[tuple[InputName, str], ...] = (
    ("imagenette", OURS),
    *(("imagenet", name) for name in (OURS, *_PEERS)),
)
_EVERY_SECONDS = 0.05


def starts(setting: Setting) -> Iterator[Row]:
    """Time making a loader and its first batch, in fresh processes, imports done."""
    allowed = {"open_seconds": WARM_SECONDS, "first_batch_seconds": FIRST_BATCH_SECONDS}
    for images, name in _PLACES:
        row = _measured(setting, images, name, _starts)
        yield row | ({"allowed": allowed} if name == OURS else {})
    cold = _measured(setting, "imagenette", OURS, _cold_start)
    cold |= {"contender": f"{OURS}, nothing compiled"}
    yield cold | {"allowed": allowed | {"open_seconds": COLD_SECONDS}}


def memory(setting: Setting) -> Iterator[Row]:
    """Measure memory of a loader above that of a process that imported torch."""
    for name in (OURS, FAST, *_PEERS):
        row = _measured(setting, "imagenet", name, _peak)
        yield row | ({"allowed_bytes": MEMORY_BYTES} if name == OURS else {})


def memory_bytes(pids: Sequence[int]) -> int:
    """Return the anonymous and shared memory of processes."""
    return rollup_bytes(pids, "Pss_Anon", "Pss_Shmem")


def _measured(
    setting: Setting,
    images: InputName,
    name: str,
    measure: Callable[[str, Task, Setting], Row],
) -> Row:
    """Return the measurement of a loader, or why there is none."""
    source = setting.inputs.get(images)
    crop = "whole" if images == "imagenette" else "centre"
    task = source.task(crop, "uint8", setting.threads)
    row: Row = {"input": images, "input_note": source.note, "pixels": "uint8"}
    row |= {"threads": setting.threads, "contender": name}
    try:
        if ENTRANTS[name].packages:  # its own file is written before the clock
            prepared = racer(name, task, setting.processes)
            if isinstance(prepared, Absent):
                return row | {"absent": prepared.reason}
            prepared.close()
        return row | measure(name, task, setting)
    except Exception as error:  # noqa: BLE001 - whatever a peer raises, the others go on
        return row | {"absent": reason_of(error)}


def _starts(name: str, task: Task, setting: Setting) -> Row:
    return _medians([_start(name, task, setting) for _ in range(min(STARTS, setting.repeats))])


def _cold_start(name: str, task: Task, setting: Setting) -> Row:
    compiled = setting.work / "nothing-compiled"
    with environment_of({"CORESET_CACHE": str(compiled)}):
        return _medians([_start(name, task, setting)])


def _start(name: str, task: Task, setting: Setting) -> Start:
    entrant = ENTRANTS[name]
    with _fresh(name, setting, entrant.versions) as pool:
        return pool.submit(loaders.time_to_first_batch, entrant.open, task).result()


def _medians(timed: Sequence[Start]) -> Row:
    return {
        "open_seconds": round(median(start.open_seconds for start in timed), 3),
        "first_batch_seconds": round(median(start.first_batch_seconds for start in timed), 4),
        "starts": len(timed),
    }


def _peak(name: str, task: Task, setting: Setting) -> Row:
    entrant = ENTRANTS[name]
    with _fresh(name, setting, import_torch) as pool:
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


def import_torch() -> dict[str, str]:
    """Import what all loaders have in common."""
    return loaders.versions_of([], ["torch"])


@contextmanager
def _fresh(
    name: str, setting: Setting, first: Callable[[], dict[str, str]]
) -> Generator[ProcessPoolExecutor]:
    packages = ENTRANTS[name].packages
    folder = setting.processes.peers / packages if packages else None
    with pool_of(folder, 1, first) as (pool, _):
        yield pool
