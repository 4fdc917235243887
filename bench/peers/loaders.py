"""Task of the loaders of ``coreset.bench.decode``, and the session of a loader's process.

One process holds one loader at a time, which stays open from round to round.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZE, BATCH = 224, 256
COMPARED = 16
"""Images of the first batch whose pixels are kept."""

Crop: TypeAlias = Literal["centre", "whole", "random"]
"""Short side 256 and the central 224 x 224; images that are 224 x 224; random resized crops."""
Pixels: TypeAlias = Literal["uint8", "float32"]
"""As decoded, or divided by 255 and normalised."""
Numbered: TypeAlias = tuple[Any, Sequence[int]]
"""Images of a batch, an array or tensor, and the sample id of each."""
Epoch: TypeAlias = Callable[[], Iterable[Numbered]]
"""Starts an epoch."""


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


Opener: TypeAlias = Callable[[Task, ExitStack], Epoch]
"""Makes a loader; what the stack holds ends it."""


class Delivered(NamedTuple):
    """Counts and sum of one turn."""

    images: int
    distinct: int
    """Sample ids."""
    pixels: str
    """Type of the output."""
    sum_of_words: int
    """Sum of all output bytes, eight at a time, modulo 2^64: in any order, the same images give the
    same sum."""


class Session:
    """Loader of a process."""

    def __init__(self) -> None:
        """Hold no loader."""
        self._stack = ExitStack()
        self._task: Task | None = None
        self._epoch: Epoch = lambda: ()
        self._first: tuple[list[int], NDArray[np.float32]] | None = None

    def open(self, opener: Opener, task: Task) -> None:
        """Make a loader, in place of the one before; first pixels of the same task are kept."""
        self._stack.close()
        if task != self._task:
            self._task, self._first = task, None
        self._epoch = opener(task, self._stack)

    def close(self) -> None:
        """End the loader."""
        self._task, self._epoch = None, lambda: ()
        self._stack.close()

    def run(self) -> Delivered:
        """Run the epochs of the task and read every byte of them."""
        images, total, kind = 0, 0, ""
        ids: set[int] = set()
        epochs = 0 if self._task is None else self._task.epochs
        for batch, numbers in chain.from_iterable(self._epoch() for _ in range(epochs)):
            array = np.asarray(batch)
            # Wherever the bytes lie, they lie without gaps.
            words = array.ravel(order="K").view(np.uint64)
            total += int(words.sum(dtype=np.uint64))
            images, kind = images + len(array), array.dtype.name
            ids.update(numbers)
            if self._first is None:
                self._first = list(numbers[:COMPARED]), levels(array[:COMPARED])
        return Delivered(images, len(ids), kind, total % (1 << 64))

    def first_pixels(self) -> tuple[list[int], NDArray[np.float32]]:
        """Return sample ids and levels (0 to 255) of the first images of the first epoch."""
        if self._first is None:
            raise ValueError("there was no epoch yet; run one")
        return self._first


_SESSION = Session()


def call_session(method: str, *arguments: object) -> Any:  # noqa: ANN401 - whatever it returns
    """Call a method of the session of this process."""
    return getattr(_SESSION, method)(*arguments)


def versions_of(packages: Sequence[str], modules: Sequence[str]) -> dict[str, str]:
    """Import modules; return versions of the packages they come from."""
    for name in modules:
        import_module(name)
    return {name: version(name) for name in packages}


def levels(images: NDArray[Any]) -> NDArray[np.float32]:
    """Return images of any loader as float32 (n, s, s, 3), in levels from 0 to 255."""
    last = images if images.shape[-1] == 3 else images.transpose(0, 2, 3, 1)
    if last.dtype == np.uint8:
        return last.astype(np.float32)
    return 255 * (last * np.array(STD, np.float32) + np.array(MEAN, np.float32))


def numbered(batches: Iterable[Any], n: int) -> Iterator[Numbered]:
    """Number the images of a loader that keeps the order; drop what fills up its last batch."""
    at = 0
    for batch in batches:
        ids = range(at, min(n, at + len(batch)))
        yield batch[: len(ids)], ids
        at += len(batch)


def listed(batches: Iterable[tuple[Any, Any]]) -> Iterator[Numbered]:
    """Turn the id tensors of a loader into lists."""
    return ((images, ids.reshape(-1).tolist()) for images, ids in batches)


def batches_of_ids(n: int) -> list[range]:
    """Split 0 .. n-1 into batches; the last may be short."""
    return [range(at, min(at + BATCH, n)) for at in range(0, n, BATCH)]
