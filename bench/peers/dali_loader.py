"""DALI on a CPU, with its own readers of shards and of files.

DALI is a dependency of the project: nothing to install. A pipeline goes on prefetching after its
last batch, so ``coreset.bench.decode`` has it made anew after each of its turns.
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import version
from typing import Any

import numpy as np

from coreset.bench.peers.loaders import BATCH, MEAN, SHORT_SIDE, SIZE, STD, Epoch, Numbered, Task
from coreset.shards.format.tar import index_path

_READER = {"name": "reader", "pad_last_batch": True}
"""Every epoch begins with a batch of its own; what fills up the last one is dropped here."""


def versions() -> dict[str, str]:
    """Import DALI; its version."""
    _fn()
    return {"nvidia-dali-cuda130": version("nvidia-dali-cuda130")}


@contextmanager
def over_shards(task: Task) -> Generator[Epoch]:
    """Yield its reader of WebDataset shards, with the index files of the shards."""
    shards = sorted(task.data.glob("*.tar"))

    def reader() -> Any:  # noqa: ANN401 - a node of DALI's graph
        return _fn().readers.webdataset(
            paths=[str(path) for path in shards],
            index_paths=[str(index_path(path)) for path in shards],
            ext=["jpg;jpeg;png"],
            **_READER,
        )

    yield _epoch(task, reader)


@contextmanager
def over_files(task: Task) -> Generator[Epoch]:
    """Yield its reader of files."""

    def reader() -> Any:  # noqa: ANN401 - a node of DALI's graph
        return _fn().readers.file(files=[str(path) for path in task.files], **_READER)[0]

    yield _epoch(task, reader)


def _fn() -> Any:  # noqa: ANN401 - a module without types
    # By name: "DALI in one module" is about the product, and nobody imports this program.
    return import_module("nvidia.dali.fn")


def _epoch(task: Task, reader: Callable[[], Any]) -> Epoch:
    pipeline: Any = import_module("nvidia.dali.pipeline").Pipeline(
        batch_size=BATCH, num_threads=task.threads, device_id=None
    )
    with pipeline:
        pipeline.set_outputs(_images(task, reader()))
    pipeline.build()

    def epoch() -> Iterator[Numbered]:
        for start in range(0, len(task.files), BATCH):
            (images,) = pipeline.run()
            ids = range(start, min(start + BATCH, len(task.files)))
            yield np.asarray(images.as_tensor())[: len(ids)], ids

    return epoch


def _images(task: Task, encoded: Any) -> Any:  # noqa: ANN401 - nodes of DALI's graph
    fn, types = _fn(), import_module("nvidia.dali.types")
    smooth = {"interp_type": types.INTERP_LINEAR, "antialias": True}
    if task.crop == "random":
        images = fn.decoders.image_random_crop(
            encoded, device="cpu", random_area=[0.08, 1.0], random_aspect_ratio=[3 / 4, 4 / 3]
        )
        images = fn.resize(images, size=[SIZE, SIZE], **smooth)
    else:
        images = fn.decoders.image(encoded, device="cpu", adjust_orientation=False)
    if task.crop == "centre":
        images = fn.resize(images, resize_shorter=SHORT_SIDE, **smooth)
    if task.pixels == "float32":
        return fn.crop_mirror_normalize(
            images,
            crop=(SIZE, SIZE),
            dtype=types.FLOAT,
            output_layout="CHW",
            mean=[255 * mean for mean in MEAN],
            std=[255 * std for std in STD],
        )
    return fn.crop(images, crop=(SIZE, SIZE)) if task.crop == "centre" else images
