"""Task of the loaders of ``coreset.bench.decode``, and the session of a loader's process.

A loader is a context manager made from a ``Task``; it gives a function that starts an epoch. One
process holds one loader at a time, which stays open from round to round.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZE, SHORT_SIDE, BATCH = 224, 256, 256
COMPARED = 16
"""Images of the first batch whose pixels are kept."""
_ITEMS_PER_TASK = 16

Crop: TypeAlias = Literal["centre", "whole", "random"]
"""Short side 256 and the central 224 x 224; images that are 224 x 224; random resized crops."""
Pixels: TypeAlias = Literal["uint8", "float32"]
"""As decoded, or divided by 255 and normalised."""
Numbered: TypeAlias = tuple[Any, Sequence[int]]
"""Images of a batch, an array or tensor, and the sample id of each."""
Epoch: TypeAlias = Callable[[], Iterator[Numbered]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Images that every loader of a race hands over, in batches of 256 squares of 224 pixels."""

    data: Path
    """Packed data set: shards of WebDataset with index files."""
    tree: Path
    """The same images as they came: one folder per class."""
    files: tuple[Path, ...]
    """The files of ``tree`` in the order of their sample ids."""
    folder: Path
    """For what a loader writes before it can read; shared by all tasks on these images."""
    crop: Crop
    pixels: Pixels
    threads: int
    epochs: int = 1
    """In a turn; more where one is over in a moment."""


Opener: TypeAlias = Callable[[Task], AbstractContextManager[Epoch]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """Counts and sum of one turn."""

    images: int
    distinct: int
    """Sample ids."""
    sum_of_words: int
    """Sum of all output bytes, eight at a time, modulo 2^64: in any order, the same images give the
    same sum."""
    pixels: str
    """Type of the output."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Time to the first batch of a process, once everything is imported."""

    open_seconds: float
    """Making the loader, and compiling for those that do so beforehand."""
    first_batch_seconds: float


class Session:
    """Loader of this process."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._wanted: tuple[Opener, Task] | None = None
        self._epoch: Epoch = lambda: iter(())
        self._first: tuple[list[int], NDArray[np.float32]] | None = None

    def open(self, opener: Opener, task: Task) -> None:
        """Make a loader, in place of the one before."""
        self.close()
        self._wanted, self._first = (opener, task), None
        self._epoch = self._stack.enter_context(opener(task))

    def reopen(self) -> None:
        """Make the same loader again: an idle one may go on working."""
        if self._wanted is not None:
            first, wanted = self._first, self._wanted
            self.open(*wanted)
            self._first = first

    def close(self) -> None:
        """End it."""
        self._wanted, self._epoch = None, lambda: iter(())
        self._stack.close()

    def run(self) -> Delivered:
        """Run the epochs of the task and read every byte of them."""
        images, total, kind = 0, 0, ""
        ids: set[int] = set()
        epochs = 0 if self._wanted is None else self._wanted[1].epochs
        for batch, numbers in chain.from_iterable(self._epoch() for _ in range(epochs)):
            array = np.asarray(batch)
            total += sum_of_words(array)
            images, kind = images + len(array), array.dtype.name
            ids.update(numbers)
            if self._first is None:
                self._first = list(numbers[:COMPARED]), levels(array[:COMPARED])
        return Delivered(
            images=images, distinct=len(ids), sum_of_words=total % (1 << 64), pixels=kind
        )

    def first_pixels(self) -> tuple[list[int], NDArray[np.float32]]:
        """Return sample ids and levels (0 to 255) of the first images of the first epoch."""
        if self._first is None:
            raise ValueError("there was no epoch yet; run one")
        return self._first


_SESSION = Session()


def open_loader(opener: Opener, task: Task) -> None:
    """Call ``Session.open`` of this process."""
    _SESSION.open(opener, task)


def reopen_loader() -> None:
    """Call ``Session.reopen`` of this process."""
    _SESSION.reopen()


def close_loader() -> None:
    """Call ``Session.close`` of this process."""
    _SESSION.close()


def run_turn() -> Delivered:
    """Call ``Session.run`` of this process."""
    return _SESSION.run()


def first_pixels() -> tuple[list[int], NDArray[np.float32]]:
    """Call ``Session.first_pixels`` of this process."""
    return _SESSION.first_pixels()


def time_to_first_batch(opener: Opener, task: Task) -> Start:
    """Make a loader and take one batch."""
    started = perf_counter()
    with opener(task) as epoch:
        opened = perf_counter()
        batches = epoch()  # kept, or the time to end it early would count
        batch, _ = next(batches)
        sum_of_words(np.asarray(batch))
        return Start(open_seconds=opened - started, first_batch_seconds=perf_counter() - opened)


def versions_of(packages: Sequence[str], modules: Sequence[str]) -> dict[str, str]:
    """Import modules; versions of the packages they come from."""
    for name in modules:
        import_module(name)
    return {name: version(name) for name in packages}


def sum_of_words(array: NDArray[Any]) -> int:
    """Sum of all bytes of an array, eight at a time, wherever they lie without gaps."""
    return int(array.ravel(order="K").view(np.uint64).sum(dtype=np.uint64))


def levels(images: NDArray[Any]) -> NDArray[np.float32]:
    """Return images of any loader as float32 (n, s, s, 3), in levels from 0 to 255."""
    last = images if images.shape[-1] == 3 else images.transpose(0, 2, 3, 1)
    if last.dtype == np.uint8:
        return last.astype(np.float32)
    return 255 * (last * np.array(STD, np.float32) + np.array(MEAN, np.float32))


def numbered(batches: Iterable[Any], n: int) -> Iterator[Numbered]:
    """Number the batches of a loader that keeps the order."""
    at = 0
    for batch in batches:
        yield batch, range(at, min(n, at + len(batch)))
        at += len(batch)


def in_threads(task: Task, decode: Callable[[Path, Any], None]) -> Iterator[Numbered]:
    """Decode files into batches with threads, one batch ahead of the consumer.

    Args:
        task: Files and threads.
        decode: Writes one image to a tensor of shape (3, s, s); uint8 lies channels last.
    """
    import torch

    def start(ids: range, pool: ThreadPoolExecutor) -> tuple[Any, range, list[Future[None]]]:
        if task.pixels == "uint8":
            images = torch.empty((len(ids), SIZE, SIZE, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
        else:
            images = torch.empty((len(ids), 3, SIZE, SIZE))
        rows = [range(at, min(at + _ITEMS_PER_TASK, len(ids))) for at in _starts(len(ids))]
        return images, ids, [pool.submit(some, images, ids, part) for part in rows]

    def some(images: Any, ids: range, rows: range) -> None:  # noqa: ANN401 - a tensor
        for row in rows:
            decode(task.files[ids[row]], images[row])

    with ThreadPoolExecutor(task.threads) as pool:
        waiting: list[tuple[Any, range, list[Future[None]]]] = []
        for ids in (*batches_of_ids(len(task.files)), None):
            if ids is not None:
                waiting.append(start(ids, pool))
            if len(waiting) > 1 or ids is None:
                images, numbers, parts = waiting.pop(0)
                for part in parts:
                    part.result()
                yield images, numbers


def batches_of_ids(n: int) -> list[range]:
    """Split 0 .. n-1 into batches; the last may be short."""
    return [range(at, min(at + BATCH, n)) for at in range(0, n, BATCH)]


def _starts(n: int) -> range:
    return range(0, n, _ITEMS_PER_TASK)
