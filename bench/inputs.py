"""Images and packed data sets that the benchmarks read, and checks of what they write."""

import os
import shutil
import tarfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray
from PIL import Image

from coreset.shards.format.dataset import (
    QUARANTINE_NAME,
    QUARANTINE_SCHEMA,
    SAMPLES_NAME,
    SAMPLES_SCHEMA,
)
from coreset.shards.format.files import sha256_of_file
from coreset.shards.format.manifest import (
    MANIFEST_NAME,
    DatasetDigests,
    Manifest,
    ShardEntry,
    classes_digest,
)
from coreset.shards.format.tar import BLOCK_BYTES, END, index_path, padded, shard_name
from coreset.shards.images.probe import glance

SHORT_SIDE, QUALITY = 256, 90
Labelled: TypeAlias = tuple[Path, int]
Size: TypeAlias = tuple[int, int, int]
"""Label, width, height."""
CLASSES = 1000
"""Classes of ``write_dataset``."""
_JPEG_SIDES = 16
_IMAGE_BYTES = 110_000  # the mean of ImageNet
_SAMPLE_BYTES = padded(_IMAGE_BYTES) + 3 * BLOCK_BYTES  # two headers and the label's block
_INDEX_BYTES_PER_SAMPLE = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """A folder with one folder of images per class."""

    name: str
    path: Path
    note: str

    def files(self) -> list[Labelled]:
        """Return every file with its label, the position of its folder in sorted order."""
        classes = sorted(entry for entry in self.path.iterdir() if entry.is_dir())
        return [
            (file, label)
            for label, folder in enumerate(classes)
            for file in sorted(folder.iterdir())
        ]

    def contents(self) -> list[bytes]:
        """Read every file; equal ones are held once."""
        held: dict[bytes, bytes] = {}
        files = (path.read_bytes() for path, _ in self.files())
        return [held.setdefault(xxhash.xxh3_128_digest(data), data) for data in files]

    def source_bytes(self) -> int:
        """Return the sum of the files' sizes."""
        return sum(path.stat().st_size for path, _ in self.files())


def repeated_tree(name: str, source: Path, path: Path, images: int, *, copies: bool) -> Tree:
    """Repeat the images of a class-folder tree until there are ``images``.

    Args:
        name: Name of the tree.
        source: Folder with one folder of images per class.
        path: Folder to make.
        images: Files; if fewer than there are, every k-th is taken.
        copies: Copy the bytes; else the files are hard links, regular files that share their bytes
            in the page cache.
    """
    available = sorted(source.glob("*/*"))
    if not available:
        raise SystemExit(f"{source} holds no images; name the folder of the data with --data")
    step = len(available) // images if images < len(available) else 1
    chosen = available[::step]
    place = shutil.copyfile if copies else os.link
    for position in range(images):
        file = chosen[position % len(chosen)]
        folder = path / file.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        turn = position // len(chosen)
        place(file, folder / f"{file.stem}_{turn:05d}{file.suffix}")
    kind = "copies" if copies else "hard links"
    note = f"{images:,} {kind} of {min(len(chosen), images):,} images; page cache warm"
    return Tree(name=name, path=path, note=note)


def tiny_tree(path: Path, images: int, *, classes: int = 1000) -> Tree:
    """Make JPEGs of 1 x 1 to 16 x 16 pixels, one file per size, hard-linked into class folders."""
    distinct = path.with_name(f"{path.name}-distinct")
    distinct.mkdir(parents=True)
    made: list[Path] = []
    for side in range(_JPEG_SIDES**2):
        width, height = side % _JPEG_SIDES + 1, side // _JPEG_SIDES + 1
        pixels = np.full((height, width, 3), side, dtype=np.uint8)
        made.append(distinct / f"{width}x{height}.jpg")
        Image.fromarray(pixels).save(made[-1])
    for label in range(min(classes, images)):
        (path / f"n{label:08d}").mkdir(parents=True)
    for position in range(images):
        folder = path / f"n{position % classes:08d}"
        os.link(made[position % len(made)], folder / f"{position:09d}.jpg")
    note = f"{images:,} hard links of {len(made)} JPEGs of 1 x 1 to 16 x 16 pixels"
    return Tree(name="tiny", path=path, note=note)


