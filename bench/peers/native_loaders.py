"""Loaders with decoders of their own: ``coreset``, DALI, FFCV and SPDL.

DALI is a dependency of the project; ``setup.sh`` installs the others.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from importlib import import_module
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from coreset.bench.inputs import SHORT_SIDE
from coreset.bench.peers import writers
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
from coreset.engine.data.order import BatchOrder
from coreset.shards.format.dataset import Dataset
from coreset.shards.format.tar import index_path

coreset_versions = partial(
    versions_of, [], ["coreset.engine.data.loader", "coreset.engine.stages.decode"]
)


def coreset(decoder: str, task: Task, stack: ExitStack) -> Epoch:
    """Open ``coreset.loader``, in another order every epoch."""
    from coreset.engine.data.decoders import Normalisation
    from coreset.engine.data.geometry import Crops
    from coreset.engine.data.loader import Loader

    loader = Loader(
        task.data,
        batch=BATCH,
        size=SIZE,
        resize=SHORT_SIDE if task.crop == "centre" else None,
        crops=Crops() if task.crop == "random" else None,
        normalisation=Normalisation(MEAN, STD) if task.pixels == "float32" else None,
        decoder=decoder,
        device="cpu",
        workers=task.threads,
    )
    stack.enter_context(loader)
    return lambda: listed((batch.images, batch.ids) for batch in loader)


def coreset_cached(task: Task, stack: ExitStack) -> Epoch:
    """Open pixels that ``coreset decode`` made, in another order every epoch."""
    from coreset.engine.data.image_cache import open_cache
    from coreset.engine.runtime.progress import Display, choose_display
    from coreset.engine.stages.decode import Decode
    from coreset.engine.stages.options import Decoding

    choose_display(Display.QUIET)
    path = task.folder / "pixels"
    if not path.exists():
        side = SIZE if task.crop == "whole" else SHORT_SIDE
        decoding = Decoding(workers=task.threads)
        Decode(data=task.data, pixels=path, size=side, decoding=decoding).run()
    pixels = open_cache(path, Dataset.open(task.data))
    start = (pixels.size - SIZE) // 2  # of the central square
    pixels.images = pixels.images[..., start : start + SIZE, start : start + SIZE]
    stack.callback(pixels.close)
    epochs = count()

    def epoch() -> Iterator[Numbered]:
        order = BatchOrder(batch=BATCH, epoch=next(epochs), shuffle=True)
        return listed((batch.images, batch.ids) for batch in pixels.epoch(order))

    return epoch


def dali_versions() -> dict[str, str]:
    """Import DALI; return its version."""
    # By name: "DALI in one module" is about the product, and nobody imports this program.
    import_module("nvidia.dali.fn")
    return {"nvidia-dali-cuda130": version("nvidia-dali-cuda130")}


def dali(task: Task, _stack: ExitStack) -> Epoch:
    """Open its reader of WebDataset shards, with the index files of the shards.

    The pipeline goes on prefetching after its last batch.
    """
    shards = sorted(task.data.glob("*.tar"))
    pipeline: Any = import_module("nvidia.dali.pipeline").Pipeline(
        batch_size=BATCH, num_threads=task.threads, device_id=None
    )
    with pipeline:
        encoded = import_module("nvidia.dali.fn").readers.webdataset(
            paths=[str(path) for path in shards],
            index_paths=[str(index_path(path)) for path in shards],
            ext=["jpg;jpeg;png"],
            pad_last_batch=True,  # every epoch begins with a batch of its own
        )
        pipeline.set_outputs(_dali_images(task, encoded))
    pipeline.build()
    batches = len(batches_of_ids(len(task.files)))

    def epoch() -> Iterator[Numbered]:
        outputs = (np.asarray(pipeline.run()[0].as_tensor()) for _ in range(batches))
        return numbered(outputs, len(task.files))

    return epoch


def _dali_images(task: Task, encoded: Any) -> Any:  # noqa: ANN401 - nodes of DALI's graph
    fn, types = import_module("nvidia.dali.fn"), import_module("nvidia.dali.types")
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


def ffcv_versions() -> dict[str, str]:
    """Import FFCV's loader; return versions of FFCV and of the OpenCV that does its work."""
    import_module("ffcv.loader")
    return writers.ffcv_versions()


