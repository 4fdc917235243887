"""Cost of torch threads that spin or sleep while they wait, beside a decoder or a busy process.

OpenMP reads its policy once in a process, so every contender is a process of its own.
"""

import hashlib
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from coreset.bench.harness import Contender, Row, rows_of_all
from coreset.bench.inputs import balanced_copy
from coreset.bench.processes import WITH_PARENT, pool_of
from coreset.bench.score_training import Setting, Training, coreset, training
from coreset.engine.data.geometry import Geometry, stored_side
from coreset.engine.data.images import load_into_memory
from coreset.engine.data.stream import ImageStream
from coreset.engine.scoring.recipes import RECIPES
from coreset.shards.format.dataset import Dataset

SIZE = 96
STREAMED, RESIDENT = "decoded every epoch", "decoded before"
POLICY = "OMP_WAIT_POLICY"
ALONE, CROWDED = "alone", "beside a busy process"
SPIN, SLEEP = "threads spin", "threads sleep"
BUSY_PROGRAM = "while True: pass"
_open: list[Training] = []
"""The training of this process, if it is one of a pool."""


@dataclass(frozen=True, slots=True)
class Way:
    """Source of a training's images, waiting of its threads, and company."""

    name: str
    threads: str
    streamed: bool = False
    crowded: bool = False


WAITING = [
    Way(f"{images}, {threads}", threads, streamed=images == STREAMED)
    for images in (STREAMED, RESIDENT)
    for threads in (SPIN, SLEEP)
]
BUSY = [
    Way(f"{company}, {threads}", threads, crowded=company == CROWDED)
    for company in (ALONE, CROWDED)
    for threads in (SPIN, SLEEP)
]
CHOSEN = {
    f"{STREAMED}, {SLEEP}": f"{STREAMED}, {SPIN}",
    f"{RESIDENT}, {SPIN}": f"{RESIDENT}, {SLEEP}",
}
"""The way of ``coreset score`` and the other."""


def waiting(setting: Setting) -> Iterator[Row]:
    """Compare spinning and sleeping threads with and without a decoder."""
    return _compared(setting, WAITING)


def busy(setting: Setting) -> Iterator[Row]:
    """Compare training steps/s alone and beside a busy process, with spinning and sleeping."""
    return _compared(setting, BUSY)


def _compared(setting: Setting, ways: Sequence[Way]) -> Iterator[Row]:
    """Time an epoch in each way; the weights must be the same bit by bit."""
    with TemporaryDirectory(dir=setting.work) as folder, ExitStack() as stack:
        work = Path(folder)
        images = balanced_copy(
            setting.data / "imagenette" / "train", work / "images", setting.loop_images
        )
        coreset("pack", work / "images", work / "data")
        digests: dict[str, list[str]] = {way.name: [] for way in ways}

        def check(way: Way, _: Path) -> str:
            first = digests[ways[0].name][len(digests[way.name]) - 1]
            same = digests[way.name][-1] == first
            return "" if same else f"other weights than those of {ways[0].name}"

        contenders = [
            Contender(
                name=way.name,
                run=partial(_run, way, _process(work / "data", way, stack), digests[way.name]),
                check=partial(check, way),
                role="ours" if way.name in CHOSEN else "limit",
            )
            for way in ways
        ]
        (work / "turns").mkdir()
        rows = rows_of_all(
            contenders,
            repeats=setting.repeats,
            work=work / "turns",
            images=images,
            source_bytes=int(Dataset.open(work / "data").ints("bytes").sum()),
        )
    steps = -(-images // RECIPES["full"].batch)
    for row in rows:
        rates = [round(steps / seconds, 3) for seconds in row["seconds"]]
        yield {"size": SIZE, "threads": setting.threads, **row, "steps_per_second": rates}


def _run(way: Way, epoch: Callable[[], str], digests: list[str], _out: Path) -> None:
    if not way.crowded:
        digests.append(epoch())
        return
    with subprocess.Popen([*WITH_PARENT, sys.executable, "-c", BUSY_PROGRAM]) as rival:
        try:
            digests.append(epoch())
        finally:
            rival.kill()


def _process(data: Path, way: Way, stack: ExitStack) -> Callable[[], str]:
    """Start a process whose threads wait in a way; return what trains an epoch in it."""
    policy = "PASSIVE" if way.threads == SLEEP else None
    pool: ProcessPoolExecutor
    pool, _ = stack.enter_context(pool_of(None, environment={POLICY: policy}))
    pool.submit(_begin, data, streamed=way.streamed).result()
    return lambda: pool.submit(_epoch).result()


def _begin(data: Path, *, streamed: bool) -> None:
    side = stored_side(SIZE)
    stream = ImageStream(Dataset.open(data), Geometry(side, side))
    images = stream if streamed else load_into_memory(stream)
    dataset = stream.dataset
    _open.append(training(images, len(dataset), len(dataset.classes), size=SIZE))


def _epoch() -> str:
    """Train an epoch; return the digest of the weights."""
    (opened,) = _open
    opened.epoch()
    weights = (each.detach().numpy().tobytes() for each in opened.proxy.network.parameters())
    return hashlib.sha256(b"".join(weights)).hexdigest()
