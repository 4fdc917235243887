"""FFCV's ``DatasetWriter``: one file of JPEGs, written by its own worker processes.

    apt-get install pkg-config libturbojpeg0-dev libopencv-dev
    uv pip install --target FOLDER/ffcv --no-deps --no-build-isolation ffcv \
        'opencv-python-headless<5' assertpy fastargs imgcat terminaltables pytorch-pfn-extras

Its image field bounds the long side, not the short one: 341 pixels for a short side of 256 at 4:3,
the shape of most photographs of ImageNet. Decoding is the user's part; simplejpeg does it here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing import set_start_method
from pathlib import Path
from typing import Any

import simplejpeg

from coreset.bench.inputs import QUALITY, SHORT_SIDE, Labelled, Size
from coreset.shards.format.files import fsync_path

LONG_SIDE = round(SHORT_SIDE * 4 / 3)


def versions() -> dict[str, str]:
    """Import the writer; versions of FFCV and of the OpenCV that does its work.

    Its workers are forked, as by default on Linux: spawned ones would spend 8 s on imports.
    """
    import ffcv.writer  # type: ignore[import-not-found]  # noqa: F401 - whether it can be imported

    set_start_method("fork", force=True)
    return {name: version(name) for name in ("ffcv", "opencv-python-headless")}


def write(files: Sequence[Labelled], path: Path, workers: int) -> None:
    """Write one FFCV file, through its fsync."""
    from ffcv.fields import IntField, RGBImageField  # type: ignore[import-not-found]
    from ffcv.writer import DatasetWriter  # type: ignore[import-not-found]

    image = RGBImageField(write_mode="jpg", max_resolution=LONG_SIDE, jpeg_quality=QUALITY)
    writer = DatasetWriter(str(path), {"image": image, "label": IntField()}, num_workers=workers)
    writer.from_indexed_dataset(_Images(files))
    fsync_path(path)
    fsync_path(path.parent)


def sizes(path: Path) -> list[Size]:
    """Label, width and height of every image in an FFCV file."""
    from ffcv.reader import Reader  # type: ignore[import-not-found]

    rows: Any = Reader(str(path)).metadata
    images, labels = rows["f0"], rows["f1"].reshape(-1)
    columns = zip(labels, images["width"].reshape(-1), images["height"].reshape(-1), strict=True)
    return [(int(label), int(width), int(height)) for label, width, height in columns]


@dataclass(frozen=True, slots=True)
class _Images:
    files: Sequence[Labelled]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, position: int) -> tuple[Any, int]:
        path, label = self.files[position]
        return simplejpeg.decode_jpeg(path.read_bytes(), "RGB"), label