def ffcv(mode: str, task: Task, _stack: ExitStack) -> Epoch:
    """Open a file of JPEGs of quality 90 (``jpg``) or of pixels (``raw``) that FFCV wrote.

    It bounded the long side of images when it wrote them; those of 224 x 224 keep their size. Its
    float batches lie channels last.
    """
    from ffcv.fields.basics import IntDecoder  # type: ignore[import-not-found] - optional
    from ffcv.loader import Loader, OrderOption  # type: ignore[import-not-found] - optional
    from ffcv.transforms import ToTensor  # type: ignore[import-not-found] - optional

    path = task.folder / f"{mode}.beton"
    if not path.exists():
        files = [(file, position) for position, file in enumerate(task.files)]
        writers.ffcv_write(files, path, task.threads, mode)
    loader: Any = Loader(
        str(path),
        batch_size=BATCH,
        num_workers=task.threads,
        order=OrderOption.SEQUENTIAL,
        os_cache=True,
        drop_last=False,
        pipelines={"image": _ffcv_images(task), "label": [IntDecoder(), ToTensor()]},
    )
    return lambda: listed(loader)


def _ffcv_images(task: Task) -> list[Any]:
    from ffcv import transforms  # type: ignore[import-not-found] - optional
    from ffcv.fields import rgb_image  # type: ignore[import-not-found] - optional

    decoder: Any = {
        "centre": partial(rgb_image.CenterCropRGBImageDecoder, (SIZE, SIZE), SIZE / SHORT_SIDE),
        "whole": rgb_image.SimpleRGBImageDecoder,
        "random": partial(rgb_image.RandomResizedCropRGBImageDecoder, (SIZE, SIZE)),
    }[task.crop]()
    steps = [decoder]
    if task.pixels == "float32":
        mean, std = 255 * np.array(MEAN), 255 * np.array(STD)
        steps.append(transforms.NormalizeImage(mean, std, np.float32))
    return [*steps, transforms.ToTensor(), transforms.ToTorchImage()]


def spdl_versions() -> dict[str, str]:
    """Import SPDL; return versions of it and of FFmpeg's codecs."""
    packages = versions_of(["spdl"], ["spdl.io", "spdl.pipeline"])
    try:
        ffmpeg = import_module("spdl.io.utils").get_ffmpeg_versions()
    except RuntimeError as error:  # what is missing is not a package
        raise ImportError("FFmpeg's shared libraries are not installed") from error
    return packages | {"libavcodec": ".".join(map(str, ffmpeg["libavcodec"]))}


def spdl(task: Task, _stack: ExitStack) -> Epoch:
    """Open its pipeline: FFmpeg decodes and resizes, a batch at a time in each thread."""
    import torch
    from spdl.pipeline import PipelineBuilder  # type: ignore[import-not-found] - optional

    torch.set_num_threads(1)

    def epoch() -> Iterator[Numbered]:
        pipeline: Any = (
            PipelineBuilder()
            .add_source(batches_of_ids(len(task.files)))
            .pipe(partial(_spdl_batch, task), concurrency=task.threads, output_order="input")
            .add_sink(task.threads)
            .build(num_threads=task.threads)
        )
        with pipeline.auto_stop():
            yield from pipeline

    return epoch


_FILTERS = {
    "centre": f"scale={SHORT_SIDE}:{SHORT_SIDE}:force_original_aspect_ratio=increase:"
    f"flags=bilinear,crop={SIZE}:{SIZE},format=rgb24",
    "whole": "format=rgb24",
}
"""Filters of FFmpeg, which has no random resized crop."""


def _spdl_batch(task: Task, ids: range) -> Numbered:
    import spdl.io  # type: ignore[import-not-found] - optional
    import torch

    files = [str(Path(task.files[sample])) for sample in ids]
    buffer = spdl.io.load_image_batch(
        files, width=None, height=None, pix_fmt=None, filter_desc=_FILTERS[task.crop]
    )
    images = torch.from_numpy(spdl.io.to_numpy(buffer)).permute(0, 3, 1, 2)
    if task.pixels == "uint8":
        return images, ids
    mean, std = (255 * torch.tensor(channel)[:, None, None] for channel in (MEAN, STD))
    return torch.sub(images, mean, out=torch.empty(images.shape)).div_(std), ids