def balanced_copy(source: Path, target: Path, per_class: int) -> int:
    """Copy the first images of every class folder; return how many there are.

    Raises:
        ValueError: A class has fewer.
    """
    for folder in sorted(entry for entry in source.iterdir() if entry.is_dir()):
        images = sorted(folder.iterdir())
        if len(images) < per_class:
            raise ValueError(f"{folder} has {len(images)} images, wanted {per_class}; ask for less")
        (target / folder.name).mkdir(parents=True)
        for image in images[:per_class]:
            shutil.copyfile(image, target / folder.name / image.name)
    return sum(1 for _ in target.glob("*/*"))


def write_dataset(data: Path, *, shards: int, samples: int) -> Manifest:
    """Make a packed data set without images: ``samples`` samples over ``shards`` sparse shards.

    Manifest, sample table and file sizes are those of a real one.
    """
    data.mkdir(parents=True)
    bounds = np.linspace(0, samples, shards + 1).astype(np.int64)
    digests = DatasetDigests()
    with pq.ParquetWriter(data / SAMPLES_NAME, SAMPLES_SCHEMA, compression="zstd") as writer:
        for columns in _row_groups(bounds, digests):
            writer.write_table(pa.table(columns, SAMPLES_SCHEMA))
    pq.write_table(QUARANTINE_SCHEMA.empty_table(), data / QUARANTINE_NAME)
    entries = tuple(_sparse_shard(data, shard, bounds) for shard in range(shards))
    classes = tuple(f"n{label:08d}" for label in range(CLASSES))
    manifest = Manifest(
        name="sparse",
        split="train",
        classes=classes,
        settings={},
        n_found=samples,
        n_samples=samples,
        n_quarantined=0,
        kinds={"jpg": samples},
        shards=entries,
        identity=digests.identity.hexdigest(),
        content=digests.content.hexdigest(),
        classes_sha256=classes_digest(classes),
        samples_sha256=sha256_of_file(data / SAMPLES_NAME),
        quarantine_sha256=sha256_of_file(data / QUARANTINE_NAME),
    )
    (data / MANIFEST_NAME).write_bytes(manifest.to_bytes())
    return manifest


def _sparse_shard(data: Path, shard: int, bounds: np.ndarray) -> ShardEntry:
    samples = int(bounds[shard + 1] - bounds[shard])
    path = data / shard_name(shard)
    sizes = samples * _SAMPLE_BYTES + len(END), samples * _INDEX_BYTES_PER_SAMPLE
    for file, size in zip((path, index_path(path)), sizes, strict=True):
        file.touch()
        os.truncate(file, size)
    return ShardEntry(
        name=path.name,
        first_position=int(bounds[shard]),
        found=samples,
        samples=samples,
        bytes=sizes[0],
        index_bytes=sizes[1],
        sha256=f"{shard:064x}",  # as long as a real one; sparse bytes have another
    )


def _row_groups(bounds: np.ndarray, digests: DatasetDigests) -> Iterator[dict[str, object]]:
    """Yield columns of ``SAMPLES_SCHEMA``; hashes are as incompressible as real ones."""
    rng = np.random.default_rng(0)
    samples = int(bounds[-1])
    for first in range(0, samples, 1 << 17):
        ids = np.arange(first, min(first + (1 << 17), samples))
        shards = np.searchsorted(bounds, ids, side="right") - 1
        labels = ids * 7919 % CLASSES  # shuffled classes, as a pack has them
        hashes = [rng.bytes(16) for _ in ids]
        keys = [
            f"n{label:08d}/n{label:08d}_{sample}" for sample, label in zip(ids, labels, strict=True)
        ]
        digests.add(keys, labels.tolist(), hashes)
        yield {
            "id": ids,
            "member": [f"{sample:09d}.jpg" for sample in ids],
            "shard": shards.astype(np.int32),
            "offset": (ids - bounds[shards]) * _SAMPLE_BYTES + BLOCK_BYTES,
            "bytes": np.full(len(ids), _IMAGE_BYTES),
            "format": ["jpg"] * len(ids),
            "label": labels,
            "class": [f"n{label:08d}" for label in labels],
            "folder_label": labels,
            "key": keys,
            "source": [f"{key}.JPEG" for key in keys],
            "width": np.full(len(ids), 500, dtype=np.int32),
            "height": np.full(len(ids), 375, dtype=np.int32),
            "content_hash": hashes,
            "source_hash": hashes,
            "flags": np.zeros(len(ids), dtype=np.int32),
        }


