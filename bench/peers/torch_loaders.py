"""Loaders that decode with Pillow or ``torchvision.io`` and use torchvision's transforms.

Workers are those of torch's ``DataLoader``, forked, which stay from epoch to epoch. torchvision and
webdataset are dependencies of the project; ``setup.sh`` installs the others.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias

import torch
from PIL import Image

from coreset.bench.inputs import SHORT_SIDE
from coreset.bench.peers.loaders import (
    BATCH,
    MEAN,
    SIZE,
    STD,
    Epoch,
    Numbered,
    Task,
    batches_of_ids,
    listed,
    numbered,
    versions_of,
)

_ITEMS_PER_TASK = 16
Started: TypeAlias = tuple[torch.Tensor, range, list[Future[None]]]
torchvision_versions = partial(
    versions_of, ["torchvision", "pillow"], ["torchvision.io", "torchvision.transforms.v2"]
)
webdataset_versions = partial(versions_of, ["webdataset"], ["webdataset.compat"])
litdata_versions = partial(versions_of, ["litdata"], ["litdata"])
streaming_versions = partial(versions_of, ["mosaicml-streaming"], ["streaming"])


def transform_of(task: Task) -> Callable[[Any], Any]:
    """Return the transform of a Pillow image or uint8 tensor to a tensor (3, s, s)."""
    from torchvision.transforms import v2

    torch.set_num_threads(1)  # threads or workers of the loader are the parallelism
    steps: list[Any] = {
        "centre": [v2.Resize(SHORT_SIDE, antialias=True), v2.CenterCrop(SIZE)],
        "whole": [],
        "random": [v2.RandomResizedCrop(SIZE, antialias=True)],
    }[task.crop]
    ending: list[Any] = []
    if task.pixels == "float32":
        ending = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    return v2.Compose([*steps, v2.ToImage(), *ending, v2.ToPureTensor()])


def _options(task: Task) -> dict[str, Any]:
    """Return options of torch's ``DataLoader``."""
    return {
        "batch_size": BATCH,
        "num_workers": task.threads,
        "persistent_workers": True,
        "multiprocessing_context": "fork",
    }


def _decode_sample(transform: Callable[[Any], Any], sample: dict[str, Any]) -> tuple[Any, int]:
    """Return image and sample id of ``{"id": ..., "image": stored bytes}``, by Pillow."""
    with Image.open(BytesIO(sample["image"])) as image:
        return transform(image.convert("RGB")), sample["id"]


def _stored(sample: tuple[int, Path]) -> dict[str, Any]:
    return {"id": sample[0], "image": sample[1].read_bytes()}


def _read_jpeg(path: Path) -> Any:  # noqa: ANN401 - a tensor, or a list of them
    from torchvision.io import ImageReadMode, decode_jpeg, read_file

    return decode_jpeg(read_file(str(path)), mode=ImageReadMode.RGB)


def image_folder(task: Task, _stack: ExitStack) -> Epoch:
    """Open ``ImageFolder`` with workers and its default decoder, Pillow."""
    from torch.utils.data import DataLoader, Subset
    from torchvision.datasets import ImageFolder

    folder = ImageFolder(str(task.tree), transform=transform_of(task))
    places = {path: place for place, (path, _) in enumerate(folder.samples)}
    ordered = Subset(folder, [places[str(path)] for path in task.files])
    loader: DataLoader[Any] = DataLoader(ordered, **_options(task))
    return lambda: numbered((images for images, _ in loader), len(task.files))


def threads(task: Task, _stack: ExitStack) -> Epoch:
    """Open ``torchvision.io`` and the transforms in threads, one batch ahead of the consumer."""
    transform = transform_of(task)
    return partial(in_threads, task, lambda path: transform(_read_jpeg(path)))


