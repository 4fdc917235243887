"""Writers: webdataset's ``ShardWriter``, resizers in processes, and FFCV's ``DatasetWriter``.

webdataset and Pillow are dependencies of the project; ``setup.sh`` installs the others. Shards are
made durable when they are closed, as ours are.
"""

import importlib.util
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import version
from io import BytesIO
from multiprocessing import set_start_method
from pathlib import Path
from typing import Any

import simplejpeg
from PIL import Image

from coreset.bench.inputs import QUALITY, SHORT_SIDE, Labelled
from coreset.shards.format.files import fsync_path

LONG_SIDE = round(SHORT_SIDE * 4 / 3)
"""FFCV bounds the long side, not the short one; 4:3 is the shape of most photographs."""
_FILES_PER_TASK = 50


def write_files(
    files: Iterable[Labelled],
    out: Path,
    check: Callable[[bytes], object],
    samples_per_shard: int,
) -> None:
    """Read, check and write one file after the other in this process."""

    def checked(path: Path) -> bytes:
        data = path.read_bytes()
        check(data)
        return data

    _write_samples(((checked(path), label) for path, label in files), out, samples_per_shard)


def check_in_full(data: bytes) -> None:
    """Decode at full size as a user would, with recoverable damage as an error."""
    simplejpeg.decode_jpeg(data, "RGB", strict=True)


def write_resized(
    pool: ProcessPoolExecutor,
    reencode: Callable[[Sequence[Path]], list[bytes]],
    files: Sequence[Labelled],
    out: Path,
    samples_per_shard: int,
) -> None:
    """Re-encode the files in processes, write what they send back in this one."""
    paths = [path for path, _ in files]
    starts = range(0, len(paths), _FILES_PER_TASK)
    tasks = [pool.submit(reencode, paths[at : at + _FILES_PER_TASK]) for at in starts]
    images = (image for task in tasks for image in task.result())
    _write_samples(zip(images, (label for _, label in files), strict=True), out, samples_per_shard)


def _write_samples(samples: Iterable[tuple[bytes, int]], out: Path, samples_per_shard: int) -> None:
    from webdataset.writer import ShardWriter

    def make_durable(shard: str) -> None:
        fsync_path(Path(shard))

    pattern = str(out / "shard-%06d.tar")
    with ShardWriter(pattern, samples_per_shard, verbose=0, post=make_durable) as sink:
        for position, (image, label) in enumerate(samples):
            sink.write({"__key__": f"{position:09d}", "jpg": image, "cls": label})
    fsync_path(out)


def webdataset_versions() -> dict[str, str]:
    """Return the version of webdataset."""
    return {"webdataset": version("webdataset")}


def pillow_versions() -> dict[str, str]:
    """Return the version of Pillow."""
    return {"pillow": version("pillow")}


def pillow_reencode(paths: Sequence[Path]) -> list[bytes]:
    """Resize with Pillow, antialiased and bilinear; return JPEGs."""
    return [_pillow_reencode(path) for path in paths]


def _pillow_reencode(path: Path) -> bytes:
    with Image.open(path) as image:
        pixels = image.convert("RGB")
    scale = min(1.0, SHORT_SIDE / min(pixels.size))
    if scale < 1:
        size = round(pixels.width * scale), round(pixels.height * scale)
        pixels = pixels.resize(size, Image.Resampling.BILINEAR)
    encoded = BytesIO()
    pixels.save(encoded, "JPEG", quality=QUALITY)
    return encoded.getvalue()


def img2dataset_versions() -> dict[str, str]:
    """Import the resizer; return versions of img2dataset and of what does its work."""
    _img2dataset_resizer()
    names = ("img2dataset", "opencv-python-headless", "albumentations")
    return {name: version(name) for name in names}


def img2dataset_reencode(paths: Sequence[Path]) -> list[bytes]:
    """Resize with img2dataset's resizer (OpenCV, area interpolation); return JPEGs."""
    encoded: list[bytes] = []
    for path in paths:
        image, *_, error = _img2dataset_resizer()(BytesIO(path.read_bytes()))
        if error:
            raise ValueError(f"img2dataset refuses {path.name} ({error}); leave it out")
        encoded.append(image)
    return encoded


@cache
def _img2dataset_resizer() -> Any:  # noqa: ANN401 - a class of img2dataset
    # Its file is loaded alone: the package imports wandb and a downloader.
    package = importlib.util.find_spec("img2dataset")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("No module named 'img2dataset'")
    place = Path(package.origin).with_name("resizer.py")
    spec = importlib.util.spec_from_file_location("img2dataset_resizer", place)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"{place} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.Resizer(
        image_size=SHORT_SIDE,
        resize_mode="keep_ratio",  # the short side becomes image_size
        resize_only_if_bigger=True,
        encode_quality=QUALITY,
        encode_format="jpg",
    )


def ffcv_versions() -> dict[str, str]:
    """Import the writer; return versions of FFCV and of the OpenCV that does its work.

    Its workers are forked, as by default on Linux: spawned ones would spend 8 s on imports.
    """
    import_module("ffcv.writer")
    set_start_method("fork", force=True)
    return {name: version(name) for name in ("ffcv", "opencv-python-headless")}


def ffcv_write(files: Sequence[Labelled], path: Path, workers: int, mode: str) -> None:
    """Write one file of JPEGs (``jpg``) or pixels (``raw``), through its fsync."""
    from ffcv.fields import IntField, RGBImageField  # type: ignore[import-not-found] - optional
    from ffcv.writer import DatasetWriter  # type: ignore[import-not-found] - optional

    image = RGBImageField(write_mode=mode, max_resolution=LONG_SIDE, jpeg_quality=QUALITY)
    writer = DatasetWriter(str(path), {"image": image, "label": IntField()}, num_workers=workers)
    writer.from_indexed_dataset(_Decoded(files))
    fsync_path(path)
    fsync_path(path.parent)


@dataclass(frozen=True, slots=True)
class _Decoded:
    """Images for FFCV; decoding is the user's part."""

    files: Sequence[Labelled]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, position: int) -> tuple[Any, int]:
        path, label = self.files[position]
        return simplejpeg.decode_jpeg(path.read_bytes(), "RGB"), label