def fingerprint(samples: Iterable[tuple[int, bytes]]) -> str:
    """Return a digest of (label, image bytes) pairs in any order."""
    lines = sorted(f"{label} {xxhash.xxh3_128_hexdigest(data)}\n" for label, data in samples)
    return f"{len(lines)} samples {sha256(''.join(lines).encode()).hexdigest()}"


def samples_of_tars(folder: Path) -> Iterator[tuple[int, bytes]]:
    """Yield label and image bytes of every sample in the tars below a folder, with ``tarfile``."""
    for path in sorted(folder.rglob("*.tar")):
        members: dict[str, dict[str, bytes]] = defaultdict(dict)
        with tarfile.open(path) as tar:
            for member in tar:
                name, file = PurePosixPath(member.name), tar.extractfile(member)
                if file is not None:
                    members[name.stem][name.suffix] = file.read()
        for parts in members.values():
            label = int(parts.pop(".cls"))
            yield from ((label, image) for image in parts.values())


def bytes_error(folder: Path, expected: str) -> str:
    """Compare the ``fingerprint`` of the tars with the source's; empty if they are the same."""
    actual = fingerprint(samples_of_tars(folder))
    return "" if actual == expected else f"expected {expected}, found {actual}"


def sizes_of_tars(folder: Path) -> list[Size]:
    """Return label, width and height of every sample in the tars below a folder."""
    return [(label, *_size(image)) for label, image in samples_of_tars(folder)]


def sizes_at(
    side: int, shorter_or_longer: Callable[[int, int], int], samples: Iterable[tuple[int, bytes]]
) -> list[Size]:
    """Return sizes once the shorter (``min``) or longer (``max``) side is at most ``side``."""
    sizes: list[Size] = []
    for label, data in samples:
        width, height = _size(data)
        scale = min(1.0, side / shorter_or_longer(width, height))
        sizes.append((label, round(width * scale), round(height * scale)))
    return sizes


def size_error(sizes: Sequence[Size], expected: Sequence[Size], within: int = 1) -> str:
    """Compare sizes; empty if they are as expected but for ``within`` pixels a side.

    Libraries round differently: torchvision down, others to the nearest pixel.
    """
    if len(sizes) != len(expected):
        return f"expected {len(expected):,} images, found {len(sizes):,}"
    for size, wanted in zip(sorted(sizes), sorted(expected), strict=True):
        far = max(abs(size[1] - wanted[1]), abs(size[2] - wanted[2])) > within
        if size[0] != wanted[0] or far:
            return f"expected (label, width, height) {wanted}, found {size}"
    return ""


def resized_pixels(contents: Iterable[bytes]) -> dict[bytes, NDArray[np.uint8]]:
    """Decode every distinct image and resize it to its stored size, uint8 (height, width, 3)."""
    distinct = list(dict.fromkeys(contents))
    pixels: dict[bytes, NDArray[np.uint8]] = {}
    sizes = sizes_at(SHORT_SIDE, min, ((0, data) for data in distinct))
    for data, (_, width, height) in zip(distinct, sizes, strict=True):
        with Image.open(BytesIO(data)) as image:
            small = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
        pixels[data] = np.asarray(small)
    return pixels


def _size(data: bytes) -> tuple[int, int]:
    image = glance(data)
    return image.width, image.height
