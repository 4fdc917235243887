"""FFCV's ``Loader`` over a file that it wrote itself; installed as ``ffcv_writer`` says.

It reads JPEGs of quality 90, or pixels, whose long side it bounded when it wrote them; images that
are 224 x 224 keep their size. Its float batches lie channels last.
"""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg

from coreset.bench.peers import ffcv_writer
from coreset.bench.peers.loaders import BATCH, MEAN, SHORT_SIDE, SIZE, STD, Epoch, Numbered, Task


def versions() -> dict[str, str]:
    """Import the loader; versions of FFCV and of the OpenCV that does its work."""
    import ffcv.loader  # type: ignore[import-not-found]  # noqa: F401 - whether it can be imported

    return ffcv_writer.versions()


@contextmanager
def jpegs(task: Task) -> Generator[Epoch]:
    """Yield a loader of JPEGs."""
    path = task.folder / "jpg.beton"
    if not path.exists():
        labelled = [(file, position) for position, file in enumerate(task.files)]
        ffcv_writer.write(labelled, path, task.threads)
    yield _epoch(task, path)


@contextmanager
def raw(task: Task) -> Generator[Epoch]:
    """Yield a loader of pixels."""
    path = task.folder / "raw.beton"
    if not path.exists():
        _write_raw(task, path)
    yield _epoch(task, path)


def _write_raw(task: Task, path: Path) -> None:
    from ffcv.fields import IntField, RGBImageField  # type: ignore[import-not-found]
    from ffcv.writer import DatasetWriter  # type: ignore[import-not-found]

    image = RGBImageField(write_mode="raw", max_resolution=ffcv_writer.LONG_SIDE)
    writer = DatasetWriter(str(path), {"image": image, "id": IntField()}, num_workers=task.threads)
    writer.from_indexed_dataset(_Decoded(task.files))


@dataclass(frozen=True, slots=True)
class _Decoded:
    files: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, position: int) -> tuple[Any, int]:
        return simplejpeg.decode_jpeg(self.files[position].read_bytes(), "RGB"), position


def _epoch(task: Task, path: Path) -> Epoch:
    from ffcv.fields.basics import IntDecoder  # type: ignore[import-not-found]
    from ffcv.loader import Loader, OrderOption  # type: ignore[import-not-found]
    from ffcv.reader import Reader  # type: ignore[import-not-found]
    from ffcv.transforms import ToTensor  # type: ignore[import-not-found]

    names = list(Reader(str(path)).handlers)
    loader: Any = Loader(
        str(path),
        batch_size=BATCH,
        num_workers=task.threads,
        order=OrderOption.SEQUENTIAL,
        os_cache=True,
        drop_last=False,
        pipelines={names[0]: _image_pipeline(task), names[1]: [IntDecoder(), ToTensor()]},
    )

    def epoch() -> Iterator[Numbered]:
        return ((images, ids.reshape(-1).tolist()) for images, ids in loader)

    return epoch


def _image_pipeline(task: Task) -> list[Any]:
    from ffcv.fields import rgb_image  # type: ignore[import-not-found]
    from ffcv.transforms import (  # type: ignore[import-not-found]
        NormalizeImage,
        ToTensor,
        ToTorchImage,
    )

    decoder: Any = {
        "centre": partial(rgb_image.CenterCropRGBImageDecoder, (SIZE, SIZE), SIZE / SHORT_SIDE),
        "whole": rgb_image.SimpleRGBImageDecoder,
        "random": partial(rgb_image.RandomResizedCropRGBImageDecoder, (SIZE, SIZE)),
    }[task.crop]()
    mean, std = 255 * np.array(MEAN), 255 * np.array(STD)
    normalise = [NormalizeImage(mean, std, np.float32)] if task.pixels == "float32" else []
    return [decoder, *normalise, ToTensor(), ToTorchImage()]
