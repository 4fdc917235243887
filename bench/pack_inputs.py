"""What ``coreset.bench.pack`` packs, and what an output must hold to count as packed."""

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
import xxhash
from numpy.typing import NDArray
from PIL import Image

from coreset.shards.images.probe import glance

SHORT_SIDE = 256
QUALITY = 90
Labelled: TypeAlias = tuple[Path, int]
Size: TypeAlias = tuple[int, int, int]
"""Label, width, height."""
_JPEG_SIDES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """A folder with one folder of images per class."""

    name: str
    path: Path
    note: str

    def files(self) -> list[Labelled]:
        """Every file with its label, the position of its folder in sorted order."""
        classes = sorted(entry for entry in self.path.iterdir() if entry.is_dir())
        return [
            (file, label)
            for label, folder in enumerate(classes)
            for file in sorted(folder.iterdir())
        ]

    def contents(self) -> list[bytes]:
        """Bytes of every file, equal ones held once."""
        held: dict[bytes, bytes] = {}
        files = (path.read_bytes() for path, _ in self.files())
        return [held.setdefault(xxhash.xxh3_128_digest(data), data) for data in files]

    def source_bytes(self) -> int:
        """Sum of the files' sizes."""
        return sum(path.stat().st_size for path, _ in self.files())


def repeated_tree(name: str, source: Path, path: Path, images: int, *, copies: bool) -> Tree:
    """The images of a class-folder tree, taken again and again until there are ``images``.

    Args:
        name: Name of the tree.
        source: Folder with one folder of images per class.
        path: Folder to make.
        images: Files; if fewer than there are, every k-th is taken.
        copies: Copy the bytes; else the files are hard links, regular files that share their bytes
            in the page cache.
    """
    there = sorted(source.glob("*/*"))
    if not there:
        raise SystemExit(f"{source} holds no images; name the folder of the data with --data")
    chosen = there[:: len(there) // images] if images < len(there) else there
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
    """JPEGs of 1 x 1 to 16 x 16 pixels, one file per size, hard-linked into class folders."""
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


def fingerprint(samples: Iterable[tuple[int, bytes]]) -> str:
    """Digest of (label, image bytes) pairs in any order."""
    lines = sorted(f"{label} {xxhash.xxh3_128_hexdigest(data)}\n" for label, data in samples)
    return f"{len(lines)} samples {sha256(''.join(lines).encode()).hexdigest()}"


def samples_of_tars(folder: Path) -> Iterator[tuple[int, bytes]]:
    """Label and image bytes of every sample in the tar files below a folder, by Python's reader."""
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


def complaint_of_bytes(folder: Path, expected: str) -> str:
    """Whether the tars hold the source's bytes under their labels (see ``fingerprint``)."""
    found = fingerprint(samples_of_tars(folder))
    return "" if found == expected else f"expected {expected}, found {found}"


def sizes_of_tars(folder: Path) -> list[Size]:
    """Label, width and height of every sample in the tar files below a folder."""
    return [(label, *_size(image)) for label, image in samples_of_tars(folder)]


def sizes_at(
    side: int, shorter_or_longer: Callable[[int, int], int], samples: Iterable[tuple[int, bytes]]
) -> list[Size]:
    """Sizes once the shorter (``min``) or longer (``max``) side is at most ``side``."""
    sizes: list[Size] = []
    for label, data in samples:
        width, height = _size(data)
        scale = min(1.0, side / shorter_or_longer(width, height))
        sizes.append((label, round(width * scale), round(height * scale)))
    return sizes


def complaint_of_sizes(found: Sequence[Size], expected: Sequence[Size], within: int = 1) -> str:
    """Whether the sizes are the expected ones, but for ``within`` pixels a side.

    Libraries round differently: torchvision down, others to the nearest pixel.
    """
    if len(found) != len(expected):
        return f"expected {len(expected):,} images, found {len(found):,}"
    for one, other in zip(sorted(found), sorted(expected), strict=True):
        if one[0] != other[0] or max(abs(one[1] - other[1]), abs(one[2] - other[2])) > within:
            return f"expected (label, width, height) {other}, found {one}"
    return ""


def resized_pixels(contents: Iterable[bytes]) -> dict[bytes, NDArray[np.uint8]]:
    """Every distinct image at its stored size, decoded: uint8 of shape (height, width, 3)."""
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
