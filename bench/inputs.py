"""Images that the benchmarks read, and checks of what they write.

``python -m coreset.bench.inputs FOLDER`` makes data that is large enough for ``make bench-smoke``.
"""

import shutil
import sys
import tarfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import TypeAlias

import simplejpeg
import xxhash

from coreset.bench.harness import Contender
from coreset.bench.robustness.faults import photo
from coreset.shards.images.probe import glance

SHORT_SIDE, QUALITY = 256, 90
_IMAGES_PER_TASK = 32
Labelled: TypeAlias = tuple[Path, int]
Size: TypeAlias = tuple[int, int, int]
"""Label, width, height."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """A folder with one folder of images per class."""

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


def repeated_tree(source: Path, path: Path, images: int) -> Tree:
    """Repeat the images of a class-folder tree until there are ``images`` in ``path``.

    If these are fewer than there are, every k-th is taken.
    """
    available = sorted(source.glob("*/*"))
    if not available:
        raise SystemExit(f"{source} holds no images; name the folder of the data with --data")
    step = len(available) // images if images < len(available) else 1
    chosen = available[::step]
    for position in range(images):
        file = chosen[position % len(chosen)]
        folder = path / file.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        turn = position // len(chosen)
        shutil.copyfile(file, folder / f"{file.stem}_{turn:05d}{file.suffix}")
    note = f"{images:,} copies of {min(len(chosen), images):,} images; page cache warm"
    return Tree(path=path, note=note)


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


def sizes_at(short_side: int, samples: Iterable[tuple[int, bytes]]) -> list[Size]:
    """Return sizes once the shorter side is at most ``short_side``."""
    sizes: list[Size] = []
    for label, data in samples:
        width, height = _size(data)
        scale = min(1.0, short_side / min(width, height))
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


def _size(data: bytes) -> tuple[int, int]:
    image = glance(data)
    return image.width, image.height


def decode_limit(contents: Sequence[bytes], threads: int) -> Contender:
    """Return decoding alone at stored size, on all threads, from memory."""

    def decode(start: int) -> None:
        images = contents[start : start + _IMAGES_PER_TASK]
        headers = (simplejpeg.decode_jpeg_header(data) for data in images)
        buffer = bytearray(max(3 * int(header[0]) * int(header[1]) for header in headers))
        for data in images:
            simplejpeg.decode_jpeg(data, "RGB", buffer=buffer, strict=True)

    def run(_out: Path) -> None:
        with ThreadPoolExecutor(threads) as pool:
            for _done in pool.map(decode, range(0, len(contents), _IMAGES_PER_TASK)):
                pass

    note = "simplejpeg, from memory, at stored size"
    return Contender(name="decode", run=run, role="limit", note=note)


def write_small_data(data: Path) -> None:
    """Make a folder of data with four synthetic photographs in each of two sets."""
    for name, size in (("imagenet-sample", (320, 240)), ("imagenette/train", (224, 224))):
        for label in range(4):
            path = data / name / f"n{label:08d}" / "photo.JPEG"
            path.parent.mkdir(parents=True)
            photo(label, *size).save(path, quality=92)


if __name__ == "__main__":
    write_small_data(Path(sys.argv[1]))
