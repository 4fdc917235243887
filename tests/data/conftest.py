"""Tiny packed data sets and real images for the decoder tests."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xxhash
from PIL import Image

from coreset.bench.robustness.faults import encoded
from coreset.engine.data.decoders import EncodedBatch
from coreset.shards.format.dataset import Dataset, ShardEntry
from coreset.shards.format.records import ShardRecord, write_tables
from coreset.shards.format.tar import ShardWriter, index_path, shard_name

REAL_IMAGES = 50


@dataclass(frozen=True, slots=True)
class Stored:
    """One encoded image and what the index says about it."""

    data: bytes
    width: int
    height: int
    format: str = "jpg"


def encode(image: Image.Image, file_format: str = "JPEG", **options) -> Stored:
    extension = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}[file_format]
    return Stored(encoded(image, file_format, **options), *image.size, extension)


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth and noisy areas with sharp edges, unlike flat colour or pure noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [127 + 90 * np.sin(x / rng.uniform(3, 40) + y / rng.uniform(3, 40)) for _ in range(3)]
    pixels = np.stack(waves, axis=-1) + rng.normal(0, 8, (height, width, 3))
    pixels[height // 3 : height // 2, width // 4 : width // 2] = rng.integers(0, 256, 3)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def write_data_set(
    path: Path, stored: list[Stored], *, samples_per_shard: int = 5, n_classes: int = 3
) -> Dataset:
    """Pack images whatever they hold, also what `pack` refuses; label = id modulo classes."""
    path.mkdir()
    starts = range(0, len(stored), samples_per_shard)
    for shard, first in enumerate(starts):
        tar = path / shard_name(shard)
        writer, rows = ShardWriter(tar), []
        for sample in range(first, min(first + samples_per_shard, len(stored))):
            image, label = stored[sample], sample % n_classes
            member = writer.add(sample, image.format, image.data, label)
            rows.append(row_of(sample, image, label) | {"shard": shard, "offset": member.offset})
        entry = ShardEntry(
            name=tar.name,
            first_position=first,
            found=len(rows),
            samples=len(rows),
            sha256=writer.finish(),
            bytes=writer.size,
            index_bytes=index_path(tar).stat().st_size,
        )
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        ShardRecord(entry=entry, samples=columns, refused=[]).commit(path, shard)
    classes = [f"class{c}" for c in range(n_classes)]
    about: dict[str, Any] = {"name": "tiny", "split": "train", "classes": classes, "settings": {}}
    write_tables(path, n_shards=len(starts), refused=[], **about)
    for record in path.glob("shard-*.json"):
        record.unlink()
    return Dataset.open(path)


def row_of(sample: int, image: Stored, label: int) -> dict[str, Any]:
    digest = xxhash.xxh3_128_hexdigest(image.data)
    return {
        "member": f"{sample:09d}.{image.format}",
        "bytes": len(image.data),
        "format": image.format,
        "label": label,
        "class": f"class{label}",
        "folder_label": label,
        "key": f"class{label}/image{sample}",
        "source": f"class{label}/image{sample}.{image.format}",
        "width": image.width,
        "height": image.height,
        "content_hash": digest,
        "source_hash": digest,
        "flags": 0,
    }


@pytest.fixture
def packed(tmp_path) -> Callable[..., Dataset]:
    """Pack a list of ``Stored`` into a data set."""

    def pack(stored: list[Stored], name: str = "data", **settings) -> Dataset:
        return write_data_set(tmp_path / name, stored, **settings)

    return pack


@pytest.fixture(scope="session")
def numbered(tmp_path_factory) -> Dataset:
    """23 flat grey 24x24 images whose brightness is ten times their id: pixels tell the id."""
    stored = [encode(Image.new("RGB", (24, 24), (10 * i,) * 3), quality=95) for i in range(23)]
    return write_data_set(tmp_path_factory.mktemp("numbered") / "data", stored)


@pytest.fixture(scope="session")
def real_images() -> list[Stored]:
    """Original-size ImageNet files."""
    default = Path(__file__).resolve().parents[3] / "shared" / "data"
    folder = Path(os.environ.get("CORESET_DATA", default)) / "imagenet-sample"
    files = sorted(folder.glob("*/*"))[:REAL_IMAGES]
    if not files:
        pytest.skip(f"{folder} holds no images; set CORESET_DATA to the folder of real data")
    found: list[Stored] = []
    for file in files:
        with Image.open(file) as image:
            found.append(Stored(file.read_bytes(), *image.size))
    return found


@pytest.fixture(scope="session")
def same_batches():
    """``same_batches(found, expected)``: compare two epochs bit for bit, memory layout included."""

    def compare(found, expected):
        for one, other in zip(found, expected, strict=True):
            assert all(map(torch.equal, one, other))
            assert one.images.stride() == other.images.stride()

    return compare


@pytest.fixture(scope="session")
def images():
    """Stored images, for tests, which cannot import this file."""
    return ImageMaker()


class ImageMaker:
    """How tests make stored images."""

    Stored = Stored
    encode = staticmethod(encode)
    photo = staticmethod(photo)

    def jpeg(self, width: int, height: int, seed: int = 0, **options) -> Stored:
        """A synthetic photograph as JPEG."""
        return encode(photo(width, height, seed), **options)

    def cut(self, width: int, height: int, n_bytes: int = 500) -> Stored:
        """The beginning of a JPEG, which nobody can decode."""
        return Stored(self.jpeg(width, height).data[:n_bytes], width, height)

    def kinds(self, width: int, height: int) -> list[Stored]:
        """A photograph of every kind that is stored, also those that only Pillow reads."""
        image, exif = photo(width, height), Image.Exif()
        exif[0x0112] = 6
        sixteen = Image.fromarray(np.full((height, width), 25_700, np.uint16))
        return [
            encode(image),
            encode(image, exif=exif),
            encode(image.convert("L")),
            encode(image.convert("CMYK")),
            encode(image, "PNG"),
            encode(image.quantize(40), "PNG"),
            encode(sixteen, "PNG"),
            encode(image, "WEBP", lossless=True),
            Stored(encode(image).data + b"trailing bytes", width, height),
        ]

    def batch(self, stored: list[Stored], crops=None, data=None) -> EncodedBatch:
        """Stored images as a decoder takes them."""
        sizes = np.array([(one.width, one.height) for one in stored], np.int64).reshape(-1, 2)
        return EncodedBatch(data or [one.data for one in stored], sizes[:, 0], sizes[:, 1], crops)