def in_threads(task: Task, read: Callable[[Path], torch.Tensor]) -> Iterator[Numbered]:
    """Read files, to tensors of shape (3, s, s), into batches with threads."""

    def some(images: torch.Tensor, ids: range, first: int) -> None:
        for row in range(first, min(first + _ITEMS_PER_TASK, len(ids))):
            images[row].copy_(read(task.files[ids[row]]))

    def start(ids: range) -> Started:
        if task.pixels == "uint8":
            images = torch.empty((len(ids), SIZE, SIZE, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
        else:
            images = torch.empty((len(ids), 3, SIZE, SIZE))
        firsts = range(0, len(ids), _ITEMS_PER_TASK)
        return images, ids, [pool.submit(some, images, ids, first) for first in firsts]

    with ThreadPoolExecutor(task.threads) as pool:
        started: deque[Started] = deque()
        for ids in batches_of_ids(len(task.files)):
            started.append(start(ids))
            if len(started) > 1:
                yield _finished(started.popleft())
        yield from map(_finished, started)


def _finished(batch: Started) -> Numbered:
    images, ids, parts = batch
    for part in parts:
        part.result()
    return images, ids


def webdataset(task: Task, _stack: ExitStack) -> Epoch:
    """Open the usual pipeline over the shards; batches are made in the workers."""
    from torch.utils.data import DataLoader
    from webdataset.compat import WebDataset

    shards = [str(path) for path in sorted(task.data.glob("*.tar"))]
    dataset: Any = (
        WebDataset(shards, shardshuffle=False)
        .decode("pilrgb")
        .to_tuple("jpg;jpeg;png", "__key__")
        .map_tuple(transform_of(task), int)  # keys are sample ids
        .batched(BATCH)
    )
    options: dict[str, Any] = _options(task) | {"batch_size": None}
    loader: DataLoader[Any] = DataLoader(dataset, **options)
    return lambda: ((images, [int(sample) for sample in ids]) for images, ids in loader)


def litdata(task: Task, _stack: ExitStack) -> Epoch:
    """Open ``StreamingDataset`` over chunks of stored files that LitData wrote."""
    import litdata as package  # type: ignore[import-not-found] - optional

    chunks = task.folder / "litdata"
    if not chunks.exists():
        # Left to itself, it empties a folder below that of temporary files.
        os.environ["DATA_OPTIMIZER_CACHE_FOLDER"] = str(task.folder / "litdata-chunks")
        os.environ["DATA_OPTIMIZER_DATA_CACHE_FOLDER"] = str(task.folder / "litdata-data")
        package.optimize(
            fn=_stored,
            inputs=[*enumerate(task.files)],
            output_dir=str(chunks),
            chunk_bytes="16MB",
            num_workers=1,
            reorder_files=False,
            verbose=False,
        )
    decode = partial(_decode_sample, transform_of(task))
    dataset: Any = package.StreamingDataset(str(chunks), transform=decode)
    loader: Any = package.StreamingDataLoader(dataset, **_options(task))
    return lambda: listed(loader)


def streaming(task: Task, _stack: ExitStack) -> Epoch:
    """Open ``StreamingDataset`` over shards of stored files that MosaicML Streaming wrote."""
    from streaming import MDSWriter, StreamingDataset  # type: ignore[import-not-found] - optional
    from streaming.base.util import clean_stale_shared_memory  # type: ignore[import-not-found] - optional
    from torch.utils.data import DataLoader, IterableDataset

    shards = task.folder / "mds"
    if not shards.exists():
        with MDSWriter(out=str(shards), columns={"id": "int", "image": "bytes"}) as writer:
            for sample in enumerate(task.files):
                writer.write(_stored(sample))
    clean_stale_shared_memory()
    stored: Any = StreamingDataset(local=str(shards), shuffle=False, batch_size=BATCH)
    decode = partial(_decode_sample, transform_of(task))

    class Decoded(IterableDataset[Any]):
        """Torch asks for this type."""

        def __iter__(self) -> Iterator[tuple[Any, int]]:
            return map(decode, stored)

    loader: DataLoader[Any] = DataLoader(Decoded(), **_options(task))
    return lambda: listed(loader)
