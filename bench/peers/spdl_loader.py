"""SPDL: FFmpeg decodes and resizes, a batch at a time in each of its threads.

``setup.sh`` installs it, and says what it needs.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from coreset.bench.peers.loaders import (
    MEAN,
    SHORT_SIDE,
    SIZE,
    STD,
    Epoch,
    Numbered,
    Task,
    batches_of_ids,
    versions_of,
)

_FILTERS = {
    "centre": f"scale={SHORT_SIDE}:{SHORT_SIDE}:force_original_aspect_ratio=increase:"
    f"flags=bilinear,crop={SIZE}:{SIZE},format=rgb24",
    "whole": "format=rgb24",
}


def versions() -> dict[str, str]:
    """Import SPDL; versions of it and of FFmpeg's codecs."""
    packages = versions_of(["spdl"], ["spdl.io", "spdl.pipeline"])
    try:
        ffmpeg = import_module("spdl.io.utils").get_ffmpeg_versions()
    except RuntimeError as error:  # what is missing is not a package
        raise ImportError("FFmpeg's shared libraries are not installed") from error
    return packages | {"libavcodec": ".".join(map(str, ffmpeg["libavcodec"]))}


@contextmanager
def in_threads(task: Task) -> Generator[Epoch]:
    """Yield its pipeline; it has no random resized crop."""
    import torch
    from spdl.pipeline import PipelineBuilder  # type: ignore[import-not-found]

    torch.set_num_threads(1)

    def decode(ids: range) -> tuple[Any, Sequence[int]]:
        return _batch(task, ids), ids

    def epoch() -> Iterator[Numbered]:
        pipeline: Any = (
            PipelineBuilder()
            .add_source(batches_of_ids(len(task.files)))
            .pipe(decode, concurrency=task.threads, output_order="input")
            .add_sink(task.threads)
            .build(num_threads=task.threads)
        )
        with pipeline.auto_stop():
            yield from pipeline

    yield epoch


def _batch(task: Task, ids: range) -> Any:  # noqa: ANN401 - a tensor
    import spdl.io  # type: ignore[import-not-found]
    import torch

    buffer = spdl.io.load_image_batch(
        [str(task.files[sample]) for sample in ids],
        width=None,
        height=None,
        pix_fmt=None,
        filter_desc=_FILTERS[task.crop],
    )
    images = torch.from_numpy(spdl.io.to_numpy(buffer)).permute(0, 3, 1, 2)
    if task.pixels == "uint8":
        return images
    mean, std = (255 * torch.tensor(channel)[:, None, None] for channel in (MEAN, STD))
    normalised = torch.empty(images.shape)
    return torch.sub(images, mean, out=normalised).div_(std)
