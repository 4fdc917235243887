"""Loaders of ``coreset``, with the tasks of its peers."""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from typing import Any

from coreset.bench.peers.loaders import (
    BATCH,
    MEAN,
    SHORT_SIDE,
    SIZE,
    STD,
    Epoch,
    Numbered,
    Task,
    versions_of,
)
from coreset.engine.data.order import BatchOrder
from coreset.shards.format.dataset import Dataset

versions = partial(
    versions_of,
    [],
    [
        "coreset.engine.data.image_cache",
        "coreset.engine.data.decoders.threads",
        "coreset.engine.data.loader",
        "coreset.engine.stages.decode",
    ],
)


@contextmanager
def exact(task: Task) -> Generator[Epoch]:
    """Yield ``coreset.loader`` in another order every epoch, with compiled kernels."""
    with _loader(task, "turbo") as epoch:
        yield epoch


@contextmanager
def fast(task: Task) -> Generator[Epoch]:
    """Yield the same with coarser arithmetic."""
    with _loader(task, "fast") as epoch:
        yield epoch


@contextmanager
def decoded(task: Task) -> Generator[Epoch]:
    """Yield pixels that ``coreset decode`` made, in another order every epoch."""
    from coreset.engine.data.image_cache import open_cache
    from coreset.engine.runtime.progress import Display, choose_display
    from coreset.engine.stages.decode import Decode
    from coreset.engine.stages.options import Decoding

    path = task.folder / "pixels"
    if not path.exists():
        choose_display(Display.QUIET)
        side = SIZE if task.crop == "whole" else SHORT_SIDE
        decoding = Decoding(workers=task.threads)
        Decode(data=task.data, pixels=path, size=side, decoding=decoding).run()
    pixels = open_cache(path, Dataset.open(task.data), size=SIZE)
    numbers = count()
    yield lambda: _numbered(
        pixels.epoch(BatchOrder(batch=BATCH, epoch=next(numbers), shuffle=True))
    )
    pixels.close()


@contextmanager
def _loader(task: Task, decoder: str) -> Generator[Epoch]:
    from coreset.engine.data.decoders.base import Normalisation
    from coreset.engine.data.geometry import Crops
    from coreset.engine.data.loader import Loader

    with Loader(
        task.data,
        batch=BATCH,
        size=SIZE,
        resize=SHORT_SIDE if task.crop == "centre" else None,
        crops=Crops() if task.crop == "random" else None,
        normalisation=Normalisation(MEAN, STD) if task.pixels == "float32" else None,
        decoder=decoder,
        device="cpu",
        workers=task.threads,
    ) as loader:
        yield partial(_numbered, loader)


def _numbered(batches: Any) -> Iterator[Numbered]:  # noqa: ANN401 - an iterable of batches
    return ((batch.images, batch.ids.tolist()) for batch in batches)
